"""An exported experiment on a SuperLink and three SuperNodes of this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from perfeds2 import ExperimentConfig, Simulation
from perfeds2.flower import export
from perfeds2.result import RunResult

pytestmark = pytest.mark.peer
NODES = 3


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_for(condition, seconds, what, log):
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            pytest.fail(f"{what} did not happen in {seconds} s:\n{log.read_text()[-3000:]}")
        time.sleep(0.5)


@pytest.mark.skipif(shutil.which("flower-superlink") is None, reason="Flower is not installed")
def test_replay_on_supernodes_gives_identical_weights(tmp_path):
    experiment, log = tmp_path / "e.toml", tmp_path / "log.txt"
    experiment.write_text("ues = 6\n[schedule]\nparticipants = 2\n[train]\nrounds = 3\n")
    app = export(experiment, tmp_path / "app", "replay", NODES)
    port, *runtime = free_ports(1 + NODES)
    home = tmp_path / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "here"\n\n[superlink.here]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    # processes that Flower starts look for its programs on the path
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {
        **os.environ,
        "PATH": path,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    link = ["flower-superlink", "--insecure", "--port", str(port)]
    node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port"]
    nodes = [[*node, str(own)] for own in runtime]
    with log.open("w") as out:
        running = [
            subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)
            for command in (link, *nodes)
        ]
        try:
            for attempt in range(20):
                run = ["flwr", "run", str(app), "here"]
                done = subprocess.run(run, stdout=out, stderr=out, env=env, check=False)
                if done.returncode == 0:
                    break
                assert attempt < 19, log.read_text()[-3000:]
                time.sleep(1)
            wait_for((app / "run.npz").exists, 240, "the run's result", log)
        finally:
            for process in running:
                os.killpg(process.pid, 15)
            for process in running:
                process.wait(timeout=30)
    plain = Simulation(ExperimentConfig.from_toml(experiment)).run()
    assert np.array_equal(RunResult.load(app / "run.npz").weights, plain.weights)

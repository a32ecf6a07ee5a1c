"""Shared fixtures: simulated machines in temporary folders."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from migperf import Node, Simulator


@pytest.fixture
def open_sim(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Open simulated nodes, one after the other; all are closed at the end."""
    opened: list[Node] = []

    def start(machine: str = "a100-40gb", **options: object) -> Node:
        for node in opened:
            node.close()
        state = tmp_path / f"machine{len(opened)}"
        node = Node.open(
            Simulator.create(machine, state, **options),  # type: ignore[arg-type]
            state_dir=tmp_path / "journals",
        )
        opened.append(node)
        return node

    yield start
    for node in opened:
        node.close()


@pytest.fixture(autouse=True)
def _own_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what tests write down away from the user's own state."""
    monkeypatch.setenv("MIGPERF_STATE_DIR", str(tmp_path / "state"))


FAKE_MPS = """#!{python}
\"\"\"Stand-in for NVIDIA's MPS control program: a daemon, a pid file, answers to commands.\"\"\"
import os, signal, subprocess, sys
from pathlib import Path

pipe, log = (Path(os.environ["CUDA_MPS_" + n + "_DIRECTORY"]) for n in ("PIPE", "LOG"))
pid = pipe / "nvidia-cuda-mps-control.pid"
if sys.argv[1:2] == ["stand-in-daemon"]:
    signal.pause()
with (log / "commands").open("a") as stream:
    if "-d" in sys.argv:
        flags = " ".join(a for a in sys.argv[1:] if a != "-d")
        stream.write(" ".join(["start", flags, "device", os.environ["CUDA_VISIBLE_DEVICES"]]))
        stream.write("\\n")
        daemon = subprocess.Popen(
            [sys.executable, __file__, "stand-in-daemon"], start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        pid.write_text(str(daemon.pid))
        sys.exit(0)
    if not pid.exists():
        sys.exit("Cannot find MPS control daemon process")
    text = sys.stdin.read()
    stream.write(text)
clients = "4711\\n4712"
if (pipe / "clients").exists():
    clients = (pipe / "clients").read_text()
answers = dict(get_server_list="100", get_client_list=clients)
word = text.split()[0]
if word == "quit" and not (pipe / "deaf").exists():
    os.kill(int(pid.read_text()), signal.SIGTERM)
    pid.unlink()
print(answers.get(word, ""))
"""


@pytest.fixture
def fake_mps(tmp_path: Path) -> Path:
    """Write a stand-in for ``nvidia-cuda-mps-control`` into a folder of its own."""
    program = tmp_path / "bin" / "nvidia-cuda-mps-control"
    program.parent.mkdir()
    program.write_text(FAKE_MPS.format(python=sys.executable))
    program.chmod(0o755)
    return program

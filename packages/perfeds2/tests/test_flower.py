"""The Flower loops over a grid in memory; with Flower itself in the peer session."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from perfeds2 import ExperimentConfig, InputError, Simulation
from perfeds2.cli import main
from perfeds2.flower import export, missing

TABLES = {
    "ues": 6,
    "schedule": {"participants": 2, "staleness": 4},
    "train": {"rounds": 6, "eval_every": 3},
}


def test_export_writes_an_app_that_names_its_parts(tmp_path):
    import tomllib

    experiment = tmp_path / "e.toml"
    experiment.write_text("[train]\nrounds = 2\n")
    folder = export(experiment, tmp_path / "app", "replay", 3)
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["tool"]["flwr"]["app"]["components"]["serverapp"] == "apps:server"
    assert project["tool"]["flwr"]["app"]["config"]["nodes"] == 3
    compile((folder / "apps.py").read_text(), "apps.py", "exec")
    with pytest.raises(InputError, match="mode = 'later'"):
        export(experiment, tmp_path / "app", "later")


def test_without_flower_the_command_says_so_in_one_line(tmp_path, capsys):
    if not missing():
        pytest.skip("Flower is installed here")
    experiment = tmp_path / "e.toml"
    experiment.write_text("")
    with pytest.raises(SystemExit) as caught:
        main(["flower", "run", str(experiment), "--out", str(tmp_path / "r.npz")])
    assert caught.value.code == 2
    assert "perfeds2[flower]" in capsys.readouterr().err


def in_a_run():
    """Flower's messages carry the identity of the run that sends them."""
    identity = pytest.importorskip("flwr.supercore.task_identity").TaskIdentity
    identity.run_id = identity.node_id = identity.task_id = 1


class Grid:
    """In-memory grid: answers each message with the client's pure function, out of order.

    It drops every seventh message and answers every fifth with an error, once each.
    """

    def __init__(self, nodes):
        self.nodes, self.waiting, self.count, self.seen = list(range(10, 10 + nodes)), {}, 0, 0

    def get_node_ids(self):
        return self.nodes

    def push_messages(self, messages):
        names = []
        for message in messages:
            self.count += 1
            names.append(f"m{self.count}")
            self.waiting[names[-1]] = message
        return names

    def pull_messages(self, names):
        from flwr.app import Error, Message
        from perfeds2.flower import answer

        assert names, "never pull with an empty list"
        found = []
        for name in reversed(list(names)):
            message = self.waiting.pop(name, None)
            if message is None:
                continue
            self.seen += 1
            if self.seen % 7 == 0:
                continue
            message.metadata.__dict__["_message_id"] = name
            if self.seen % 5 == 0:
                reply = Message(Error(code=0, reason="worker died"), reply_to=message)
            else:
                reply = Message(answer(message.content), reply_to=message)
            found.append(reply)
        return found


@pytest.mark.peer
def test_replay_survives_lost_and_failed_messages_with_identical_weights():
    in_a_run()
    from perfeds2.flower import replay

    config = ExperimentConfig.from_dict(TABLES)
    found = replay(Grid(2), config, 2, patience_s=0.5)
    plain = Simulation(config).run()
    assert np.array_equal(found.weights, plain.weights)
    assert np.array_equal(found.loss, plain.loss)


@pytest.mark.peer
def test_live_rounds_keep_the_staleness_bound():
    in_a_run()
    from perfeds2.flower import live

    found = live(Grid(6), ExperimentConfig.from_dict(TABLES), patience_s=0.5)
    assert len(found.counts) == 6
    assert found.staleness.max() <= 4
    assert found.counts.min() >= 2


REPLAY = """
import sys
import numpy as np
from perfeds2 import ExperimentConfig, Simulation
from perfeds2.flower import simulate_here
config = ExperimentConfig.from_toml(sys.argv[1])
same = np.array_equal(simulate_here(config, 2, 2).weights, Simulation(config).run().weights)
print("equal", same)
"""


@pytest.mark.peer
def test_flower_simulation_gives_identical_weights(tmp_path):
    pytest.importorskip("flwr")
    pytest.importorskip("ray")
    experiment = tmp_path / "e.toml"
    experiment.write_text("ues = 6\n[schedule]\nparticipants = 2\n[train]\nrounds = 4\n")
    done = subprocess.run(
        [sys.executable, "-c", REPLAY, str(experiment)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},
    )
    assert "equal True" in done.stdout, done.stderr[-2000:]

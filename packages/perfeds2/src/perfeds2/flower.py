"""Flower executes the gradients: the same experiment on its simulation or on real SuperNodes.

``replay``: the virtual clock decides which updates make up a round; Flower only computes them.
The final weights equal those of the in-process run, bit for bit. ``live``: a round closes with the
first A replies that arrive, with the staleness bound; one node per UE.

Needs the extra ``perfeds2[flower]``. Flower's strategies are synchronous, hence the loop here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .clock import Round
from .config import NO_BOUND, ExperimentConfig
from .engine import Simulation
from .errors import InfeasibleError, InputError, require
from .files import write_text
from .result import RunResult

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp

TASK = "train"


@lru_cache(maxsize=4)
def _experiment(text: str) -> Simulation:
    """Build the simulation of an experiment, kept between messages of one process."""
    import json

    return Simulation(ExperimentConfig.from_dict(json.loads(text)))


def answer(content: RecordDict) -> RecordDict:
    """Compute one UE's update from a message; a pure function of the message."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    task = content["task"]
    arrays = content["arrays"]
    torch.set_num_threads(1)
    sim = _experiment(str(task["experiment"]))
    ue, job = np.array([int(task["ue"])]), np.array([int(task["job"])])
    weights = torch.from_numpy(arrays["weights"].numpy().copy())[None]
    state = torch.from_numpy(arrays["state"].numpy().copy())[None]
    update, new_state = sim.client_updates(ue, job, weights, state)
    reply = ArrayRecord({"update": Array(update[0].numpy()), "state": Array(new_state[0].numpy())})
    same = {name: task[name] for name in ("ue", "job", "version")}
    return RecordDict({"arrays": reply, "task": ConfigRecord(same)})


def client_app() -> ClientApp:
    """Flower client that computes updates; knows nothing of time or staleness."""
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(answer(message.content), reply_to=message)

    return app


@dataclass
class Office:
    """Messages in flight: every id is accounted for until its reply, its error or its time-out.

    Attributes
    ----------
    grid : Grid
        Flower's grid.
    patience_s : float
        Wall-clock seconds after which a message counts as lost and is sent again.
    retries : int
        Times a message may be lost before the run stops.
    """

    grid: Grid
    patience_s: float = 120.0
    retries: int = 3
    open: dict[str, tuple[float, int, RecordDict, int]] = field(default_factory=dict)

    def send(self, node: int, content: RecordDict, lost: int = 0) -> None:
        """Push one message."""
        from flwr.app import Message

        message = Message(content, dst_node_id=node, message_type=TASK, ttl=self.patience_s)
        for name in self.grid.push_messages([message]):
            self.open[name] = (time.monotonic(), node, content, lost)

    def replies(self) -> list[RecordDict]:
        """Pull what has arrived; send again what failed or timed out."""
        if not self.open:
            return []
        found = []
        for reply in self.grid.pull_messages(list(self.open)):
            _, node, content, lost = self.open.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                self._again(node, content, lost, str(reply.error.reason))
            else:
                found.append(reply.content)
        now = time.monotonic()
        for name, (sent, node, content, lost) in list(self.open.items()):
            if now - sent > self.patience_s:
                del self.open[name]
                self._again(node, content, lost, "no reply")
        return found

    def _again(self, node: int, content: RecordDict, lost: int, why: str) -> None:
        ue = content["task"]["ue"]
        if lost >= self.retries:
            raise InfeasibleError(
                f"UE {ue}: {self.retries + 1} messages to node {node} were lost; last: "
                f"{' '.join(why.split())[:200]}"
            )
        nodes = sorted(self.grid.get_node_ids())
        other = nodes[(nodes.index(node) + 1) % len(nodes)] if node in nodes else nodes[0]
        self.send(other, content, lost + 1)


def task(sim: Simulation, text: str, ue: int, job: int, version: int, w: Tensor) -> RecordDict:
    """Build the message that asks for one update."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    arrays = ArrayRecord({"weights": Array(w.numpy()), "state": Array(sim.state[ue].numpy())})
    order = ConfigRecord({"ue": ue, "job": job, "version": version, "experiment": text})
    return RecordDict({"arrays": arrays, "task": order})


def _wait_for_nodes(grid: Grid, count: int, patience_s: float) -> list[int]:
    limit = time.monotonic() + patience_s
    while len(nodes := sorted(grid.get_node_ids())) < count:
        if time.monotonic() > limit:
            raise InfeasibleError(f"flower: {len(nodes)} of {count} nodes after {patience_s:.0f} s")
        time.sleep(0.2)
    return nodes


def _finish(sim: Simulation, closed: Round, replies: Iterable[RecordDict]) -> None:
    """Server step from the replies of a round."""
    by_ue = {int(r["task"]["ue"]): r["arrays"] for r in replies}
    order = np.argsort(closed.ues, kind="stable")
    ues = closed.ues[order]
    rows = [by_ue[int(ue)] for ue in ues]
    updates = torch.stack([torch.from_numpy(r["update"].numpy().copy()) for r in rows])
    if sim.method.personal:
        sim.state = sim.state.clone()
        for ue, r in zip(ues, rows):
            sim.state[int(ue)] = torch.from_numpy(r["state"].numpy().copy())
    sim.apply(closed, updates, sim.store.stack(closed.versions[order]))


def replay(
    grid: Grid, config: ExperimentConfig, nodes: int = 1, patience_s: float = 120.0
) -> RunResult:
    """Run an experiment whose rounds the virtual clock decides and whose gradients Flower computes.

    Parameters
    ----------
    grid : Grid
        Flower's grid.
    config : ExperimentConfig
        The experiment; the number of rounds is ``train.rounds``.
    nodes : int
        Nodes to wait for; UEs are dealt to them in turn.
    patience_s : float
        Seconds until a message counts as lost.
    """
    sim = Simulation(config)
    text = config.to_json()
    ids = _wait_for_nodes(grid, nodes, patience_s)
    office = Office(grid, patience_s)
    sim.record()
    while sim.clock.round_index < config.train.rounds:
        closed = sim.clock.next_round()
        assert closed is not None
        for ue, version, job in zip(closed.ues, closed.versions, closed.jobs):
            w = sim.store.stack(np.array([version]))[0]
            office.send(
                ids[int(ue) % len(ids)], task(sim, text, int(ue), int(job), int(version), w)
            )
        got: list[RecordDict] = []
        while len(got) < len(closed.ues):
            got += office.replies()
            if len(got) < len(closed.ues):
                time.sleep(0.01)
        _finish(sim, closed, got)
        k = closed.index + 1
        if k % config.train.eval_every == 0 or k == config.train.rounds:
            sim.record()
    return sim.result()


def live(grid: Grid, config: ExperimentConfig, patience_s: float = 120.0) -> RunResult:
    """Run an experiment in wall-clock time: a round closes with the first A replies that arrive.

    One node per UE. The staleness bound of ``schedule.staleness`` is kept.
    """
    sim = Simulation(config)
    text = config.to_json()
    ids = _wait_for_nodes(grid, config.ues, patience_s)
    office = Office(grid, patience_s)
    version = np.zeros(config.ues, dtype=np.int64)
    job = np.zeros(config.ues, dtype=np.int64)
    begin = time.monotonic()

    def start(ue: int) -> None:
        content = task(sim, text, ue, int(job[ue]), int(version[ue]), sim.weights)
        office.send(ids[ue], content)

    for ue in range(config.ues):
        start(ue)
    bound, count = config.schedule.staleness, config.schedule.participants
    sim.record()
    held: list[tuple[float, RecordDict]] = []
    for k in range(config.train.rounds):
        while True:
            here = {int(r["task"]["ue"]) for _, r in held}
            due = set() if bound == NO_BOUND else set(np.flatnonzero(k - version >= bound).tolist())
            if len(held) >= count and due <= here:
                break
            now = [(time.monotonic() - begin, r) for r in office.replies()]
            held += now
            if not now:
                time.sleep(0.01)
        used = held if due else held[:count]
        held = [] if due else held[count:]
        ues = np.array([int(r["task"]["ue"]) for _, r in used])
        times = np.array([t for t, _ in used])
        closed = Round(k, float(times[-1]), ues, version[ues].copy(), job[ues].copy(), times,
                       np.full(len(ues), np.nan))  # fmt: skip
        version[ues] = k + 1
        job[ues] += 1
        keep: Callable[[int], bool] = set(version.tolist()).__contains__
        rows = {int(r["task"]["ue"]): r for _, r in used}
        order = np.argsort(ues, kind="stable")
        updates = torch.stack(
            [torch.from_numpy(rows[int(u)]["arrays"]["update"].numpy().copy()) for u in ues[order]]
        )
        sent = sim.store.stack(closed.versions[order])
        sim.apply(closed, updates, sent, keep)
        if (k + 1) % config.train.eval_every == 0 or k + 1 == config.train.rounds:
            sim.record()
        if k + 1 < config.train.rounds:
            for ue in ues.tolist():
                start(ue)
    return sim.result()


def server_app(experiment: str | Path, out: str | Path, mode: str = "replay") -> ServerApp:
    """Flower server of an experiment file; writes the result to `out`.

    Parameters
    ----------
    experiment : path
        TOML file.
    out : path
        File for the result (npz).
    mode : {"replay", "live"}
        Who decides which updates make up a round: the virtual clock, or true arrivals.
    """
    from flwr.app import Context
    from flwr.serverapp import ServerApp

    require(mode in ("replay", "live"), "mode", mode, "replay | live")
    config = ExperimentConfig.from_toml(experiment)
    if mode == "live" and (
        config.method.name in ("ditto", "apfl", "fedrep") or config.schedule.restart == "arrival"
    ):
        raise InputError(
            "mode = 'live': allowed are methods without personal state and restart = 'close'; "
            "use mode = 'replay'"
        )
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        nodes = int(context.run_config.get("nodes", 1)) if context.run_config else 1
        found = replay(grid, config, nodes) if mode == "replay" else live(grid, config)
        found.save(out)

    return app


PYPROJECT = """[project]
name = "perfeds2-experiment"
version = "1.0.0"
description = "A perfeds2 experiment as a Flower app"
license = "Apache-2.0"
dependencies = []  # perfeds2[flower] is installed where SuperLink and SuperNodes run

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "perfeds2"

[tool.flwr.app.components]
serverapp = "apps:server"
clientapp = "apps:client"

[tool.flwr.app.config]
nodes = {nodes}
"""

APPS = '''"""Flower components of a perfeds2 experiment."""

from perfeds2.flower import client_app, server_app

server = server_app({experiment!r}, {out!r}, {mode!r})
client = client_app()
'''


def export(experiment: Path, folder: Path, mode: str = "replay", nodes: int = 1) -> Path:
    """Write a folder that ``flwr run`` accepts; the result goes to ``run.npz`` inside it.

    Parameters
    ----------
    experiment : path
        TOML file; its absolute path is written into the app.
    folder : path
        Folder for ``pyproject.toml`` and ``apps.py``.
    mode : {"replay", "live"}
        See `server_app`.
    nodes : int
        Nodes to wait for.
    """
    require(mode in ("replay", "live"), "mode", mode, "replay | live")
    require(nodes >= 1, "nodes", nodes, "at least 1")
    ExperimentConfig.from_toml(experiment)
    folder = folder.resolve()
    write_text(folder / "pyproject.toml", PYPROJECT.format(nodes=nodes))
    text = APPS.format(experiment=str(experiment.resolve()), out=str(folder / "run.npz"), mode=mode)
    return write_text(folder / "apps.py", text).parent


def missing() -> str:
    """One line that says what is missing; empty when Flower can be imported."""
    try:
        import flwr  # noqa: F401
    except ImportError as error:
        return f"flower: {error}; pip install 'perfeds2[flower]'"
    return ""


def simulate_here(config: ExperimentConfig, nodes: int = 2, workers: int = 1) -> RunResult:
    """Run `replay` on Flower's simulation engine inside this process (needs ray)."""
    text = missing()
    if text:
        raise InputError(text)
    from flwr.app import Context
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    found: list[RunResult] = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        found.append(replay(grid, config, nodes))

    resources: dict[str, Any] = {
        "init_args": {"num_cpus": workers, "include_dashboard": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    run_simulation(app, client_app(), nodes, backend_config=resources)
    if not found:
        raise InfeasibleError("flower: the simulation ended without a result; see its log")
    return found[0]

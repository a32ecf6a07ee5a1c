"""Reconfigure a GPU: plan, journal, call, verify, and put everything back where a step fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import InstanceInUse, MigperfError
from .journal import Journal
from .layout import Layout, PlacedLayout
from .nvml import abi
from .restore import Hold, layout_record, put_layout_back
from .transition import Action, GpuInstance, Transition, plan_exact, plan_transition

if TYPE_CHECKING:
    from .node import Gpu, MigDevice

__all__ = ["Applied", "Controller"]

# DCGM and other clients hold handles for a moment after a job ends: wait and try again.
_DESTROY_WAITS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)


class Applied:
    """A layout that stands. As a context manager, it puts the former layout back on exit.

    Inside the block a guardian process does so if this one is killed (see `migperf.restore`).

    Attributes
    ----------
    transition : Transition
        What was done.
    """

    def __init__(
        self, controller: Controller, transition: Transition, former: Mapping[str, Any]
    ) -> None:
        self._controller = controller
        self._former = former
        self._hold: Hold | None = None
        self.transition = transition

    def __repr__(self) -> str:
        return f"Applied({', '.join(map(str, self.transition.after)) or 'empty'})"

    @property
    def devices(self) -> tuple[MigDevice, ...]:
        """MIG devices of the GPU, by index."""
        return self._controller.gpu.devices()

    def restore(self) -> None:
        """Put back the layout, and the MIG mode, that stood before."""
        put_layout_back(self._controller.gpu, self._former)

    def __enter__(self) -> Applied:
        folder = self._controller.gpu.node.state_dir
        self._hold = Hold.take("layout", self._former, folder)
        return self

    def __exit__(self, *exc: object) -> None:
        self.restore()
        if self._hold is not None:
            self._hold.release()
            self._hold = None


class Controller:
    """Changes the layout of one GPU.

    Parameters
    ----------
    gpu : Gpu
        The GPU.
    sleep : callable
        How to wait between attempts to destroy a held instance.
    """

    def __init__(self, gpu: Gpu, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.gpu = gpu
        self._sleep = sleep

    def _journal(self) -> Journal:
        return Journal(self.gpu.node.state_dir / f"{self.gpu.uuid}.journal")

    def apply(
        self,
        layout: Layout | PlacedLayout,
        *,
        keep_running: bool = True,
        on_step: Callable[[str], None] | None = None,
        former: Mapping[str, Any] | None = None,
    ) -> Applied:
        """See `Gpu.apply`; an interrupted transaction is finished or undone first.

        `former` is the record that `Applied.restore` goes back to; default the present state.
        """
        with self._journal() as journal:
            self._recover(journal)
            before = self.gpu.instances()
            record = layout_record(self.gpu) if former is None else former
            transition = plan_transition(self.gpu.board, before, layout, keep_running=keep_running)
            self._transact(journal, transition, on_step)
        return Applied(self, transition, record)

    def restore(self, instances: Sequence[GpuInstance]) -> None:
        """Go to a state with all places given."""
        with self._journal() as journal:
            self._recover(journal)
            transition = plan_exact(self.gpu.board, self.gpu.instances(), instances)
            self._transact(journal, transition, None)

    def recover(self) -> str:
        """Finish or undo a transaction that a crash interrupted.

        Returns
        -------
        str
            ``nothing to do``, ``finished`` or ``undone``.
        """
        with self._journal() as journal:
            return self._recover(journal)

    def _recover(self, journal: Journal) -> str:
        unfinished = journal.unfinished()
        if unfinished is None:
            return "nothing to do"
        board = self.gpu.board
        try:
            self._run(journal, plan_exact(board, self.gpu.instances(), unfinished.after), None)
        except MigperfError:
            self._run(journal, plan_exact(board, self.gpu.instances(), unfinished.before), None)
            journal.rolled_back()
            return "undone"
        journal.commit()
        return "finished"

    def _transact(
        self, journal: Journal, transition: Transition, on_step: Callable[[str], None] | None
    ) -> None:
        if not transition.actions:
            return
        journal.begin(transition.before, transition.after)
        try:
            self._run(journal, transition, on_step)
        except (MigperfError, KeyboardInterrupt) as error:
            self._roll_back(journal, transition, error)
            raise
        journal.commit()

    def _roll_back(self, journal: Journal, transition: Transition, cause: BaseException) -> None:
        try:
            back = plan_exact(self.gpu.board, self.gpu.instances(), transition.before)
            self._run(journal, back, None)
        except MigperfError as error:
            raise MigperfError(
                f"gpu {self.gpu.index}: {cause}; putting the former layout back failed as well "
                f"({error}); `migperf recover` tries again from the journal {journal.path}"
            ) from cause
        journal.rolled_back()

    def _run(
        self, journal: Journal, transition: Transition, on_step: Callable[[str], None] | None
    ) -> None:
        state = transition.before
        for action in transition.actions:
            if on_step is not None:
                on_step(str(action))
            journal.intent(action)
            self._perform(action)
            state = action.applied_to(state)
            found = self.gpu.instances()
            if _places(found) != _places(state):
                raise InstanceInUse(
                    f"gpu {self.gpu.index}: after '{action}' the GPU holds "
                    f"{_text(found)} instead of {_text(state)}: something else changes it"
                )
            journal.done()

    def _perform(self, action: Action) -> None:
        board, handle = self.gpu.board, self.gpu.handle
        profile = board.profile(action.profile)
        what = f"gpu {self.gpu.index}: {action}"
        if action.kind == "create_gpu":
            abi.create_gpu_instance(handle, profile.id, action.start, action.size, what)
            return
        row = self._find(action)
        if action.kind == "destroy_gpu":
            self._destroy("nvmlGpuInstanceDestroy", row.handle, what)
            return
        cut = profile.compute_profile(action.compute_slices)
        if action.kind == "create_compute":
            abi.create_compute_instance(
                row.handle, cut.id, action.compute_start, action.compute_slices, what
            )
            return
        for ci in abi.compute_instances(row.handle, cut.id, cut.count):
            if ci.start == action.compute_start:
                self._destroy("nvmlComputeInstanceDestroy", ci.handle, what)
                return
        raise InstanceInUse(f"{what}: the compute instance has vanished, something else changes it")

    def _find(self, action: Action) -> abi.GpuInstanceRow:
        profile = self.gpu.board.profile(action.profile)
        for row in abi.gpu_instances(self.gpu.handle, profile.id, profile.count):
            if row.start == action.start:
                return row
        raise InstanceInUse(
            f"gpu {self.gpu.index}: {action}: the instance has vanished, something else changes it"
        )

    def _destroy(self, function: str, handle: Any, what: str) -> None:
        for attempt, wait in enumerate(_DESTROY_WAITS):
            if wait:
                self._sleep(wait)
            try:
                abi.call(function, handle, what=what)
            except InstanceInUse:
                if attempt + 1 == len(_DESTROY_WAITS):
                    pids = sorted({row[0] for row in abi.running_processes(self.gpu.handle)})
                    raise InstanceInUse(
                        f"{what}: still in use after {len(_DESTROY_WAITS)} attempts; processes on "
                        f"this GPU: {pids or 'none named, a monitor may hold it'}",
                        pids,
                    ) from None
            else:
                return


def _places(instances: Sequence[GpuInstance]) -> list[tuple[Any, ...]]:
    return [
        (g.start, g.size, g.profile, tuple((c.start, c.slices) for c in g.compute))
        for g in sorted(instances)
    ]


def _text(instances: Sequence[GpuInstance]) -> str:
    return ", ".join(map(str, instances)) or "nothing"

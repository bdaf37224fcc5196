"""An Executor that runs nothing: results come from a function, time from a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from automonai.domain.request import EnsembleRequest, EnsembleResult, TrainRequest
from automonai.domain.run import LossCause, Result
from automonai.execution.executor import Notice, Report
from automonai.storage import keys
from automonai.storage.store import Store


@dataclass
class VirtualClock:
    """A clock that moves only when it is told to; call it for the time."""

    now: float = 0.0

    def __call__(self) -> float:
        """Return the current time in seconds."""
        return self.now


@dataclass
class FakeExecutor:
    """Answers each request by `train` or `choose` after `seconds` of virtual time, unless `lose` says it is lost.

    Results are written to the store as a worker would, so a second executor over the same store adopts finished runs.
    """

    store: Store
    clock: VirtualClock
    train: Callable[[TrainRequest], Result]
    choose: Callable[[EnsembleRequest], EnsembleResult]
    seconds: Callable[[TrainRequest | EnsembleRequest], float] = lambda request: 1.0
    lose: Callable[[TrainRequest | EnsembleRequest], str | None] = lambda request: None
    slots: int = 1
    trained: list[str] = field(default_factory=list)
    """Run ids in the order in which they were really started."""
    _notices: list[Notice] = field(default_factory=list)
    _running: dict[str, tuple[float, TrainRequest | EnsembleRequest]] = field(default_factory=dict)

    def free_slots(self) -> int:
        return max(0, self.slots - len(self._running))

    def submit(self, request: TrainRequest | EnsembleRequest) -> None:
        if request.run_id in self._running:
            return
        self.store.put(keys.request(request.run_id), request.model_dump_json().encode())
        is_done = self.store.exists(keys.answer(request.run_id))
        wait = 0.0 if is_done else self.seconds(request)
        if not is_done:
            self.trained.append(request.run_id)
            self._notices.append(Notice(run_id=request.run_id))
        self._running[request.run_id] = (self.clock.now + wait, request)

    def poll(self, timeout_seconds: float) -> list[Report]:
        ends = sorted((end, run_id) for run_id, (end, _) in self._running.items())
        if not ends:
            self.clock.now += timeout_seconds
        if not ends or (timeout_seconds == 0.0 and ends[0][0] > self.clock.now):
            return []
        first, run_id = ends[0]
        self.clock.now = max(self.clock.now, first)
        _, request = self._running.pop(run_id)
        return [self._end(request)]

    def notices(self) -> list[Notice]:
        notices, self._notices = self._notices, []
        return notices

    def cancel(self, run_id: str) -> None:
        self._running.pop(run_id, None)

    def close(self) -> None:
        self._running.clear()

    def _end(self, request: TrainRequest | EnsembleRequest) -> Report:
        lost = self.lose(request)
        if lost is not None:
            return Report(run_id=request.run_id, lost=lost, cause=LossCause.CRASH)
        key = keys.answer(request.run_id)
        if not self.store.exists(key):
            answer = self.train(request) if isinstance(request, TrainRequest) else self.choose(request)
            self.store.put(key, answer.model_dump_json().encode())
        return Report(run_id=request.run_id)

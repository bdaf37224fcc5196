import sys
from pathlib import Path

import pytest

from automonai.domain.configuration import Configuration
from automonai.domain.request import TrainRequest
from automonai.domain.run import LossCause, Run
from automonai.execution import local
from automonai.execution.executor import Notice
from automonai.execution.local import LocalExecutor
from automonai.host import THREADS_ALONE

ECHO = Path(__file__).parents[2] / "contract" / "echo_worker.py"


def test_a_worker_is_kept_warm_between_runs(tmp_path: Path) -> None:
    executor = LocalExecutor(tmp_path, slots=1, threads=1, cache_folder=tmp_path, command=(sys.executable, str(ECHO)))
    processes = set()
    for trial in range(3):
        request = TrainRequest(run=Run(trial=trial, budget_epochs=1), configuration=Configuration(), seed=0)
        executor.submit(request)
        assert executor.poll(10.0)
        processes.add(executor._slots[0].process.pid)
    executor.close()
    assert len(processes) == 1


def test_a_run_that_is_handed_to_a_worker_that_leaves_for_its_leaked_memory_is_not_lost(tmp_path: Path) -> None:
    executor = LocalExecutor(tmp_path, slots=1, threads=1, cache_folder=tmp_path, command=(sys.executable, str(ECHO)))
    lost = {}
    for trial in (66, 1):
        run = Run(trial=trial, budget_epochs=1)
        executor.submit(TrainRequest(run=run, configuration=Configuration(), seed=0))
        lost |= {report.run_id: report.lost for report in executor.poll(10.0)}
    executor.close()
    assert set(lost.values()) == {None}
    assert len(lost) == 2


@pytest.mark.parametrize(("attempt", "waits"), [(0, False), (1, False), (2, True)])
def test_a_run_that_was_lost_twice_waits_in_its_slot(
    attempt: int, waits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "pause_before", lambda strikes: 60.0)
    executor = LocalExecutor(tmp_path, slots=1, threads=1, cache_folder=tmp_path, command=(sys.executable, str(ECHO)))
    run = Run(trial=1, budget_epochs=1)
    executor.submit(TrainRequest(run=run, configuration=Configuration(), seed=0, attempt=attempt, strikes=attempt))
    assert executor.free_slots() == 0
    executor.poll(0.3)
    assert (executor.notices() == []) is waits
    if waits:
        executor._slots[0].begins_at = 0.0
        assert [report.run_id for report in executor.poll(10.0)] == [run.id]
        assert executor.notices() == [Notice(run_id=run.id)]
    executor.close()


@pytest.mark.parametrize(("kills", "cause"), [((3, 3), LossCause.CRASH), ((3, 4), LossCause.OUT_OF_MEMORY)])
def test_a_worker_that_the_kernel_ended_for_lack_of_memory_is_told_from_one_that_somebody_killed(
    kills: tuple[int, int], cause: LossCause, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter(kills)
    monkeypatch.setattr(local, "memory_kills", lambda: next(counts))
    executor = LocalExecutor(tmp_path, slots=1, threads=1, cache_folder=tmp_path, command=(sys.executable, str(ECHO)))
    run = Run(trial=13, budget_epochs=1)
    executor.submit(TrainRequest(run=run, configuration=Configuration(), seed=0))
    (report,) = executor.poll(10.0)
    executor.close()
    assert report.cause is cause
    assert "SIGKILL" in (report.lost or "")


def test_each_slot_gets_its_gpu_and_its_threads(tmp_path: Path) -> None:
    executor = LocalExecutor(tmp_path, slots=3, threads=4, cache_folder=tmp_path, gpus=("0", "1"))
    environments = [executor._environment(slot) for slot in executor._slots]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in environments] == ["0", "1", "0"]
    assert {env["OMP_NUM_THREADS"] for env in environments} == {"4"}
    assert {env[THREADS_ALONE] for env in environments} == {"12"}

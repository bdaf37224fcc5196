import sys
from pathlib import Path

from automonai.domain.configuration import Configuration
from automonai.domain.request import TrainRequest
from automonai.domain.run import Run
from automonai.execution.local import LocalExecutor

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


def test_each_slot_gets_its_gpu_and_its_threads(tmp_path: Path) -> None:
    executor = LocalExecutor(tmp_path, slots=3, threads=4, cache_folder=tmp_path, gpus=("0", "1"))
    environments = [executor._environment(slot) for slot in executor._slots]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in environments] == ["0", "1", "0"]
    assert {env["OMP_NUM_THREADS"] for env in environments} == {"4"}

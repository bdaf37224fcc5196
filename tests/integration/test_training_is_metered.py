"""What Prometheus last sees of a trial is what its result says."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.registry import Collector

from automonai.domain.configuration import Configuration
from automonai.domain.request import EnsembleRequest, StudyData, TrainRequest
from automonai.domain.run import Result, Run, RunState
from automonai.domain.splitting import make_split
from automonai.imaging.checking import check_dataset
from automonai.imaging.fingerprinting import fingerprint
from automonai.imaging.phantom import write_phantom
from automonai.observability.gpu import Allocator
from automonai.observability.worker_metrics import WorkerMetrics
from automonai.spec import ExecutionSpec, TrainingSpec
from automonai.storage import keys
from automonai.storage.memory import MemoryStore
from automonai.worker import serve

REQUEST = TrainRequest(run=Run(trial=3, budget_epochs=2), configuration=Configuration(depth=2, channels=4), seed=7)
LABELS = {"study": "brain", "trial": "3", "rung": "2"}


class LastLook(WorkerMetrics):
    """Remembers what was shown when the run had just ended: by name and by labels of its own, and all other labels."""

    def __init__(self) -> None:
        super().__init__(study="brain")
        self.end: dict[tuple[str, ...], float] = {}
        self.labels: list[dict[str, str]] = []

    @contextmanager
    def during(
        self, request: TrainRequest | EnsembleRequest, *collectors: Collector, allocators: Sequence[Allocator]
    ) -> Iterator[None]:
        with super().during(request, *collectors, allocators=allocators):
            yield
            for sample in (sample for family in self.collect() for sample in family.samples):
                own = [value for name, value in sample.labels.items() if name not in LABELS]
                self.end[(sample.name.removeprefix("automonai_"), *own)] = sample.value
                self.labels.append({name: value for name, value in sample.labels.items() if name in LABELS})


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    write_phantom(tmp_path / "phantom", cases=4, shape=(16, 16, 16), seed=0)
    checked = check_dataset(tmp_path / "phantom")
    split = make_split([case.id for case in checked.dataset.cases], test=0, folds=2, seed=0)
    data = StudyData(
        dataset=checked.dataset,
        split=split,
        fingerprint=fingerprint(checked, split.development),
        training=TrainingSpec(validation_every_epochs=1, patch_voxels=(16, 16, 16)),
        execution=ExecutionSpec(device="cpu"),
    )
    store = MemoryStore()
    store.put(keys.DATA, data.model_dump_json().encode())
    store.put(keys.request(REQUEST.run_id), REQUEST.model_dump_json().encode())
    return store


def test_a_runs_last_metrics_and_its_result_say_the_same(store: MemoryStore, tmp_path: Path) -> None:
    metrics = LastLook()
    assert serve(REQUEST.run_id, store=store, cache_folder=tmp_path, stop=threading.Event(), metrics=metrics) == 0
    result = Result.model_validate_json(store.get(keys.result(REQUEST.run_id)))
    assert result.state is RunState.COMPLETE
    end = metrics.end
    assert end["train_throughput_patches_per_second",] == result.patches_per_second
    assert end["peak_memory_bytes",] == result.peak_memory_bytes
    assert end["train_steps_total",] == result.steps > 0
    assert end["train_data_wait_seconds_total",] == result.data_wait_seconds
    assert result.training_seconds_per_epoch is not None
    assert result.seconds_per_epoch is not None
    assert 0 < result.training_seconds_per_epoch < result.seconds_per_epoch
    assert end["train_epoch",] == 2
    assert end["checkpoint_write_duration_seconds_count",] == 2
    assert end["checkpoint_size_bytes",] == len(store.get(_checkpoint_file(store)))
    assert {value for name, value in end.items() if name[0] == "validation_dice"} == set(result.curve[-1].dice.values())
    assert end["process_resident_memory_bytes",] > 2**20
    assert all(labels == LABELS for labels in metrics.labels)


def _checkpoint_file(store: MemoryStore) -> str:
    folder = keys.checkpoint_manifest(REQUEST.run_id).rpartition("/")[0]
    return next(key for key in store.list(folder) if key.endswith(".pt"))

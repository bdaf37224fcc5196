"""What a run costs beside its training: where its start's time goes, and that a node downloads a dataset once."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from real_cluster import SPEC, store_on_this_machine, submit, wait_for_end

from automonai import api
from automonai.storage.datasets import MANIFEST
from automonai.storage.opening import open_store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "cluster_overhead.py"
DATASET = "s3://automonai/datasets/downloaded-once"
STUDY = "downloads-nothing"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    specification = importlib.util.spec_from_file_location(BENCHMARK.stem, BENCHMARK)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[BENCHMARK.stem] = module  # a frozen record looks its module up
    specification.loader.exec_module(module)
    return module


def test_runs_need_nothing_of_a_dataset_that_their_node_has_and_tell_where_their_time_goes(
    release: str, benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = api.phantom(tmp_path / "phantom", cases=8, seed=1, shape=(24, 24, 20))  # no other test's
    with store_on_this_machine(release, monkeypatch):
        api.push_data(dataset, DATASET)
    training = {"dataset": DATASET, "output": f"s3://automonai/trainings/{STUDY}", "epochs": "1", "gpus": "1"}
    first = submit(release, training | {"configuration": "{depth: 2, channels: 4}"}, template="automonai-train")
    assert wait_for_end(release, first, seconds=300) == "Succeeded"

    with store_on_this_machine(release, monkeypatch):
        store = open_store(DATASET)
        for key in [key for key in store.list() if key != MANIFEST]:
            store.delete(key)
    spec = SPEC.replace("iterations: 2", "iterations: 1").replace("max_epochs: 3", "max_epochs: 1")
    spec = spec.replace("folds: 2", "folds: 3")
    workflow = submit(release, {"dataset": DATASET, "name": STUDY, "parallel-runs": "1", "spec": spec})
    assert wait_for_end(release, workflow, seconds=600) == "Succeeded"
    assert not [line for pod, line in benchmark.downloads(release) if pod.startswith(STUDY)]

    with store_on_this_machine(release, monkeypatch):
        starts = benchmark.starts(f"s3://automonai/studies/{STUDY}", release)
    assert len(starts) == 2  # of one training and three refits, without each controller's first
    parts = benchmark.table(starts)
    for start in starts:
        assert all(seconds > -2 for seconds in start.seconds.values()), parts
        assert 0 < start.beyond_imports < start.total, parts

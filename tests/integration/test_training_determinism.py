"""A training that was cut into pieces ends with the same bits as one that was not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from automonai.domain.configuration import Configuration
from automonai.domain.request import StudyData, TrainRequest
from automonai.domain.run import Result, Run
from automonai.domain.splitting import make_split
from automonai.errors import StopRequestedError
from automonai.imaging.checking import check_dataset
from automonai.imaging.fingerprinting import fingerprint
from automonai.imaging.phantom import write_phantom
from automonai.learning import validation
from automonai.learning.checkpoint import Checkpoint, read_checkpoint
from automonai.learning.inference import LogitSlab
from automonai.learning.metering import UNMETERED, Meter, Unmetered
from automonai.learning.training import train_run
from automonai.spec import ExecutionSpec, TrainingSpec
from automonai.storage import keys
from automonai.storage.memory import MemoryStore

CONFIGURATION = Configuration(depth=2, channels=4, augmentation=1.0, foreground_oversampling=0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, cases=8, shape=(24, 24, 16), seed=0)
    checked = check_dataset(folder)
    split = make_split([case.id for case in checked.dataset.cases], test=0, folds=2, seed=0)
    return StudyData(
        dataset=checked.dataset,
        split=split,
        fingerprint=fingerprint(checked, split.development),
        training=TrainingSpec(validation_every_epochs=2, patch_voxels=(16, 16, 16)),
        execution=ExecutionSpec(device="cpu"),
    )


class Trial:
    """One trial's runs in a store of its own."""

    def __init__(self, data: StudyData, folder: Path) -> None:
        self.data = data
        self.folder = folder
        self.store = MemoryStore()

    def run(
        self,
        epochs: int,
        *,
        resume_from: str | None = None,
        stop: threading.Event | None = None,
        meter: Meter = UNMETERED,
    ) -> Result:
        request = TrainRequest(
            run=Run(trial=0, budget_epochs=epochs), configuration=CONFIGURATION, seed=7, resume_from=resume_from
        )
        return train_run(
            request,
            self.data,
            store=self.store,
            cache_folder=self.folder,
            stop=stop or threading.Event(),
            meter=meter,
        )

    def end(self, epochs: int) -> Checkpoint:
        run_id = Run(trial=0, budget_epochs=epochs).id
        return read_checkpoint(self.store, keys.checkpoint_manifest(run_id), self.folder)


class StopsAfterCommit(Unmetered):
    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def committed(self, *, seconds: float, size_bytes: int) -> None:
        self.stop.set()


def assert_same(one: Checkpoint, two: Checkpoint) -> None:
    for ours, theirs in ((one.network, two.network), (one.average, two.average)):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ignored = {"seconds", "validation_seconds", "curve", "origin_step"}
    assert one.progress.model_dump(exclude=ignored) == two.progress.model_dump(exclude=ignored)
    scores = [
        [point.model_dump(exclude={"seconds"}) for point in checkpoint.progress.curve] for checkpoint in (one, two)
    ]
    assert scores[0] == scores[1]


def test_a_promoted_trial_equals_one_that_was_trained_at_once(data: StudyData, tmp_path: Path) -> None:
    pieces, whole = Trial(data, tmp_path), Trial(data, tmp_path)
    lower = pieces.run(2)
    upper = pieces.run(4, resume_from=lower.checkpoint)
    at_once = whole.run(4)
    assert_same(pieces.end(4), whole.end(4))
    assert (lower.epochs, upper.epochs, at_once.epochs) == (2, 2, 4)
    assert upper.loss == at_once.loss
    assert [point.epoch for point in upper.curve] == [2, 4]


def test_a_run_that_was_stopped_goes_on_from_its_own_checkpoint(data: StudyData, tmp_path: Path) -> None:
    stopped, whole = Trial(data, tmp_path), Trial(data, tmp_path)
    stop = threading.Event()
    with pytest.raises(StopRequestedError):
        stopped.run(4, stop=stop, meter=StopsAfterCommit(stop))
    result = stopped.run(4)
    whole.run(4)
    assert_same(stopped.end(4), whole.end(4))
    assert result.epochs == 4
    assert [point.epoch for point in result.curve] == [2, 4]


def test_a_run_that_was_stopped_within_a_validation_goes_on_with_it(
    data: StudyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, whole = Trial(data, tmp_path), Trial(data, tmp_path)
    stop = threading.Event()
    predict = validation.logit_slabs

    def predict_and_stop(*arguments: Any, **options: Any) -> Iterator[LogitSlab]:
        stop.set()
        return predict(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(validation, "logit_slabs", predict_and_stop)
        with pytest.raises(StopRequestedError, match="within a validation"):
            stopped.run(4, stop=stop)
    assert stopped.end(4).progress.curve == ()
    result = stopped.run(4)
    whole.run(4)
    assert_same(stopped.end(4), whole.end(4))
    assert [point.epoch for point in result.curve] == [2, 4]


def test_a_finished_run_that_is_asked_again_answers_without_training(data: StudyData, tmp_path: Path) -> None:
    trial = Trial(data, tmp_path)
    first = trial.run(2)
    again = trial.run(2)
    assert (again.loss, again.epochs) == (first.loss, first.epochs)
    assert again.patches_per_second is None

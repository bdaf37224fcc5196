"""One run: from a request to a trained, scored and committed network."""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from torch import nn

from automonai.domain.dataset import select
from automonai.domain.plan import Plan, make_plan
from automonai.domain.request import StudyData, TrainRequest
from automonai.domain.run import CurvePoint, FailureReason, Result, RunState
from automonai.domain.seeds import derive_seed
from automonai.domain.tally import Tally
from automonai.errors import (
    BadRequestError,
    DoesNotFitError,
    NonFiniteLossError,
    RunError,
    StopRequestedError,
    described,
)
from automonai.imaging.augmentation import Augmentation
from automonai.imaging.content import refuse_changed_case
from automonai.imaging.patches import PatchReader, batch_sizes
from automonai.imaging.prepared_room import forget_uses
from automonai.imaging.preprocessing import PreparedCase, prepare_case
from automonai.learning.batches import batch_source
from automonai.learning.checkpoint import Progress, read_checkpoint, write_checkpoint
from automonai.learning.faults import is_out_of_memory
from automonai.learning.forward import choose_forward
from automonai.learning.loop import LoopSettings, Trainer, train
from automonai.learning.losses import make_loss
from automonai.learning.memory import allow_many_files, peak_memory_bytes, reset_peak_memory
from automonai.learning.metering import UNMETERED, Meter
from automonai.learning.network import build_network, place
from automonai.learning.precision import Precision, choose_devices, choose_precision, keep_freed_memory, limit_threads
from automonai.learning.validation import Validation, validate, window_count
from automonai.storage import keys
from automonai.storage.store import Store

logger = logging.getLogger(__name__)

PROCESS_BYTES = 500 * 2**20
"""Resident memory of a process that has loaded torch and MONAI and trained nothing."""


@dataclass(frozen=True)
class _Cases:
    training: tuple[PreparedCase, ...]
    validation: tuple[PreparedCase, ...]


def train_run(
    request: TrainRequest,
    data: StudyData,
    *,
    store: Store,
    cache_folder: Path,
    stop: threading.Event,
    meter: Meter = UNMETERED,
    most_gpus: int = 1,
) -> Result:
    """Train one trial to one budget on one fold and return its COMPLETE result; the checkpoint is committed before.

    A run that was stopped or killed goes on from its own last checkpoint.

    Args:
        request: What to train, for how long.
        data: Of the study.
        store: The study's folder.
        cache_folder: Of prepared cases; shared by any number of processes.
        stop: Set it to make the run commit and leave.
        meter: Hears of every step, validation and commit.
        most_gpus: Of those that this process sees; several share every batch and the validations.

    Raises:
        BadRequestError: If the fold does not exist, has no cases, or the device cannot do what the spec demands.
        DoesNotFitError: If the plan needs more memory than the request allows.
        NonFiniteLossError: If the loss or the gradient became NaN or infinite.
        TooSlowError: If the first steps foretell more than the request's cap.
        StopRequestedError: If `stop` was set.
    """
    began = time.monotonic()
    limit_threads()
    keep_freed_memory()
    allow_many_files()
    reset_peak_memory()
    plan = make_plan(request.configuration, dataset=data.dataset, fingerprint=data.fingerprint, training=data.training)
    devices = choose_devices(data.execution, most_gpus=most_gpus)
    precision = Precision(devices[0], choose_precision(data.execution, devices[0]))
    planned_memory_bytes = planned_bytes(plan, precision, devices=len(devices))
    _refuse_what_does_not_fit(request, planned_memory_bytes)
    cases = _prepare(request, data, plan, cache_folder, stop)
    trainer = _start(request, plan, precision, len(cases.training), store=store, cache_folder=cache_folder)
    sizes = batch_sizes(len(cases.training), plan)
    trainer.forward = choose_forward(
        trainer.network, plan, precision=precision, devices=devices, compile=data.execution.compile, batch_sizes=sizes
    )
    scorer = _Scorer(cases.validation, plan, precision, devices=devices, stop=stop)
    tally = _train(request, data, trainer, cases, scorer, store=store, stop=stop, meter=meter)
    return _result(
        request,
        trainer,
        scorer,
        tally,
        patches_per_epoch=len(cases.training),
        seconds=time.monotonic() - began,
        planned_memory_bytes=planned_memory_bytes,
        device=_device_name(precision, devices),
    )


def failed_result(
    request: TrainRequest,
    error: BaseException,
    *,
    seconds: float = 0.0,
    epochs: int = 0,
    planned_memory_bytes: int | None = None,
) -> Result:
    """Return the FAILED result of an error that ended a run, with the peak of its memory until then.

    Args:
        request: Of the run.
        error: Any; what is neither a RunError nor a lack of memory counts as a bad configuration.
        seconds: Wall-clock time that was spent.
        epochs: That were trained.
        planned_memory_bytes: Of its plan, if one was made.
    """
    return Result(
        run_id=request.run_id,
        state=RunState.FAILED,
        reason=_reason(error),
        message=described(error),
        epochs=epochs,
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(),
        planned_memory_bytes=planned_memory_bytes,
    )


def _reason(error: BaseException) -> FailureReason:
    if isinstance(error, RunError):
        return FailureReason(error.reason)
    return FailureReason.OUT_OF_MEMORY if is_out_of_memory(error) else FailureReason.BAD_CONFIGURATION


def planned_bytes(plan: Plan, precision: Precision, *, devices: int = 1) -> int:
    """Return what a run of that plan needs in the chosen precision: on a CPU the process itself included.

    Several devices share its batches; the first of them needs most.
    """
    step = plan.step_bytes(bytes_per_activation=precision.bytes_per_activation, devices=devices)
    return step + (PROCESS_BYTES if precision.device.type == "cpu" else 0)


def _refuse_what_does_not_fit(request: TrainRequest, needed: int) -> None:
    allowed = request.memory_bytes
    if allowed is not None and needed > allowed:
        raise DoesNotFitError(
            f"a training step needs about {needed} bytes ({needed / 2**30:.2f} GiB), and the run may use {allowed}"
            f" ({allowed / 2**30:.2f} GiB); fewer channels, a smaller patch or batch need less"
        )


def _prepare(request: TrainRequest, data: StudyData, plan: Plan, cache_folder: Path, stop: threading.Event) -> _Cases:
    """Return the fold's cases, prepared in an order of this process's own.

    Runs that start together would wait for each other at every case if all went through them in the same order.
    """
    if request.run.fold >= len(data.split.folds):
        raise BadRequestError(f"fold {request.run.fold} does not exist: the split has {len(data.split.folds)}")
    training = data.split.training(request.run.fold)
    validation = _validation_ids(data, request.run.fold)
    if not training or not validation:
        raise BadRequestError(
            f"fold {request.run.fold} has {len(training)} training and {len(validation)} validation cases;"
            " each needs at least one"
        )
    ids = [*training, *validation]
    random.Random().shuffle(ids)
    forget_uses(cache_folder)
    prepared = {case_id: _prepared(data, plan, case_id, cache_folder, stop) for case_id in ids}
    return _Cases(
        training=tuple(prepared[case_id] for case_id in training),
        validation=tuple(prepared[case_id] for case_id in validation),
    )


def _prepared(data: StudyData, plan: Plan, case_id: str, cache_folder: Path, stop: threading.Event) -> PreparedCase:
    if stop.is_set():
        raise StopRequestedError("stopped while the cases were prepared")
    case = select(data.dataset, [case_id])[0]
    refuse_changed_case(data.dataset, case, expected=data.contents.get(case_id), cache_folder=cache_folder)
    return prepare_case(
        data.dataset,
        case,
        spacing_mm=plan.spacing_mm,
        crop=plan.configuration.crop,
        cache_folder=cache_folder,
    )


def _validation_ids(data: StudyData, fold: int) -> tuple[str, ...]:
    """Return the cases that every validation of the fold scores: all, or always the same choice of them."""
    ids = data.split.validation(fold)
    limit = data.training.validation_cases
    if limit is None or limit >= len(ids):
        return ids
    seed = derive_seed(data.split.seed, "validation", fold)
    chosen = np.random.default_rng(seed).permutation(len(ids))[:limit]
    return tuple(ids[index] for index in sorted(chosen))


def _start(
    request: TrainRequest,
    plan: Plan,
    precision: Precision,
    training_cases: int,
    *,
    store: Store,
    cache_folder: Path,
) -> Trainer:
    """Return a trainer with new weights, or at the run's own checkpoint, or at the lower rung's."""
    progress = Progress(seed=request.seed, steps_per_epoch=-(-training_cases // plan.batch_size))
    trainer = Trainer(
        plan,
        _new_network(plan, request.seed, precision.device),
        loss_of=make_loss(plan.configuration.loss),
        precision=precision,
        progress=progress,
    )
    own = keys.checkpoint_manifest(request.run_id)
    source = own if store.exists(own) else request.resume_from
    if source is None:
        return trainer
    checkpoint = read_checkpoint(store, source, cache_folder)
    if checkpoint.plan != plan or checkpoint.progress.steps_per_epoch != progress.steps_per_epoch:
        raise BadRequestError(f"{source}: is of another plan or split; its training cannot be continued")
    taken_over = checkpoint.progress
    if source != own:
        taken_over = taken_over.model_copy(update={"origin_step": taken_over.step, "is_finished": False})
    trainer.restore(checkpoint, taken_over)
    return trainer


def _new_network(plan: Plan, seed: int, device: torch.device) -> nn.Module:
    """Return a network whose weights follow from the seed; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        network = build_network(plan.network, slice_axis=plan.slice_axis)
    return place(network, device)


class _Scorer:
    """Validates, and remembers how long that took."""

    def __init__(
        self,
        cases: tuple[PreparedCase, ...],
        plan: Plan,
        precision: Precision,
        *,
        devices: tuple[torch.device, ...],
        stop: threading.Event,
    ) -> None:
        self.cases = cases
        self.devices = devices
        self.seconds: float | None = None
        self._plan = plan
        self._precision = precision
        self._stop = stop
        self._loss_of = make_loss(plan.configuration.loss)

    def __call__(self, network: nn.Module) -> Validation:
        scores = validate(
            network,
            self.cases,
            plan=self._plan,
            precision=self._precision,
            loss_of=self._loss_of,
            stop=self._stop,
            devices=self.devices,
        )
        self.seconds = scores.seconds
        return scores

    @property
    def seconds_per_case(self) -> float | None:
        """Return how long a case took one device; None before the first validation."""
        sharing = min(len(self.devices), len(self.cases))
        return None if self.seconds is None else self.seconds * sharing / len(self.cases)


def _train(
    request: TrainRequest,
    data: StudyData,
    trainer: Trainer,
    cases: _Cases,
    scorer: _Scorer,
    *,
    store: Store,
    stop: threading.Event,
    meter: Meter,
) -> Tally:
    plan = trainer.plan
    augmentation = Augmentation.of(plan)
    reader = PatchReader(cases.training, plan, seed=request.seed, margin_voxels=augmentation.margin_voxels)
    windows = sum(window_count(case.image.shape[1:], plan) for case in cases.validation)
    sharing = min(len(scorer.devices), len(cases.validation))
    left = request.seconds_left(time.time(), worked_seconds=trainer.progress.seconds)
    settings = LoopSettings(
        epochs=request.run.budget_epochs,
        validation_every_epochs=data.training.validation_every_epochs,
        decay=request.decay,
        deadline=None if left is None else time.monotonic() + left,
        max_seconds_per_epoch=request.max_seconds_per_epoch,
        validation_windows=-(-windows // sharing),
    )

    def commit(state: Trainer) -> None:
        manifest_key = keys.checkpoint_manifest(request.run_id)
        commit_began = time.monotonic()
        manifest = write_checkpoint(state.checkpoint(), store=store, manifest_key=manifest_key)
        meter.committed(seconds=time.monotonic() - commit_began, size_bytes=manifest.bytes)

    make_batch = batch_source(reader, augmentation, seed=request.seed, device=trainer.precision.device)
    return train(trainer, make_batch, settings=settings, validate=scorer, commit=commit, stop=stop, meter=meter)


def _result(
    request: TrainRequest,
    trainer: Trainer,
    scorer: _Scorer,
    tally: Tally,
    *,
    patches_per_epoch: int,
    seconds: float,
    planned_memory_bytes: int,
    device: str,
) -> Result:
    progress, plan = trainer.progress, trainer.plan
    last = progress.curve[-1]
    training_seconds = tally.training_seconds * progress.steps_per_epoch / tally.steps if tally.steps else None
    loss = last.validation_loss if request.objective == "loss" else 1 - last.mean_dice
    if not isfinite(loss):
        raise NonFiniteLossError(f"the validation's loss is {loss} after epoch {last.epoch}; float32 may help")
    return Result(
        run_id=request.run_id,
        state=RunState.COMPLETE,
        loss=loss,
        curve=progress.curve,
        epochs=progress.epoch - progress.origin_step // progress.steps_per_epoch,
        seconds=seconds,
        seconds_per_epoch=_seconds_per_epoch(training_seconds, scorer.seconds, progress.curve),
        training_seconds_per_epoch=training_seconds,
        validation_seconds=scorer.seconds,
        prediction_seconds_per_case=scorer.seconds_per_case,
        steps_per_epoch=progress.steps_per_epoch,
        patches_per_epoch=patches_per_epoch,
        steps=tally.steps,
        data_wait_seconds=tally.data_wait_seconds,
        patches_per_second=tally.patches_per_second,
        peak_memory_bytes=peak_memory_bytes(),
        planned_memory_bytes=planned_memory_bytes,
        parameters=plan.parameters,
        checkpoint=keys.checkpoint_manifest(request.run_id),
        device=device,
    )


def _seconds_per_epoch(
    training_seconds: float | None, validation_seconds: float | None, curve: tuple[CurvePoint, ...]
) -> float | None:
    """Return the time of an epoch with its part of a validation; None where the last process did not train.

    One that took a run up shortly before its end trained little, and made a whole validation.
    """
    if training_seconds is None or validation_seconds is None:
        return training_seconds
    return training_seconds + validation_seconds * len(curve) / curve[-1].epoch


def _device_name(precision: Precision, devices: tuple[torch.device, ...]) -> str:
    dtype = str(precision.dtype).removeprefix("torch.")
    if precision.device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu, {threads} thread{'s' if threads > 1 else ''}, {dtype}"
    name = torch.cuda.get_device_name(precision.device)
    return f"{name}, {dtype}" if len(devices) == 1 else f"{len(devices)} x {name}, {dtype}"

"""The training loop: read ahead, step, average, validate, commit.

Axes: image_BCXYZ, label_BXYZ, logits_BKXYZ.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from math import isfinite
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn

from automonai.domain.plan import Plan
from automonai.domain.run import CurvePoint
from automonai.domain.schedule import MOST_VALIDATIONS, is_validated, refit_validations, validated_epochs
from automonai.domain.tally import Tally
from automonai.errors import NonFiniteLossError, StopRequestedError, TooSlowError
from automonai.learning.batches import MakeBatch, read_ahead, readers_beside
from automonai.learning.checkpoint import Checkpoint, PlateauState, Progress, cpu_state
from automonai.learning.forward import Forward
from automonai.learning.losses import Loss
from automonai.learning.metering import UNMETERED, Meter
from automonai.learning.precision import Precision
from automonai.learning.validation import Validation, seconds_per_validation

logger = logging.getLogger(__name__)

_GRADIENT_NORM = 12.0  # nnU-Net's
_LEAST_SCALE = 1.0  # of float16's losses: DeepSpeed's; torch starts at 65,536, and has no end of its own
_DECAY_POWER = 0.9  # nnU-Net's
_AVERAGE_STEPS = 10  # the average's window is a tenth of the steps taken
_PLATEAU_EPOCHS = 30
_PLATEAU_PROGRESS = 1e-4
_PLATEAU_DIVISOR = 5.0
_WARM_UP_STEPS = 2
_MEASURED_STEPS = 6
_RECENT_STEPS = 100
_COMMIT_SECONDS = 3.0
_LAST_VALIDATIONS = 1.25  # for the one at the end of a run with a deadline
_UNSAVED_SECONDS = 600.0  # a kill costs no more than these and an epoch, however rare validations are


@dataclass(frozen=True)
class LoopSettings:
    """What a run's loop is told beside its plan."""

    epochs: int
    """Train until the trial has had so many."""
    validation_every_epochs: int
    decay: bool = False
    """Decay the learning rate to zero over the run's length."""
    deadline: float | None = None
    """Reading of the clock at which everything must be done."""
    max_seconds_per_epoch: float | None = None
    validation_windows: int = 0
    """Windows that a validation predicts: foretells its cost before the first one."""


class Trainer:
    """A network, its average and its optimiser, moved together by `update`."""

    def __init__(
        self, plan: Plan, network: nn.Module, *, loss_of: Loss, precision: Precision, progress: Progress
    ) -> None:
        """Take the network, which is on the precision's device, and make its optimiser and average.

        Args:
            plan: Gives learning rate and weight decay.
            network: Is trained in place.
            loss_of: Of logits and labels.
            precision: Of the forward pass.
            progress: Where the training starts.
        """
        self.plan = plan
        self.network = network
        self.forward: Forward = network
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.loss_of = loss_of
        self.precision = precision
        self.progress = progress
        self._parameters: list[Tensor] = list(network.parameters())
        self._averaged: list[Tensor] = list(self.average.parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=plan.configuration.learning_rate,
            weight_decay=plan.configuration.weight_decay,
            fused=True if precision.device.type == "cuda" else None,
        )
        self._scaler = precision.scaler()

    def update(self, image_BCXYZ: Tensor, label_BXYZ: Tensor, *, learning_rate: float) -> float:
        """Make one step and return its loss.

        Raises:
            NonFiniteLossError: If the loss or the gradient is NaN or infinite, in float16 whatever its scale; the
                weights are as they were.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        with self.precision.autocast():
            logits_BKXYZ = self.forward(image_BCXYZ)
        loss = self.loss_of(logits_BKXYZ.float(), label_BXYZ)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, _GRADIENT_NORM)
        value, length = torch.stack([loss.detach(), norm]).tolist()  # one wait for the GPU, not two
        self._refuse_non_finite("loss", value)
        if not self._scaler.is_enabled():
            self._refuse_non_finite("gradient", length)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if not isfinite(length):
            self._refuse_endless_skips(length)
        self._advance(value)
        return value

    def checkpoint(self) -> Checkpoint:
        """Return a copy of all state on the CPU."""
        return Checkpoint(
            plan=self.plan,
            progress=self.progress,
            network={key: value.cpu().clone() for key, value in self.network.state_dict().items()},
            average={key: value.cpu().clone() for key, value in self.average.state_dict().items()},
            optimizer=cpu_state(self._optimizer.state_dict()),
            scaler=cpu_state(self._scaler.state_dict()),
        )

    def restore(self, checkpoint: Checkpoint, progress: Progress) -> None:
        """Go on from a checkpoint, bit for bit; `progress` says where this run stands in it."""
        self.network.load_state_dict(checkpoint.network)
        self.average.load_state_dict(checkpoint.average)
        _load(self._optimizer, checkpoint.optimizer)
        if checkpoint.scaler:
            self._scaler.load_state_dict(checkpoint.scaler)
        self.progress = progress

    def _refuse_non_finite(self, what: str, value: float) -> None:
        if not isfinite(value):
            raise NonFiniteLossError(
                f"the {what} became {value} in step {self.progress.step + 1} (epoch {self.progress.epoch}) with loss"
                f" {self.plan.configuration.loss} and learning rate {self.plan.configuration.learning_rate:g};"
                " a lower learning rate or another loss may help"
            )

    def _refuse_endless_skips(self, length: float) -> None:
        """Let a scaler skip a step and halve its scale, but not below 1: then it is not the scale that is too large.

        A run whose gradients are NaN would else skip every step to its end, and be told from none that trained.
        """
        if self._scaler.get_scale() < _LEAST_SCALE:
            self._refuse_non_finite("gradient", length)

    def _advance(self, loss: float) -> None:
        progress = self.progress
        self.progress = progress.model_copy(
            update={
                "step": progress.step + 1,
                "epoch_loss_sum": progress.epoch_loss_sum + loss,
                "validation_due": False,
            }
        )
        weight = _AVERAGE_STEPS / (self.progress.step + _AVERAGE_STEPS)
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, self._parameters, weight)


def train(
    trainer: Trainer,
    make_batch: MakeBatch,
    *,
    settings: LoopSettings,
    validate: Callable[[nn.Module], Validation],
    commit: Callable[[Trainer], None],
    stop: threading.Event,
    meter: Meter = UNMETERED,
    clock: Callable[[], float] = time.monotonic,
) -> Tally:
    """Train to the end of the run and return what was done; every validation is followed by a commit.

    Where validations are rare, as in a refit of large volumes, the state is committed every ten minutes as well.

    Args:
        trainer: Fresh, or restored from a checkpoint.
        make_batch: The batch of a step; called ahead from other threads.
        settings: Length, schedule, deadline.
        validate: Scores the averaged network; raises StopRequestedError if `stop` is set before it has all scores.
        commit: Saves the trainer's state.
        stop: Ends the run after the step, or the validation's pass through the network, at hand.
        meter: Hears of every step and validation.
        clock: In seconds.

    Raises:
        NonFiniteLossError: If the loss or the gradient became NaN or infinite.
        TooSlowError: If the first steps foretell more than `max_seconds_per_epoch`.
        StopRequestedError: If `stop` was set; the state was committed before.
    """
    logger.info("step=%d: cases and network are ready", trainer.progress.step)
    pace = _Pace(settings, trainer.progress, clock=clock)
    readers = readers_beside(trainer.precision.device)
    with closing(read_ahead(make_batch, trainer.progress.step, threads=readers)) as batches:
        if trainer.progress.validation_due and _ends_epoch(trainer.progress, pace.total_steps):
            _end_epoch(trainer, pace, validate=validate, commit=commit, meter=meter)
        while not trainer.progress.is_finished:
            if stop.is_set():
                trainer.progress = pace.stamped(trainer.progress)
                commit(trainer)
                raise StopRequestedError(f"stopped after step {trainer.progress.step}; the state is saved")
            image_BCXYZ, label_BXYZ = next(batches)
            pace.begin_step()
            rate = learning_rate(trainer.plan, trainer.progress, pace.total_steps if settings.decay else None)
            loss = trainer.update(image_BCXYZ, label_BXYZ, learning_rate=rate)
            pace.count(trainer.progress, patches=len(image_BCXYZ))
            meter.stepped(pace.tally, epoch=trainer.progress.epoch, loss=loss)
            if _ends_epoch(trainer.progress, pace.total_steps):
                _end_epoch(trainer, pace, validate=validate, commit=commit, meter=meter)
    return pace.tally


def _load(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Give an optimiser its saved state, whatever device that is of.

    It stays fused or not as it is here, and moments get the layout of their weights: a fused one takes no other.
    """
    groups = zip(saved["param_groups"], optimizer.param_groups, strict=True)
    here = [{**group, "fused": own["fused"]} for group, own in groups]
    optimizer.load_state_dict({**saved, "param_groups": here})
    for parameter, state in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if name in state and state[name].stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, requires_grad=False).copy_(state[name])


def learning_rate(plan: Plan, progress: Progress, total_steps: int | None) -> float:
    """Return the rate of the next step: polynomial to zero at `total_steps`, or, with None, as the plateau left it."""
    base = plan.configuration.learning_rate
    if total_steps is None:
        return float(base / _PLATEAU_DIVISOR**progress.plateau.divisions)
    left = max(0.0, 1 - progress.step / max(1, total_steps))
    return float(base * left**_DECAY_POWER)


def after_epoch(plateau: PlateauState, loss: float) -> PlateauState:
    """Return the plateau's state after an epoch's mean loss: divide by 5 after 30 epochs without 0.01 % of progress."""
    best = plateau.best_loss
    if best is None or loss < best - abs(best) * _PLATEAU_PROGRESS:
        return PlateauState(best_loss=loss, divisions=plateau.divisions)
    waited = plateau.epochs_without_progress + 1
    if waited < _PLATEAU_EPOCHS:
        return plateau.model_copy(update={"epochs_without_progress": waited})
    return PlateauState(best_loss=best, divisions=plateau.divisions + 1)


def fitted_steps(*, step: int, most_steps: int, seconds_left: float, seconds_per_step: float) -> int:
    """Return the step at which training must end to use the time that is left, at most `most_steps`."""
    affordable = int(max(0.0, seconds_left) / seconds_per_step) if seconds_per_step > 0 else most_steps
    return max(1, min(most_steps, step + affordable))


def _ends_epoch(progress: Progress, total_steps: int) -> bool:
    return progress.step % progress.steps_per_epoch == 0 or progress.step >= total_steps


def _end_epoch(
    trainer: Trainer,
    pace: _Pace,
    *,
    validate: Callable[[nn.Module], Validation],
    commit: Callable[[Trainer], None],
    meter: Meter,
) -> None:
    """Close the books of an epoch; validate and commit if it is time or the run is over.

    A stop within the validation leaves the books open, so that they are closed the same way when the run goes on. So
    does the end of a run within an epoch, which a promoted run would go on with.
    """
    progress = trainer.progress
    steps = progress.step % progress.steps_per_epoch or progress.steps_per_epoch
    loss = progress.epoch_loss_sum / steps
    is_last = progress.step >= pace.total_steps
    update: dict[str, object] = {"validation_due": False}
    if steps == progress.steps_per_epoch:
        update |= {"epoch_loss_sum": 0.0, "plateau": after_epoch(progress.plateau, loss)}
    trainer.progress = progress.model_copy(update=update)
    if is_last or pace.is_time_to_validate(progress):
        try:
            scores = validate(trainer.average)
        except StopRequestedError:
            trainer.progress = pace.stamped(progress.model_copy(update={"validation_due": True}))
            commit(trainer)
            raise
        pace.validation_seconds = scores.seconds
        stamped = pace.stamped(trainer.progress).model_copy(update={"validation_seconds": scores.seconds})
        point = CurvePoint(
            epoch=stamped.epoch,
            seconds=stamped.seconds,
            training_loss=loss,
            validation_loss=scores.loss,
            dice=scores.dice,
        )
        trainer.progress = stamped.model_copy(update={"curve": (*stamped.curve, point), "is_finished": is_last})
        meter.validated(pace.tally, point)
        commit(trainer)
        pace.committed()
        logger.info(
            "epoch=%d loss=%.4f validation_loss=%.4f dice=%.4f seconds=%.1f",
            point.epoch,
            point.training_loss,
            point.validation_loss,
            point.mean_dice,
            point.seconds,
        )
    elif pace.is_time_to_commit():
        trainer.progress = pace.stamped(trainer.progress)
        commit(trainer)
        pace.committed()
    pace.resume()


class _Pace:
    """How fast the steps go, and what follows from it: where the run ends, and whether it is too slow."""

    def __init__(self, settings: LoopSettings, start: Progress, *, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.total_steps = settings.epochs * start.steps_per_epoch
        self.validations = MOST_VALIDATIONS
        self.validation_seconds = start.validation_seconds
        self._clock = clock
        self._seconds_before = start.seconds
        self._began = self._last = self._committed_at = clock()
        self._step_began = self._began
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._recent_patches: deque[int] = deque(maxlen=_RECENT_STEPS)
        self._counted = self._patches = 0
        self._seconds = self._data_wait_seconds = self._step_seconds = 0.0
        steps = self.total_steps - start.origin_step
        self._steps_to_judge = max(_WARM_UP_STEPS + 1, min(_WARM_UP_STEPS + _MEASURED_STEPS, steps))
        if settings.deadline is not None and start.step:
            self.total_steps = fitted_steps(
                step=start.step,
                most_steps=self.total_steps,
                seconds_left=settings.deadline - self._began - _COMMIT_SECONDS,
                seconds_per_step=start.seconds / start.step,
            )

    @property
    def tally(self) -> Tally:
        """Return what was done, by the time of the last step or stamp."""
        return Tally(
            steps=self._counted,
            patches=self._patches,
            seconds=self._seconds,
            data_wait_seconds=self._data_wait_seconds,
            step_seconds=self._step_seconds,
        )

    def begin_step(self) -> None:
        """Take note that the batch is there: the time since the last step went into waiting for it."""
        self._step_began = self._clock()
        self._data_wait_seconds += self._step_began - self._last

    def count(self, progress: Progress, *, patches: int) -> None:
        """Take a step's time and patches; fit the run's length to the deadline, and hold the run to its cap."""
        now = self._clock()
        self._counted += 1
        self._patches += patches  # an epoch's last batch may be smaller
        self._seconds = now - self._began
        self._step_seconds += now - self._step_began
        if self._counted > _WARM_UP_STEPS:
            self._recent.append(now - self._last)
            self._recent_patches.append(patches)
        self._last = now
        if self._counted == 1:
            logger.info("step=%d: the first of this process is done", progress.step)
        if self._counted == self._steps_to_judge:
            self._refuse_if_too_slow(progress)
        if self.settings.deadline is not None and self._recent:
            self._fit(progress, now)

    def resume(self) -> None:
        """Leave what happened since the last step out of the steps' times."""
        self._last = self._clock()

    def stamped(self, progress: Progress) -> Progress:
        """Return the progress with the trial's time until now."""
        self._seconds = self._clock() - self._began
        return progress.model_copy(update={"seconds": self._seconds_before + self._seconds})

    def is_time_to_validate(self, progress: Progress) -> bool:
        """Whether a validation is due: every so many epochs; in a refit seldom, and not shortly before its end."""
        every = self.settings.validation_every_epochs
        if not self.settings.decay:
            return progress.epoch % every == 0
        last, length = (progress.curve[-1].epoch if progress.curve else 0), self._length(progress)
        return is_validated(progress.epoch, last=last, length=length, every=every, validations=self.validations)

    def is_time_to_commit(self) -> bool:
        """Whether a kill would lose too much."""
        return self._clock() - self._committed_at >= _UNSAVED_SECONDS

    def committed(self) -> None:
        """Take note that the state is saved."""
        self._committed_at = self._clock()

    def _length(self, progress: Progress) -> int:
        return -(-self.total_steps // progress.steps_per_epoch)

    def _expected_validation_seconds(self) -> float:
        if self.validation_seconds is not None:
            return self.validation_seconds
        seconds_per_patch = sum(self._recent) / sum(self._recent_patches)
        return seconds_per_validation(self.settings.validation_windows, seconds_per_patch=seconds_per_patch)

    def _fit(self, progress: Progress, now: float) -> None:
        assert self.settings.deadline is not None
        left = self.settings.deadline - now - _COMMIT_SECONDS
        seconds_per_validation = self._expected_validation_seconds()
        ahead = _LAST_VALIDATIONS
        if self.settings.decay:
            if len(self._recent) == 1:
                self.validations = refit_validations(left, seconds_per_validation)
            every = self.settings.validation_every_epochs
            planned = validated_epochs(self._length(progress), every, self.validations)
            ahead += sum(epoch >= progress.epoch for epoch in planned)
        self.total_steps = fitted_steps(
            step=progress.step,
            most_steps=self.settings.epochs * progress.steps_per_epoch,
            seconds_left=left - ahead * seconds_per_validation,
            seconds_per_step=fmean(self._recent),
        )

    def _refuse_if_too_slow(self, progress: Progress) -> None:
        cap = self.settings.max_seconds_per_epoch
        steps = progress.steps_per_epoch * median(self._recent)
        epochs = max(1, self._length(progress) - progress.origin_step // progress.steps_per_epoch)
        validations = self._expected_validation_seconds() / min(self.settings.validation_every_epochs, epochs)
        if cap is not None and steps + validations > cap:
            raise TooSlowError(
                f"an epoch would take {steps + validations:.1f} s ({progress.steps_per_epoch} steps of"
                f" {median(self._recent):.3f} s, {validations:.1f} s of validation), more than the cap of {cap:.1f} s"
                " (budget.max_seconds_per_epoch, or what its search has left of the time)"
            )

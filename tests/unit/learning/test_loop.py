from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinytraining import make_batch, tiny_plan, tiny_trainer
from torch import Tensor, nn

from automonai.domain.run import CurvePoint
from automonai.domain.tally import Tally
from automonai.errors import NonFiniteLossError, StopRequestedError, TooSlowError
from automonai.learning.batches import MakeBatch
from automonai.learning.checkpoint import PlateauState, Progress
from automonai.learning.loop import (
    LoopSettings,
    Trainer,
    after_epoch,
    fitted_steps,
    learning_rate,
    train,
)
from automonai.learning.losses import Loss
from automonai.learning.metering import UNMETERED, Meter
from automonai.learning.network import build_network
from automonai.learning.precision import Precision
from automonai.learning.validation import Validation


class Clock:
    """Each reading is half a second after the one before: a step, which is read at both ends, takes a second."""

    def __init__(self, tick: float = 0.5) -> None:
        self.now = 0.0
        self.tick = tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


class Run:
    """A training that remembers what was asked of it."""

    def __init__(
        self, trainer: Trainer, *, validation_seconds: float = 0.0, make_batch: MakeBatch = make_batch
    ) -> None:
        self.trainer = trainer
        self.make_batch = make_batch
        self.validation_seconds = validation_seconds
        self.stop = threading.Event()
        self.clock = Clock()
        self.commits: list[int] = []
        self.rates: list[float] = []

    def validate(self, network: nn.Module) -> Validation:
        assert not network.training
        self.clock.now += self.validation_seconds
        return Validation(loss=0.5, dice={1: 0.7}, seconds=self.validation_seconds)

    def go(self, *, meter: Meter = UNMETERED, **settings: object) -> Tally:
        wanted = LoopSettings(**{"epochs": 4, "validation_every_epochs": 2, **settings})  # type: ignore[arg-type]
        update = self.trainer.update

        def remembered(image: Tensor, label: Tensor, *, learning_rate: float) -> float:
            self.rates.append(learning_rate)
            return update(image, label, learning_rate=learning_rate)

        self.trainer.update = remembered  # type: ignore[method-assign]
        return train(
            self.trainer,
            self.make_batch,
            settings=wanted,
            validate=self.validate,
            commit=lambda trainer: self.commits.append(trainer.progress.step),
            stop=self.stop,
            meter=meter,
            clock=self.clock,
        )


def test_every_validation_is_committed_and_the_last_ends_the_run() -> None:
    run = Run(tiny_trainer())
    run.go(epochs=5)
    assert run.commits == [8, 16, 20]
    assert [point.epoch for point in run.trainer.progress.curve] == [2, 4, 5]
    assert run.trainer.progress.is_finished
    assert run.rates == [1e-2] * 20


class Heard:
    """A meter that remembers what it hears."""

    def __init__(self) -> None:
        self.tallies: list[Tally] = []
        self.losses: list[float] = []
        self.epochs: list[int] = []
        self.validations: list[tuple[Tally, int]] = []

    def stepped(self, tally: Tally, *, epoch: int, loss: float) -> None:
        self.tallies.append(tally)
        self.epochs.append(epoch)
        self.losses.append(loss)

    def validated(self, tally: Tally, point: CurvePoint) -> None:
        self.validations.append((tally, point.epoch))

    def committed(self, *, seconds: float, size_bytes: int) -> None:
        raise AssertionError("the loop does not know what a commit costs")


def test_a_meter_hears_of_every_step_and_validation_and_changes_no_loss() -> None:
    heard, metered, alone = Heard(), Run(tiny_trainer()), Run(tiny_trainer())
    tally = metered.go(meter=heard)
    alone.go()
    assert heard.epochs == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert sum(heard.losses[-4:]) / 4 == alone.trainer.progress.curve[-1].training_loss
    assert [(done.steps, epoch) for done, epoch in heard.validations] == [(8, 2), (16, 4)]
    assert heard.validations[-1][0] == tally
    weights = zip(metered.trainer.network.parameters(), alone.trainer.network.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_the_tally_tells_waiting_from_computing() -> None:
    heard = Heard()
    Run(tiny_trainer()).go(epochs=1, meter=heard)  # half a second from reading to reading of the clock
    first, *_, last = heard.tallies
    assert first == Tally(steps=1, patches=1, seconds=1.0, data_wait_seconds=0.5, step_seconds=0.5)
    assert last == Tally(steps=4, patches=4, seconds=4.0, data_wait_seconds=2.0, step_seconds=2.0)
    assert last.patches_per_second == 1.0


def test_the_tally_counts_the_patches_that_there_were() -> None:
    def make_smaller_last_batch(step: int) -> tuple[Tensor, Tensor]:
        image_BCXYZ, label_BXYZ = make_batch(step)
        patches = 1 if step % 4 == 3 else 2
        return image_BCXYZ.expand(patches, -1, -1, -1, -1), label_BXYZ.expand(patches, -1, -1, -1)

    run = Run(tiny_trainer(), make_batch=make_smaller_last_batch)
    run.trainer.plan = run.trainer.plan.model_copy(update={"batch_size": 2})
    tally = run.go(epochs=2)
    assert (tally.steps, tally.patches) == (8, 14)


def test_the_tally_leaves_out_what_an_earlier_process_did() -> None:
    run = Run(tiny_trainer())
    run.trainer.progress = run.trainer.progress.model_copy(update={"step": 8, "seconds": 100.0})
    tally = run.go()
    assert (tally.steps, tally.patches) == (8, 8)
    assert tally.seconds == run.trainer.progress.seconds - 100.0


def test_a_run_that_has_nothing_left_to_do_has_no_rate() -> None:
    run = Run(tiny_trainer())
    run.trainer.progress = run.trainer.progress.model_copy(update={"is_finished": True})
    assert run.go().patches_per_second is None


def test_a_refit_decays_its_rate_to_almost_nothing() -> None:
    run = Run(tiny_trainer())
    run.go(decay=True, validation_every_epochs=1)
    assert run.rates == sorted(run.rates, reverse=True)
    assert run.rates[0] == 1e-2
    assert run.rates[-1] == pytest.approx(1e-2 * (1 / 16) ** 0.9)


def test_a_deadline_shortens_the_run_and_the_rate_still_reaches_almost_nothing() -> None:
    run = Run(tiny_trainer())
    run.go(epochs=1000, decay=True, deadline=60.0)
    assert 5 < run.trainer.progress.step < 60
    assert run.trainer.progress.is_finished
    assert run.rates[-1] < 1.5e-3


@pytest.mark.parametrize(("windows", "validations"), [(1, 4), (20, 3), (40, 2), (200, 1)])
def test_a_refits_validations_before_its_last_take_a_tenth_of_its_time(windows: int, validations: int) -> None:
    run = Run(tiny_trainer(), validation_seconds=0.35 * windows)
    run.go(epochs=1000, decay=True, deadline=180.0, validation_every_epochs=1, validation_windows=windows)
    assert len(run.trainer.progress.curve) == validations
    assert 150 < run.clock.now < 180


def test_a_run_above_its_cap_ends_early_with_its_numbers() -> None:
    run = Run(tiny_trainer())
    with pytest.raises(TooSlowError, match=r"4 steps of 1\.000 s"):
        run.go(max_seconds_per_epoch=3.0)
    assert run.trainer.progress.step <= 8


def test_a_run_of_few_steps_is_held_to_its_cap_too() -> None:
    run = Run(tiny_trainer())
    with pytest.raises(TooSlowError, match=r"4 steps of 1\.000 s"):
        run.go(epochs=1, max_seconds_per_epoch=3.0)
    assert run.trainer.progress.step == 4


def test_a_run_that_is_taken_up_shortly_before_its_end_is_not_judged_by_its_last_steps() -> None:
    run = Run(tiny_trainer())
    run.trainer.progress = run.trainer.progress.model_copy(update={"step": 13, "seconds": 13.0})
    run.go(max_seconds_per_epoch=3.0)
    assert run.trainer.progress.is_finished


def test_a_run_that_ends_within_an_epoch_leaves_its_books_to_the_one_that_goes_on() -> None:
    whole, first = Run(tiny_trainer()), Run(tiny_trainer())
    whole.go(epochs=4)
    first.go(epochs=1000, deadline=12.0)
    step = first.trainer.progress.step
    assert step % 4
    assert first.trainer.progress.plateau.best_loss is not None
    first.trainer.progress = first.trainer.progress.model_copy(update={"is_finished": False})
    second = Run(first.trainer)
    second.go(epochs=4)
    assert second.trainer.progress.plateau == whole.trainer.progress.plateau


def test_what_a_validation_took_is_known_to_the_process_that_goes_on() -> None:
    run = Run(tiny_trainer(), validation_seconds=7.0)
    run.go(epochs=2, validation_every_epochs=1)
    assert run.trainer.progress.validation_seconds == 7.0


def test_a_stop_commits_before_it_leaves() -> None:
    run = Run(tiny_trainer())
    run.stop.set()
    with pytest.raises(StopRequestedError):
        run.go()
    assert run.commits == [0]


def test_a_run_stopped_within_a_validation_goes_on_with_it_and_ends_as_if_never_stopped() -> None:
    class Stopped(Run):
        def validate(self, network: nn.Module) -> Validation:
            raise StopRequestedError("stopped within a validation")

    trainer, whole = tiny_trainer(), Run(tiny_trainer())
    stopped, resumed = Stopped(trainer), Run(trainer)
    whole.go()
    with pytest.raises(StopRequestedError):
        stopped.go()
    assert (stopped.commits, len(stopped.rates), trainer.progress.curve) == ([8], 8, ())
    resumed.go()
    assert (resumed.commits, len(resumed.rates)) == ([8, 16], 8)
    states = [run.trainer.progress.model_dump(exclude={"seconds", "curve"}) for run in (whole, resumed)]
    assert states[0] == states[1]
    points = [
        [point.model_dump(exclude={"seconds"}) for point in run.trainer.progress.curve] for run in (whole, resumed)
    ]
    assert points[0] == points[1]


def test_a_refit_whose_new_deadline_leaves_time_trains_on_where_its_last_validation_was_stopped() -> None:
    run = Run(tiny_trainer())
    run.trainer.progress = run.trainer.progress.model_copy(
        update={"step": 6, "epoch_loss_sum": 1.0, "validation_due": True}
    )
    run.go(decay=True)
    assert (run.commits, len(run.rates)) == ([8, 16], 10)
    assert not run.trainer.progress.validation_due


def test_a_non_finite_loss_leaves_the_weights_as_they_were() -> None:
    trainer = tiny_trainer(loss_of=lambda logits, label: logits.sum() * float("nan"))
    before = [weight.clone() for weight in trainer.network.parameters()]
    with pytest.raises(NonFiniteLossError, match=r"step 1 .*learning rate 0\.01"):
        trainer.update(*make_batch(0), learning_rate=1e-2)
    after = list(trainer.network.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_non_finite_gradient_leaves_the_weights_as_they_were() -> None:
    trainer = tiny_trainer(loss_of=lambda logits, label: (logits - logits.detach()).abs().sum().sqrt())
    before = [weight.clone() for weight in trainer.network.parameters()]
    with pytest.raises(NonFiniteLossError, match="gradient"):
        trainer.update(*make_batch(0), learning_rate=1e-2)
    after = list(trainer.network.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def float16_trainer(loss_of: Loss) -> Trainer:
    plan = tiny_plan()
    return Trainer(
        plan,
        build_network(plan.network, slice_axis=2),
        loss_of=loss_of,
        precision=Precision(torch.device("cpu"), torch.float16),
        progress=Progress(seed=0, steps_per_epoch=4),
    )


def infinite_gradient(logits: Tensor, label: Tensor) -> Tensor:
    return (logits - logits.detach()).abs().sum().sqrt()


def test_a_gradient_that_no_scale_of_float16_makes_finite_ends_the_run() -> None:
    trainer = float16_trainer(infinite_gradient)
    before = [weight.clone() for weight in trainer.network.parameters()]
    for step in range(16):  # the scale begins at 2 to the 16th
        trainer.update(*make_batch(step), learning_rate=1e-2)
    with pytest.raises(NonFiniteLossError, match=r"the gradient became nan in step 17 "):
        trainer.update(*make_batch(16), learning_rate=1e-2)
    after = list(trainer.network.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_scale_of_float16_that_is_too_large_costs_a_step_and_no_run() -> None:
    gradients = iter([infinite_gradient] * 3 + [lambda logits, label: logits.square().mean()] * 3)
    trainer = float16_trainer(lambda logits, label: next(gradients)(logits, label))
    before = [weight.clone() for weight in trainer.network.parameters()]
    for step in range(6):
        trainer.update(*make_batch(step), learning_rate=1e-2)
    assert trainer.checkpoint().scaler["scale"] == 2.0**13
    assert not all(torch.equal(old, new) for old, new in zip(before, list(trainer.network.parameters()), strict=True))


def test_a_step_waits_once_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, waits = tiny_trainer(loss_of=lambda logits, label: logits.square().mean()), list[Tensor]()
    trainer.update(*make_batch(0), learning_rate=1e-2)
    counters = [id(state["step"]) for state in trainer._optimizer.state.values()]  # of AdamW, always on the CPU
    item, tolist = Tensor.item, Tensor.tolist

    def counted_item(tensor: Tensor) -> object:
        waits.extend([] if id(tensor) in counters else [tensor])
        return item(tensor)

    def counted_list(tensor: Tensor) -> object:
        waits.append(tensor)
        return tolist(tensor)

    monkeypatch.setattr(Tensor, "item", counted_item)
    monkeypatch.setattr(Tensor, "tolist", counted_list)
    trainer.update(*make_batch(1), learning_rate=1e-2)
    assert len(waits) == 1


def test_the_averages_window_follows_the_steps() -> None:
    trainer = tiny_trainer()
    name, weight = next(iter(trainer.network.named_parameters()))
    expected = weight.detach().clone()
    for step in range(1, 4):
        trainer.update(*make_batch(step), learning_rate=1e-2)
        expected = torch.lerp(expected, weight.detach(), 10 / (step + 10))
    torch.testing.assert_close(trainer.average.state_dict()[name], expected)


def test_the_rate_is_divided_after_thirty_epochs_without_progress() -> None:
    plateau = after_epoch(PlateauState(), 1.0)
    for _ in range(29):
        plateau = after_epoch(plateau, 0.99995)
    assert plateau.divisions == 0
    plateau = after_epoch(plateau, 1.0)
    assert (plateau.divisions, plateau.epochs_without_progress) == (1, 0)
    progress = Progress(seed=0, steps_per_epoch=1, plateau=plateau)
    assert learning_rate(tiny_plan(), progress, None) == pytest.approx(1e-2 / 5)


def test_progress_resets_the_wait() -> None:
    plateau = PlateauState(best_loss=1.0, epochs_without_progress=29)
    assert after_epoch(plateau, 0.9) == PlateauState(best_loss=0.9)


@given(
    step=st.integers(0, 10**6),
    more=st.integers(0, 10**6),
    left=st.floats(-100, 1e6),
    each=st.floats(1e-3, 100),
)
def test_fitted_steps_never_exceed_the_budget_nor_go_back(step: int, more: int, left: float, each: float) -> None:
    most = step + more
    fitted = fitted_steps(step=step, most_steps=most, seconds_left=left, seconds_per_step=each)
    assert min(step, most) <= fitted <= max(1, most)
    assert fitted <= 1 or (fitted - step) * each <= max(left, 0) * (1 + 1e-9)


@pytest.mark.parametrize(("step_seconds", "commits"), [(1.0, [16]), (100.0, [8, 16]), (200.0, [4, 8, 12, 16])])
def test_where_validations_are_rare_the_state_is_committed_every_ten_minutes(
    step_seconds: float, commits: list[int]
) -> None:
    run = Run(tiny_trainer())
    run.clock = Clock(tick=step_seconds / 2)
    run.go(epochs=4, validation_every_epochs=4, decay=True)
    assert run.commits == commits
    assert len(run.trainer.progress.curve) == 1

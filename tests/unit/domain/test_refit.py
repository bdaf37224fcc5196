import pytest
from studies import Bench, make_spec, train

from automonai.domain.configuration import Flips
from automonai.domain.events import RefitChosen, RunQueued, StudyStarted
from automonai.domain.refit import choose_refit, refit_deadline_seconds
from automonai.domain.request import TrainRequest
from automonai.domain.run import Purpose, Result, Run
from automonai.domain.study import Study
from automonai.spec import RefitSpec
from automonai.storage.journal import Journal


def searched(
    *,
    refit: RefitSpec | None = None,
    parallel: int = 1,
    second: float = 0.0,
    seconds: dict[int, float] | None = None,
    folds: int = 4,
    pace: dict[str, float] | None = None,
    steps_per_epoch: int | None = None,
    **budget: object,
) -> Study:
    """Return a study whose search is over; trial 1 is worse than trial 0 by `second`, epochs take 1 s or `seconds`."""
    spec = make_spec(parallel=parallel, **budget)
    bench = Bench(spec.model_copy(update={"refit": refit or RefitSpec()}))
    Journal(bench.store).append(StudyStarted(at=bench.clock(), spec=bench.spec, folds=folds))

    def score(request: TrainRequest) -> Result:
        result = train(request)
        loss = 0.1 if request.run.trial == 0 else 0.1 + second if request.run.trial == 1 else 0.5
        cost = (seconds or {}).get(request.run.trial, 1.0)
        update = {"loss": loss, "seconds_per_epoch": cost, "steps_per_epoch": steps_per_epoch, **(pace or {})}
        return result.model_copy(update=update)

    return bench.run(executor=bench.executor(train=score))


def test_without_a_time_budget_the_winner_is_trained_on_every_fold_at_the_largest_budget() -> None:
    study = searched(iterations=1, second=0.001)
    assert [(run.trial, run.fold, run.budget_epochs) for run in study.refit.runs] == [(0, k, 9) for k in (1, 2, 3, 0)]


@pytest.mark.parametrize("folds", [3, 5])
@pytest.mark.parametrize("budget", [{"iterations": 1}, {"time": 6000, "refit_share": 0.6}])
def test_a_division_from_a_file_is_trained_on_its_own_folds(folds: int, budget: dict[str, float]) -> None:
    study = searched(folds=folds, second=0.2, **budget)
    assert study.spec.split.folds == 4
    assert [run.fold for run in study.refit.runs] == [*range(1, folds), 0]  # by fold 0 the search has chosen


def test_close_configurations_meet_on_the_same_folds() -> None:
    study = searched(refit=RefitSpec(configurations=2, members=3), iterations=1, second=0.001)
    assert [(run.trial, run.fold) for run in study.refit.runs] == [(0, 1), (1, 1), (0, 2)]


def test_a_configuration_that_is_clearly_worse_is_not_refitted() -> None:
    study = searched(refit=RefitSpec(configurations=2), iterations=1, second=0.2)
    assert {run.trial for run in study.refit.runs} == {0}


def test_under_a_time_budget_members_share_what_is_left_and_each_gets_enough() -> None:
    study = searched(time=600, refit_share=0.6, second=0.2, refit=RefitSpec(min_epochs_factor=9))
    runs = study.refit.runs
    assert len(runs) == 339 // (9 * 9) == 4
    assert all(run.budget_epochs >= 9 * 9 for run in runs)


def refitted_epochs(*, training: float, validation: float) -> int:
    """Return the epochs of the one network that is refitted in 339 s."""
    pace = {"training_seconds_per_epoch": training, "validation_seconds": validation}
    study = searched(time=600, refit_share=0.6, second=0.2, refit=RefitSpec(members=1), pace=pace)
    assert study.refit.why == "equal shares of the 339 s that are left"
    return study.refit.runs[0].budget_epochs


@pytest.mark.parametrize(
    ("training", "validation", "epochs"),
    [
        (1.0, 0.1, 1.15 * (339 - 4 * 0.1)),
        (0.25, 0.75, 1.15 * (339 - 4 * 0.75) / 0.25),
        (2.0, 15.0, 1.15 * (339 - 3 * 15) / 2),
        (2.0, 60.0, 1.15 * (339 - 60) / 2),
        (2.0, 320.0, 1.15 * (339 - 320) / 2),
    ],
)
def test_a_refits_epochs_follow_from_its_own_pace_and_its_few_validations(
    training: float, validation: float, epochs: float
) -> None:
    assert refitted_epochs(training=training, validation=validation) == pytest.approx(epochs, abs=1)


def test_a_network_of_the_search_is_not_replaced_by_one_that_would_be_trained_less() -> None:
    pace = {"training_seconds_per_epoch": 2.0, "validation_seconds": 1000.0}
    study = searched(time=600, refit_share=0.6, second=0.2, refit=RefitSpec(members=1), pace=pace)
    assert study.refit.runs == ()
    assert study.refit.why == "what is left of the time is less than the search trained its best"
    assert [member.run_id for member in study.ensemble.members] == [study.incumbent[1].run_id]


def test_little_time_trains_fewer_members() -> None:
    study = searched(time=100, refit_share=0.3, second=0.2)
    assert len(study.refit.runs) < 4


def test_of_configurations_that_are_alike_the_cheaper_one_is_refitted_first() -> None:
    study = searched(seconds={0: 2.0}, time=600, refit_share=0.6, second=0.002)
    assert study.refit.runs[0].trial == 1


def test_of_configurations_that_differ_the_better_one_is_refitted_first() -> None:
    study = searched(seconds={0: 2.0}, time=600, refit_share=0.6, second=0.006)
    assert study.refit.runs[0].trial == 0


def test_each_member_gets_the_epochs_that_its_own_speed_allows() -> None:
    study = searched(seconds={0: 2.0}, time=2000, refit_share=0.6, second=0.006)
    epochs = {run.trial: run.budget_epochs for run in study.refit.runs}
    assert epochs[1] == pytest.approx(2 * epochs[0], abs=2)


def test_a_further_configuration_that_would_be_trained_too_little_is_left_out() -> None:
    study = searched(seconds={1: 20.0}, time=600, refit_share=0.6, second=0.006)
    assert {run.trial for run in study.refit.runs} == {0}
    assert len(study.refit.runs) > 1
    assert sum(run.budget_epochs for run in study.refit.runs) > 0.9 * 0.6 * 600, "the others get its share of the time"


def test_a_further_configuration_that_is_asked_for_is_trained_however_little() -> None:
    refit = RefitSpec(configurations=2, members=8)
    study = searched(seconds={1: 20.0}, time=600, refit_share=0.6, second=0.006, parallel=4, refit=refit)
    assert [run.trial for run in study.refit.runs] == [0, 1] * 4


@pytest.mark.parametrize("members", [1, 2, 6, 12])
def test_members_with_which_all_would_be_trained_less_than_in_the_search_are_left_out(members: int) -> None:
    pace = {"training_seconds_per_epoch": 10.0, "validation_seconds": 0.1}
    study = searched(time=600, refit_share=0.6, second=0.2, folds=12, refit=RefitSpec(members=members), pace=pace)
    had = study.ranking[0][1].curve_epochs
    planned = [run.budget_epochs for run in study.refit.runs]
    assert 1 <= len(planned) <= min(members, 4)
    assert min(planned) >= had
    assert (f"with all {members} members" in study.refit.why) == (len(planned) < members)


def test_the_standard_configuration_is_left_out_where_both_would_be_trained_less_than_in_the_search() -> None:
    pace = {"training_seconds_per_epoch": 30.0, "validation_seconds": 0.1}
    study = searched(time=600, refit_share=0.6, second=-0.05, steps_per_epoch=3, pace=pace)
    assert [run.trial for run in study.refit.runs] == [1]
    assert "standard" not in study.refit.why


def test_the_deadline_of_a_refit_is_its_part_of_the_time_that_is_left() -> None:
    bench = Bench(make_spec(time=600, refit_share=0.6))
    bench.run()
    events = Journal(bench.store).read()
    chosen = next(index for index, event in enumerate(events) if isinstance(event, RefitChosen))
    study, now = Study.replay(events[: chosen + 1]), events[chosen].at
    first = refit_deadline_seconds(study, study.refit.runs[0], now=now, test_cases=0)
    left = 600 - study.elapsed_seconds(now)
    assert first is not None
    assert 0.85 * left / len(study.refit.runs) <= first <= left / len(study.refit.runs)


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_refits_that_are_taken_up_with_fewer_slots_share_the_time_that_is_left(slots: int) -> None:
    bench = Bench(make_spec(time=600, refit_share=0.6, parallel=4))
    bench.run()
    events = Journal(bench.store).read()
    index = next(index for index, event in enumerate(events) if isinstance(event, RefitChosen))
    study, now = Study.replay(events[: index + 1]), events[index].at
    study.refit = RefitChosen(
        at=now, why="", runs=tuple(Run(trial=0, budget_epochs=9, fold=fold, purpose=Purpose.REFIT) for fold in range(4))
    )
    for run in study.refit.runs:
        study.apply(RunQueued(at=now, run=run, resume_from=None))
    study.spec = make_spec(time=600, refit_share=0.6, parallel=slots)
    shares = {refit_deadline_seconds(study, run, now=now, test_cases=0) for run in study.refit.runs}
    left = 600 - study.elapsed_seconds(now) - 0.03 * 600
    assert list(shares) == [pytest.approx(left / (4 / slots))]


@pytest.mark.parametrize(("flips", "times"), [("none", 1), ("left_right", 2), ("all", 8)])
def test_the_ensembles_predictions_have_their_time_with_every_flip(flips: str, times: int) -> None:
    bench = Bench(make_spec(time=6000, refit_share=0.6))

    def score(request: TrainRequest) -> Result:
        return train(request).model_copy(update={"prediction_seconds_per_case": 0.5})

    bench.run(executor=bench.executor(train=score))
    events = Journal(bench.store).read()
    index = next(index for index, event in enumerate(events) if isinstance(event, RefitChosen))
    study, refit = Study.replay(events[:index]), events[index]
    trial = refit.runs[0].trial
    configuration = study.trials[trial].configuration.model_copy(update={"flips": Flips(flips)})
    study.trials[trial] = study.trials[trial].model_copy(update={"configuration": configuration})
    chosen = choose_refit(study, now=refit.at, test_cases=30)
    left = 6000 - study.elapsed_seconds(refit.at) - 0.03 * 6000
    networks = [run.trial for run in chosen.runs]
    seconds = {number: 0.5 * study.trials[number].configuration.passes for number in networks}
    assert seconds[trial] == 0.5 * times
    predictions = 30 * sum(seconds[number] for number in networks) + 24 * sum(seconds.values())
    assert chosen.why == f"equal shares of the {left - predictions:.0f} s that are left"


def test_there_is_no_deadline_without_a_time_budget() -> None:
    study = searched(iterations=1)
    assert refit_deadline_seconds(study, study.refit.runs[0], now=0, test_cases=0) is None


@pytest.mark.parametrize(("steps_per_epoch", "trials"), [(3, [1, 0]), (14, [1, 1])])
def test_after_few_steps_the_standard_configuration_is_trained_beside_the_best(
    steps_per_epoch: int, trials: list[int]
) -> None:
    study = searched(
        time=600, refit_share=0.6, second=-0.05, parallel=2, steps_per_epoch=steps_per_epoch, refit=RefitSpec(members=2)
    )
    assert [run.trial for run in study.refit.runs] == trials
    assert ("standard" in study.refit.why) == (0 in trials)


def test_one_slot_trains_the_standard_configuration_after_the_best() -> None:
    study = searched(time=600, refit_share=0.6, second=-0.05, steps_per_epoch=3, refit=RefitSpec(min_epochs_factor=90))
    assert [(run.trial, run.fold) for run in study.refit.runs] == [(1, 1), (0, 1)]


@pytest.mark.parametrize("refit", [RefitSpec(configurations=1), RefitSpec(members=1)])
def test_a_spec_that_asks_for_the_best_alone_gets_it(refit: RefitSpec) -> None:
    study = searched(time=600, refit_share=0.6, second=-0.05, steps_per_epoch=3, refit=refit)
    assert {run.trial for run in study.refit.runs} == {1}


def test_a_standard_configuration_that_is_the_best_needs_none_beside_it() -> None:
    study = searched(time=600, refit_share=0.6, second=0.2, steps_per_epoch=3)
    assert {run.trial for run in study.refit.runs} == {0}
    assert "standard" not in study.refit.why

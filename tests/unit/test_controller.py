import json

import pytest
from studies import Bench, SeededSampler, make_data, make_spec, train

from automonai.controller import Unwatched
from automonai.domain.bracket import hyperband_bracket
from automonai.domain.configuration import Configuration
from automonai.domain.events import Event, RunDisrupted, RunFinished, RunQueued, RunStarted, SessionStarted
from automonai.domain.plan import make_plan
from automonai.domain.request import TrainRequest
from automonai.domain.run import FailureReason, LossCause, Origin, Purpose, Result, RunState
from automonai.domain.study import Study
from automonai.errors import StopRequestedError
from automonai.execution.executor import Notice, Report
from automonai.execution.fake import FakeExecutor
from automonai.search.sampler import History, Proposal
from automonai.spec import SamplerName, StudySpec
from automonai.storage import keys
from automonai.storage.journal import Journal
from automonai.storage.memory import MemoryStore


class Killed(Exception):
    """Stands for kill -9: nothing after it happens."""


class DyingJournal(Journal):
    """Dies before or after writing its n-th event."""

    def __init__(self, store: MemoryStore, *, at: int, before: bool) -> None:
        super().__init__(store)
        self.left, self.before = at, before

    def append(self, *events: Event) -> None:
        self.left -= 1
        if self.left == 0 and self.before:
            raise Killed
        super().append(*events)
        if self.left == 0:
            raise Killed


def story(study: Study) -> dict[str, object]:
    """What must not depend on kills: proposals, losses, what was refitted and chosen."""
    return {
        "trials": [trial.model_dump() for trial in study.trials.values()],
        "losses": {run_id: study.runs[run_id].result.loss for run_id in study.finished},
        "refit": study.refit.runs if study.refit else None,
        "ensemble": study.ensemble,
        "ended": study.ended.why if study.ended else None,
    }


def count_events(store: MemoryStore) -> int:
    return len(Journal(store).read())


def test_a_study_searches_refits_the_best_on_every_fold_and_ends_with_an_ensemble() -> None:
    study = Bench(make_spec(iterations=3)).run()
    assert study.ended is not None
    assert study.ended.succeeded
    assert [record.run.purpose for record in study.runs.values()].count(Purpose.REFIT) == 4
    best = min(study.ranking, key=lambda pair: pair[1].loss)
    assert {run.trial for run in study.refit.runs} == {best[0].number}
    assert len(study.ensemble.members) == 4


@pytest.mark.parametrize("sampler", list(SamplerName))
def test_the_journal_alone_tells_the_whole_study(sampler: SamplerName) -> None:
    spec = make_spec(iterations=3)
    bench = Bench(spec.model_copy(update={"search": spec.search.model_copy(update={"sampler": sampler})}))
    study = bench.run()
    replayed = Study.replay(Journal(bench.store).read())
    assert story(replayed) == story(study)


def test_a_kill_at_every_event_boundary_changes_neither_proposals_nor_losses() -> None:
    undisturbed = Bench(make_spec(iterations=2))
    expected = story(undisturbed.run())
    for event in range(2, count_events(undisturbed.store) + 1):
        for before in (True, False):
            bench = Bench(make_spec(iterations=2))
            with pytest.raises(Killed):
                bench.run(journal=DyingJournal(bench.store, at=event, before=before))
            assert story(bench.run()) == expected, f"killed {'before' if before else 'after'} event {event}"


def test_a_kill_after_every_event_in_turn_still_ends_with_the_same_study() -> None:
    expected = story(Bench(make_spec(iterations=1)).run())
    bench, study = Bench(make_spec(iterations=1)), None
    for _ in range(500):
        try:
            study = bench.run(journal=DyingJournal(bench.store, at=2, before=False))
            break
        except Killed:
            continue
    assert study is not None
    assert story(study) == expected


def test_no_finished_run_is_trained_again_after_a_kill() -> None:
    bench = Bench(make_spec(iterations=2))
    first = bench.executor()
    with pytest.raises(Killed):
        bench.run(executor=first, journal=DyingJournal(bench.store, at=25, before=True))
    second = bench.executor()
    bench.run(executor=second)
    assert not {run for run in first.trained if bench.store.exists(keys.answer(run))} - set(first.trained)
    assert not (set(first.trained[:-1]) & set(second.trained))


def test_one_slot_asks_in_the_order_of_sequential_bohb() -> None:
    sampler = SeededSampler()
    Bench(make_spec(iterations=1), sampler=sampler).run()
    assert [asked[0] for asked in sampler.asked] == list(range(9))
    assert [asked[2] for asked in sampler.asked] == list(range(9))


def test_several_slots_are_never_idle_while_the_search_has_work() -> None:
    bench = Bench(make_spec(parallel=3, iterations=6))
    executor = bench.executor()
    all_trials = sum(hyperband_bracket(index, (1, 3, 9), 3).sizes[0] for index in range(6))
    idle_while_there_was_work = []
    plain = executor.poll

    def poll(timeout_seconds: float) -> list[Report]:
        proposed = len({run_id[:10] for run_id in executor.trained})
        if timeout_seconds > 0 and proposed < all_trials and executor.free_slots():
            idle_while_there_was_work.append(proposed)
        return plain(timeout_seconds)

    executor.poll = poll  # type: ignore[method-assign]
    bench.run(executor=executor)
    assert not idle_while_there_was_work


def test_a_promoted_trial_continues_from_its_own_checkpoint() -> None:
    study = Bench(make_spec(iterations=1)).run()
    promoted = [r for r in study.runs.values() if r.run.purpose is Purpose.SEARCH and r.run.budget_epochs > 1]
    assert promoted
    for record in promoted:
        lower = {3: 1, 9: 3}[record.run.budget_epochs]
        assert (
            record.resume_from
            == f"runs/trial-{record.run.trial:04d}-epochs-{lower:04d}-fold-0/checkpoint/manifest.json"
        )


def test_restart_promotion_never_resumes() -> None:
    spec = make_spec(iterations=1)
    search = spec.search.model_copy(update={"promotion": "restart"})
    study = Bench(spec.model_copy(update={"search": search})).run()
    assert all(record.resume_from is None for record in study.runs.values())


def test_a_lost_run_is_queued_again_and_is_not_a_bad_configuration() -> None:
    bench, lost = Bench(make_spec(iterations=1)), []

    def lose(request: object) -> str | None:
        if isinstance(request, TrainRequest) and request.run.trial == 3 and len(lost) < 2:
            lost.append(request.run_id)
            return "the machine went away"
        return None

    study = bench.run(executor=bench.executor(lose=lose))
    record = study.runs[lost[0]]
    assert record.state is RunState.COMPLETE
    assert record.losses == 2
    assert study.losses == {LossCause.CRASH: 2}
    assert len([note for note in study.notes if "lost" in note[1]]) == 2
    expected = story(Bench(make_spec(iterations=1)).run())
    assert {t["number"] for t in story(study)["trials"]} == {t["number"] for t in expected["trials"]}


def test_every_run_and_the_ensemble_start_once_between_their_queueing_and_their_end() -> None:
    bench = Bench(make_spec(parallel=3, iterations=1))
    study, steps = bench.run(), {}
    for event in Journal(bench.store).read():
        if isinstance(event, RunQueued | RunFinished):
            steps.setdefault(event.run.id, []).append(event.kind)
        elif isinstance(event, RunStarted):
            steps.setdefault(event.run_id, []).append(event.kind)
    assert steps.pop("ensemble") == ["run_started"]
    assert steps.keys() == study.runs.keys()
    assert set(map(tuple, steps.values())) == {("run_queued", "run_started", "run_finished")}


def test_a_start_that_is_told_to_a_successor_again_is_written_down_once() -> None:
    undisturbed = Bench(make_spec(iterations=1))
    undisturbed.run()
    for event in range(2, count_events(undisturbed.store)):
        bench = Bench(make_spec(iterations=1))
        with pytest.raises(Killed):
            bench.run(journal=DyingJournal(bench.store, at=event, before=False))
        bench.run()
        events = Journal(bench.store).read()
        assert sum(isinstance(event, SessionStarted) for event in events) == 2
        started = [event.run_id for event in events if isinstance(event, RunStarted)]
        assert len(started) == len(set(started))


def test_a_disruption_that_is_told_to_a_successor_again_counts_once_and_the_run_goes_on() -> None:
    bench = Bench(make_spec(iterations=1))
    notice = Notice(run_id="trial-0000-epochs-0001-fold-0", cause=LossCause.DISRUPTION, why="pod a was taken away")

    def disrupted_executor() -> FakeExecutor:
        executor = bench.executor()
        executor.notices = lambda: [Notice(run_id=notice.run_id), notice] if executor.trained else []  # type: ignore[method-assign]
        return executor

    with pytest.raises(Killed):
        bench.run(executor=disrupted_executor(), journal=DyingJournal(bench.store, at=6, before=False))
    killed = Study.replay(Journal(bench.store).read())
    assert killed.runs[notice.run_id].state is RunState.RUNNING
    assert [record.run.id for record in killed.open_runs] == [notice.run_id]
    study = bench.run(executor=disrupted_executor())
    assert [event.why for event in Journal(bench.store).read() if isinstance(event, RunDisrupted)] == [notice.why]
    assert study.disruptions == {LossCause.DISRUPTION: 1}
    assert study.runs[notice.run_id].losses == 0
    assert study.runs[notice.run_id].state is RunState.COMPLETE


def test_a_run_lost_too_often_fails_without_a_loss_and_the_study_goes_on() -> None:
    bench = Bench(make_spec(iterations=1))

    def lose(request: object) -> str | None:
        return "evicted" if isinstance(request, TrainRequest) and request.run.trial == 2 else None

    study = bench.run(executor=bench.executor(lose=lose))
    record = study.runs["trial-0002-epochs-0001-fold-0"]
    assert record.result.reason is FailureReason.LOST
    assert "evicted" in record.result.message
    assert study.ended.succeeded


def test_a_lost_run_is_not_shown_to_the_sampler_as_a_result() -> None:
    seen: list[History] = []

    class Recorder(SeededSampler):
        def propose(self, history: History, *, index: int, budget_epochs: int) -> Proposal:
            seen.append(history)
            return super().propose(history, index=index, budget_epochs=budget_epochs)

    bench = Bench(make_spec(iterations=2), sampler=Recorder())
    bench.run(executor=bench.executor(lose=lambda r: "gone" if getattr(r, "run", None) and r.run.trial == 1 else None))
    assert all(observation.trial != 1 for history in seen for observation in history.observations)


def test_failed_runs_are_never_promoted_and_count_as_infinite_losses() -> None:
    def fail_some(request: TrainRequest) -> Result:
        if request.run.trial % 2:
            return Result(run_id=request.run_id, state=RunState.FAILED, reason=FailureReason.NON_FINITE_LOSS)
        return train(request)

    bench = Bench(make_spec(iterations=2))
    study = bench.run(executor=bench.executor(train=fail_some))
    assert all(r.run.trial % 2 == 0 for r in study.runs.values() if r.run.budget_epochs > 1 and r.run.trial < 9)
    assert study.ended.succeeded


def test_a_study_in_which_nothing_can_be_trained_ends_and_says_so() -> None:
    def fail(request: TrainRequest) -> Result:
        return Result(run_id=request.run_id, state=RunState.FAILED, reason=FailureReason.OUT_OF_MEMORY)

    bench = Bench(make_spec(iterations=1))
    study = bench.run(executor=bench.executor(train=fail))
    assert not study.ended.succeeded
    assert "no configuration" in study.ended.why


def test_when_every_refit_fails_the_searchs_own_network_is_used() -> None:
    def fail_refits(request: TrainRequest) -> Result:
        if request.run.purpose is Purpose.REFIT:
            return Result(run_id=request.run_id, state=RunState.FAILED, reason=FailureReason.NON_FINITE_LOSS)
        return train(request)

    bench = Bench(make_spec(iterations=1))
    study = bench.run(executor=bench.executor(train=fail_refits))
    assert [member.run_id for member in study.ensemble.members] == [study.incumbent[1].run_id]


def test_a_configuration_that_cannot_fit_is_refused_without_a_run() -> None:
    class Huge(SeededSampler):
        def propose(self, history: History, *, index: int, budget_epochs: int) -> Proposal:
            if index == 1:
                return Proposal(
                    configuration=Configuration(channels=512, channel_multiplier=3, depth=6), origin=Origin.RANDOM
                )
            return super().propose(history, index=index, budget_epochs=budget_epochs)

    bench = Bench(make_spec(iterations=1), sampler=Huge(), memory_bytes=8 * 2**30)
    executor = bench.executor()
    study = bench.run(executor=executor)
    record = study.runs["trial-0001-epochs-0001-fold-0"]
    assert record.result.reason is FailureReason.DOES_NOT_FIT
    assert "GiB" in record.result.message
    assert record.run.id not in executor.trained


@pytest.mark.parametrize(("devices", "is_refused"), [(1, True), (2, False)])
def test_a_configuration_must_fit_as_its_devices_share_it(devices: int, is_refused: bool) -> None:
    spec = make_spec(iterations=1)
    data, configuration = make_data(spec), Configuration(channels=32)
    plan = make_plan(configuration, dataset=data.dataset, fingerprint=data.fingerprint, training=spec.training)

    class Always(SeededSampler):
        def propose(self, history: History, *, index: int, budget_epochs: int) -> Proposal:
            return Proposal(configuration=configuration, origin=Origin.RANDOM)

    bench = Bench(spec, sampler=Always(), memory_bytes=int(0.9 * plan.step_bytes()))
    study = bench.run(devices_per_run=devices)
    reasons = {record.result.reason for record in study.runs.values() if record.result}
    assert (FailureReason.DOES_NOT_FIT in reasons) is is_refused


def test_the_epoch_budget_is_never_exceeded() -> None:
    for limit in (5, 20, 33):
        study = Bench(make_spec(epochs=limit)).run()
        assert 0 < study.epochs_spent <= limit + 9
        assert "epochs is spent" in study.search_ended.why


def test_a_time_budget_keeps_its_share_for_the_refit() -> None:
    bench = Bench(make_spec(time=400, refit_share=0.5))
    study = bench.run()
    ended = study.search_ended.at - study.started_at
    assert ended <= 200 + 9
    assert all(run.budget_epochs > 9 for run in study.refit.runs)


def test_checkpoints_that_nothing_needs_are_deleted_as_the_study_goes() -> None:
    bench = Bench(make_spec(iterations=3))

    def train_with_checkpoint(request: TrainRequest) -> Result:
        manifest = keys.checkpoint_manifest(request.run_id)
        bench.store.put(manifest, json.dumps({"key": "weights.pt"}).encode())
        bench.store.put(manifest.replace("manifest.json", "weights.pt"), b"0")
        if request.resume_from:
            assert bench.store.exists(request.resume_from)
        return train(request)

    study = bench.run(executor=bench.executor(train=train_with_checkpoint))
    kept = {key.split("/")[1] for key in bench.store.list(keys.RUNS) if "/checkpoint/" in key}
    assert kept == {member.run_id for member in study.ensemble.members}


def test_a_successor_does_not_delete_again_what_its_predecessor_deleted() -> None:
    asked: list[str] = []

    class Store(MemoryStore):
        def delete(self, key: str) -> None:
            asked.append(key)
            super().delete(key)

    bench = Bench(make_spec(iterations=2), store=Store())
    with pytest.raises(Killed):
        bench.run(journal=DyingJournal(bench.store, at=60, before=False))
    finished = len(Study.replay(Journal(bench.store).read()).finished)
    assert finished > 10
    before = len(asked)
    study = bench.run()
    assert len(asked) - before <= len(study.finished) - finished + 2  # those of no more than one turn were not deleted


def test_nothing_is_written_while_another_controller_may_have_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automonai.controller.time.sleep", lambda seconds: None)
    bench = Bench(make_spec(iterations=1))
    events_at_ticks: list[int] = []

    class Counting(Unwatched):
        def on_tick(self, study: Study, now: float) -> None:
            events_at_ticks.append(count_events(bench.store))

    sure = iter([True, False, False, False])
    study = bench.run(watch=Counting(), may_write=lambda: next(sure, True))
    assert events_at_ticks[:3] == [2, 2, 2]  # the study's start and the session's
    assert study.is_over


def test_an_event_that_comes_when_another_controller_may_write_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("automonai.controller.time.sleep", waited.append)
    bench, sure = Bench(make_spec(iterations=1)), iter([True, True, True, True])
    with pytest.raises(StopRequestedError, match="may not write any more"):
        bench.run(may_write=lambda: next(sure, False), should_stop=lambda: len(waited) > 3)
    assert count_events(bench.store) < 6
    assert bench.run().ended.succeeded


@pytest.mark.parametrize("parallel", [1, 2, 4])
@pytest.mark.parametrize("min_epochs", [1, 9])
def test_at_the_end_of_the_time_nothing_is_proposed_that_is_not_run(parallel: int, min_epochs: int) -> None:
    study = Bench(make_spec(parallel=parallel, time=100, refit_share=0.5, min_epochs=min_epochs)).run()
    assert study.search_ended is not None
    tried = {record.run.trial for record in study.search_records()}
    assert len(study.trials) - len(tried) <= parallel


def test_time_between_two_controllers_is_not_spent() -> None:
    bench = Bench(make_spec(iterations=1))
    with pytest.raises(Killed):
        bench.run(journal=DyingJournal(bench.store, at=20, before=True))
    spent = Study.replay(Journal(bench.store).read()).elapsed_seconds(0)
    bench.clock.now += 10_000
    study = bench.run()
    assert study.elapsed_seconds(0) < spent + 300
    sessions = [event for event in Journal(bench.store).read() if isinstance(event, SessionStarted)]
    assert len(sessions) == 2


def test_a_clock_that_is_set_back_makes_no_budget_longer() -> None:
    bench = Bench(make_spec(time=600, refit_share=0.5))
    undisturbed = Bench(bench.spec).run()
    back = 0.0

    def train_and_set_the_clock(request: TrainRequest) -> Result:
        nonlocal back
        if request.run.trial == 5 and not back:
            back = 3600.0
            bench.clock.now -= back
        return train(request)

    executor = bench.executor(train=train_and_set_the_clock)
    study = bench.run(executor=executor, steady_clock=lambda: bench.clock.now + back, ahead=0.0)
    assert back
    assert [event.kind for event in Journal(bench.store).read()].count("clock_jumped") == 1
    assert len(study.trials) == pytest.approx(len(undisturbed.trials), abs=1)
    spent = study.elapsed_seconds(study.last_event_at)
    assert spent == pytest.approx(undisturbed.elapsed_seconds(undisturbed.last_event_at), rel=0.1)


@pytest.mark.parametrize("during", ["run", "proposal", "check"])
def test_while_the_machine_sleeps_no_time_is_spent(during: str) -> None:
    bench = Bench(make_spec(parallel=2, time=600, refit_share=0.5))
    undisturbed = Bench(bench.spec).run()
    slept = 0.0

    def sleep() -> None:
        nonlocal slept
        if not slept:
            slept = 8 * 3600.0
            bench.clock.now += slept

    def train_and_sleep(request: TrainRequest) -> Result:
        if during == "run" and request.run.trial == 5:
            sleep()
        return train(request)

    class SleepySampler(SeededSampler):
        def propose(self, history: History, *, index: int, budget_epochs: int) -> Proposal:
            if during == "proposal" and index == 5:
                sleep()
            return super().propose(history, index=index, budget_epochs=budget_epochs)

    bench.sampler, began = SleepySampler(), bench.clock.now
    executor = bench.executor(train=train_and_sleep)
    if during == "check":
        sleep()
    study = bench.run(executor=executor, steady_clock=lambda: bench.clock.now - slept, began=began, ahead=0.0)
    assert slept
    assert [event.kind for event in Journal(bench.store).read()].count("clock_jumped") == 1
    assert study.resumes == 0
    assert len(study.trials) == pytest.approx(len(undisturbed.trials), rel=0.1)
    spent = study.elapsed_seconds(study.last_event_at)
    assert spent == pytest.approx(undisturbed.elapsed_seconds(undisturbed.last_event_at), rel=0.1)


def test_a_study_that_is_over_stays_as_it_is() -> None:
    bench = Bench(make_spec(iterations=1))
    bench.run()
    before = count_events(bench.store)
    bench.run()
    assert count_events(bench.store) == before


def test_a_spec_survives_its_own_json() -> None:
    spec = make_spec(iterations=1)
    assert StudySpec.model_validate_json(spec.model_dump_json()) == spec


def test_what_went_before_the_first_decision_is_part_of_the_budgets_time() -> None:
    epochs = []
    for ago in (0.0, 150.0):
        bench = Bench(make_spec(time=400, refit_share=0.5))
        study = bench.run(began=bench.clock() - ago)
        epochs.append(study.epochs_spent)
        assert study.elapsed_seconds(bench.clock()) == pytest.approx(400, rel=0.2)
    assert epochs[1] < 0.5 * epochs[0]

"""From a study to its summary."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

from automonai.domain.dataset import Dataset
from automonai.domain.facts import RunRecord
from automonai.domain.request import CaseScores, EnsembleResult, StudyData
from automonai.domain.run import CurvePoint, FailureReason, Origin, Purpose, Result, RunState, Trial
from automonai.domain.study import Study
from automonai.report.intervals import Interval, interval_of, interval_of_class_means
from automonai.report.summary import (
    CaseSummary,
    Comparison,
    DatasetSummary,
    EnsembleSummary,
    Failure,
    HeldOutScores,
    MemberSummary,
    Note,
    Optimism,
    Proposals,
    RunCounts,
    Spent,
    Summary,
    TrialSummary,
    Winner,
)
from automonai.report.words import counted, cut_short_words, own_network_words
from automonai.spec import Choice, IntegerRange, Ordered, RealRange


def summarise(study: Study, data: StudyData) -> Summary:
    """Return what the study came to so far; it may be in any phase."""
    test = _held_out(study, data)
    winner = _winner(study)
    ensemble = None if study.ensemble is None else _ensemble(study, study.ensemble, data.dataset)
    ended = study.ended
    return Summary(
        study=study.spec.name,
        phase=study.phase,
        succeeded=None if ended is None else ended.succeeded,
        stopped_because="" if ended is None else ended.why,
        search_stopped_because="" if study.search_ended is None else study.search_ended.why,
        refit_because=_refit_because(study),
        refitted_first=study.refit.runs[0].trial if study.refit is not None and study.refit.runs else None,
        started_at=study.started_at,
        sampler=study.spec.search.sampler.value,
        objective=study.spec.search.objective,
        searched=searched_names(study),
        rungs=study.rungs,
        dataset=_dataset(data),
        test=test,
        winner=winner,
        standard=_standard(study, winner),
        ensemble=ensemble,
        optimism=_optimism(winner, test),
        proposals=_proposals(study.trials.values()),
        runs=_run_counts(study),
        failures=_failures(study.runs.values()),
        budget=_spent(study),
        trials=_trials(study),
        software=dict(sorted(study.software.items())),
        devices=tuple(sorted({r.device for r in _results(study) if r.device})),
        notes=_notes(study, ensemble),
    )


def _refit_because(study: Study) -> str:
    if study.refit is None:
        return ""
    runs = study.refit.runs
    return f"{counted(len(runs), 'network')}, {study.refit.why}" if runs else f"none: {study.refit.why}"


def searched_names(study: Study) -> tuple[str, ...]:
    """Return the hyperparameters that the spec lets vary, in its order."""
    ranges = (IntegerRange, RealRange, Ordered, Choice)
    return tuple(name for name, entry in study.spec.search.space.items() if isinstance(entry, ranges))


def _dataset(data: StudyData) -> DatasetSummary:
    return DatasetSummary(
        name=data.dataset.name,
        channels=data.dataset.channels,
        classes=data.dataset.foreground,
        development_cases=len(data.split.development),
        test_cases=len(data.split.test),
        folds=len(data.split.folds),
    )


def _held_out(study: Study, data: StudyData) -> HeldOutScores | None:
    if study.ensemble is None or not study.ensemble.test:
        return None
    test, classes = study.ensemble.test, data.dataset.foreground
    mean = interval_of_class_means([[case.dice.get(value) for value in classes] for case in test])
    cases = [_case(case, classes) for case in test]
    return HeldOutScores(
        mean_dice=mean.mean,
        mean_dice_low=mean.low,
        mean_dice_high=mean.high,
        dice=_intervals([case.dice for case in test], classes),
        hd95_mm=_intervals([case.hd95_mm for case in test], classes, largest=math.inf),
        surface_dice=_intervals([case.surface_dice for case in test], classes),
        cases=tuple(sorted(cases, key=lambda c: (math.inf if c.mean_dice is None else c.mean_dice, c.case))),
    )


def _intervals(
    figures: list[dict[int, float | None]], classes: Mapping[int, str], *, largest: float = 1.0
) -> dict[str, Interval]:
    return {name: interval_of([of.get(value) for of in figures], largest=largest) for value, name in classes.items()}


def _case(scores: CaseScores, classes: Mapping[int, str]) -> CaseSummary:
    def by_name(figures: Mapping[int, float | None]) -> dict[str, float | None]:
        return {name: _finite(figures.get(value)) for value, name in classes.items()}

    defined = [d for d in by_name(scores.dice).values() if d is not None]
    return CaseSummary(
        case=scores.case,
        mean_dice=sum(defined) / len(defined) if defined else None,
        dice=by_name(scores.dice),
        hd95_mm=by_name(scores.hd95_mm),
        surface_dice=by_name(scores.surface_dice),
        overlay=scores.overlay,
    )


def _winner(study: Study) -> Winner | None:
    if study.incumbent is None:
        return None
    trial, result = study.incumbent
    if study.refit is not None and study.refit.runs:
        chosen = _heaviest(study.ensemble) if study.ensemble is not None else study.refit.runs[0].trial
        trial, result = next((t, r) for t, r in study.ranking if t.number == chosen)
    return Winner(
        trial=trial.number,
        configuration=trial.configuration,
        origin=trial.origin,
        budget_epochs=result.curve_epochs,
        loss=_finite(result.loss),
        dice=_finite(result.mean_dice),
        parameters=result.parameters,
        prediction_seconds_per_case=result.prediction_seconds_per_case,
    )


def _heaviest(ensemble: EnsembleResult) -> int:
    """Return the trial whose networks have most weight, the earlier one's of the candidates if two have."""
    weights: dict[int, float] = {}
    for member in ensemble.members:
        weights[member.trial] = weights.get(member.trial, 0.0) + member.weight
    most = max(weights.values())
    return next(trial for trial, weight in weights.items() if weight > most - 1e-9)


def longest_curves(study: Study) -> dict[int, tuple[CurvePoint, ...]]:
    """Return each trial's longest curve of the search, failed runs included."""
    curves: dict[int, tuple[CurvePoint, ...]] = {}
    for record in study.search_records():
        if record.result is not None and len(record.result.curve) >= len(curves.get(record.run.trial, ())):
            curves[record.run.trial] = record.result.curve
    return curves


def _standard(study: Study, winner: Winner | None) -> Comparison | None:
    standard = next((trial.number for trial in study.trials.values() if trial.origin is Origin.STANDARD), None)
    if winner is None or standard is None or standard == winner.trial:
        return None
    curves = longest_curves(study)
    dice = [{p.epoch: p.mean_dice for p in curves.get(trial, ())} for trial in (winner.trial, standard)]
    epochs = max(dice[0].keys() & dice[1].keys(), default=None)
    if epochs is None:
        return None
    return Comparison(trial=standard, epochs=epochs, winner_dice=dice[0][epochs], standard_dice=dice[1][epochs])


def _ensemble(study: Study, result: EnsembleResult, dataset: Dataset) -> EnsembleSummary:
    names = dataset.labels
    dice = {names[value]: dice for value, dice in result.validation_dice.items() if value in names}
    return EnsembleSummary(
        members=tuple(
            MemberSummary(
                run_id=m.run_id,
                trial=m.trial,
                fold=m.fold,
                weight=m.weight,
                is_refit=study.runs[m.run_id].run.purpose is Purpose.REFIT,
            )
            for m in sorted(result.members, key=lambda m: (-m.weight, m.run_id))
        ),
        largest_component=tuple(names.get(value, str(value)) for value in result.largest_component),
        validation_dice=dice,
        validation_mean_dice=sum(dice.values()) / len(dice) if dice else None,
        single_validation_dice=_finite(result.single_validation_dice),
        scored_cases=result.scored_cases,
        planned_cases=result.planned_cases,
        left_out=result.left_out,
        seconds=result.seconds,
    )


def _notes(study: Study, ensemble: EnsembleSummary | None) -> tuple[Note, ...]:
    """Return what the study noted, then what the choice of the ensemble, its last step, went without."""
    notes = [(at, text) for at, text in study.notes]
    if ensemble is not None:
        chosen_at = study.last_event_at if study.ended is None else study.ended.at
        texts = (own_network_words(ensemble), cut_short_words(ensemble), _left_out_words(ensemble))
        notes += [(chosen_at, text) for text in texts if text]
    return tuple(Note(seconds=study.elapsed_at(at), text=text) for at, text in notes)


def _left_out_words(ensemble: EnsembleSummary) -> str:
    if not ensemble.left_out:
        return ""
    names = " and ".join(f"trial {number}" for number in ensemble.left_out)
    return f"the ensemble was chosen without {names}, having no fold in common with the better configurations"


def _optimism(winner: Winner | None, test: HeldOutScores | None) -> Optimism | None:
    if winner is None or winner.dice is None or test is None or test.mean_dice is None:
        return None
    return Optimism(search_dice=winner.dice, test_dice=test.mean_dice, difference=winner.dice - test.mean_dice)


def _proposals(trials: Iterable[Trial]) -> Proposals:
    known = list(trials)
    origins = Counter(trial.origin for trial in known)
    budgets = Counter(t.model_budget_epochs for t in known if t.model_budget_epochs is not None)
    return Proposals(
        model=origins[Origin.MODEL],
        random=origins[Origin.RANDOM] + origins[Origin.WARM_UP],
        standard=origins[Origin.STANDARD],
        fallback=origins[Origin.FALLBACK],
        warm_up=origins[Origin.WARM_UP],
        grid=origins[Origin.GRID],
        model_budgets=dict(sorted(budgets.items())),
    )


def _run_counts(study: Study) -> RunCounts:
    states = Counter(record.state for record in study.runs.values())
    return RunCounts(
        complete=states[RunState.COMPLETE],
        failed=states[RunState.FAILED],
        lost=sum(record.losses for record in study.runs.values()) + study.ensemble_losses,
        open=sum(not record.state.is_final for record in study.runs.values()),
    )


def _failures(records: Iterable[RunRecord]) -> tuple[Failure, ...]:
    runs: dict[tuple[FailureReason, str], list[str]] = {}
    for record in records:
        result = record.result
        if result is not None and result.state is RunState.FAILED:
            cause = result.reason or FailureReason.BAD_CONFIGURATION
            runs.setdefault((cause, result.message), []).append(record.run.id)
    order = {cause: number for number, cause in enumerate(FailureReason)}
    failures = [Failure(cause=cause, message=message, runs=tuple(ids)) for (cause, message), ids in runs.items()]
    return tuple(sorted(failures, key=lambda f: (order[f.cause], -len(f.runs), f.runs[0])))


def _spent(study: Study) -> Spent:
    results = _results(study)
    peaks = [result.peak_memory_bytes for result in results if result.peak_memory_bytes is not None]
    if study.ensemble is not None and study.ensemble.peak_memory_bytes is not None:
        peaks.append(study.ensemble.peak_memory_bytes)
    budget, ended = study.spec.budget, study.search_ended
    return Spent(
        epochs=study.epochs_spent,
        refit_epochs=sum(r.epochs for r in results) - study.epochs_spent,
        seconds=study.elapsed_seconds(study.last_event_at),
        search_seconds=None if ended is None else study.elapsed_at(ended.at),
        run_seconds=sum(r.seconds for r in results),
        peak_memory_bytes=max(peaks, default=None),
        limit_iterations=budget.iterations,
        limit_epochs=budget.epochs,
        limit_seconds=budget.time,
    )


def _results(study: Study) -> list[Result]:
    return [record.result for record in study.runs.values() if record.result is not None]


def _trials(study: Study) -> tuple[TrialSummary, ...]:
    ranked = {trial.number: rank for rank, (trial, _) in enumerate(study.ranking, start=1)}
    last = {trial.number: result for trial, result in study.ranking}
    results: dict[int, list[Result]] = {number: [] for number in study.trials}
    for record in study.search_records():
        if record.result is not None:
            results.setdefault(record.run.trial, []).append(record.result)
    trials = [
        _trial(trial, ranked.get(number), last.get(number), results[number], refit=_refit_state(study, number))
        for number, trial in study.trials.items()
    ]
    return tuple(sorted(trials, key=lambda t: (t.rank is None, t.rank or 0, t.trial)))


def _refit_state(study: Study, trial: int) -> Literal["open", "complete", "failed"] | None:
    runs = [run.id for run in study.refit.runs if run.trial == trial] if study.refit else []
    if any(run in study.runs and study.runs[run].state is RunState.COMPLETE for run in runs):
        return "complete"
    if not all(study.is_final(run) for run in runs):
        return "open"
    return "failed" if runs else None


def _trial(
    trial: Trial,
    rank: int | None,
    last: Result | None,
    results: list[Result],
    *,
    refit: Literal["open", "complete", "failed"] | None,
) -> TrialSummary:
    failures = [result.reason for result in results if result.reason is not None]
    return TrialSummary(
        trial=trial.number,
        rank=rank,
        origin=trial.origin,
        model_budget_epochs=trial.model_budget_epochs,
        bracket=trial.bracket,
        budget_epochs=last.curve_epochs if last else 0,
        loss=_finite(last.loss) if last else None,
        dice=_finite(last.mean_dice) if last else None,
        epochs=sum(result.epochs for result in results),
        seconds=sum(result.seconds for result in results),
        failure=failures[-1] if failures else None,
        refit=refit,
        configuration=trial.configuration,
    )


def _finite(value: float | None) -> float | None:
    """Return None for what JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None

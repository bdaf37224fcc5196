"""Studies whose every figure is invented, drawn from fixed seeds, and driven by the real state machine."""

import io
import math
from dataclasses import dataclass

import matplotlib.image
import numpy as np
import pytest

from automonai.domain.configuration import Configuration
from automonai.domain.dataset import Case, Dataset, Layout, Split
from automonai.domain.decisions import (
    ChooseEnsemble,
    ChooseRefit,
    EndSearch,
    EndStudy,
    Propose,
    Queue,
    next_action,
)
from automonai.domain.events import (
    EnsembleFinished,
    EnsembleQueued,
    Event,
    RefitChosen,
    RunFinished,
    RunLost,
    RunQueued,
    SearchEnded,
    SessionStarted,
    StudyEnded,
    StudyStarted,
    TrialProposed,
)
from automonai.domain.fingerprint import CaseFacts, ChannelFacts, Fingerprint
from automonai.domain.request import CaseScores, EnsembleMember, EnsembleResult, StudyData
from automonai.domain.run import (
    CurvePoint,
    FailureReason,
    LossCause,
    Origin,
    Purpose,
    Result,
    Run,
    RunState,
    Trial,
)
from automonai.domain.study import Study
from automonai.spec import BudgetSpec, SearchSpec, StudySpec
from automonai.storage import keys
from automonai.storage.memory import MemoryStore

START = 1_760_000_000.0
CLASSES = {1: "Hippocampus anterior", 2: "Hippocampus posterior", 3: "Lesion"}
FAILING = {
    6: (FailureReason.NON_FINITE_LOSS, "the loss became nan in epoch 3, step 41"),
    11: (FailureReason.TOO_SLOW, "predicted 97.2 s per epoch, the cap is 60 s"),
    17: (FailureReason.OUT_OF_MEMORY, "CUDA out of memory: tried to allocate 2.00 GiB, peak 14.8 GiB"),
    19: (FailureReason.DOES_NOT_FIT, "needs 23.4 GiB, the device has 15.9 GiB"),
    22: (FailureReason.BAD_CONFIGURATION, "6 levels halve a side of 24 voxels below 1"),
    25: (FailureReason.LOST, "lost 4 times: the worker was killed by signal 9"),
    31: (FailureReason.NON_FINITE_LOSS, "the loss became nan in epoch 3, step 41"),
}
SOFTWARE = {"automonai": "0.1.0", "monai": "1.6.1", "python": "3.11.2", "torch": "2.13.0"}


@dataclass
class Told:
    """A study, its data, its store and the events that it was told."""

    study: Study
    data: StudyData
    store: MemoryStore
    events: list[Event]


class Narrator:
    """Answers what a study asks for, with one slot, until a limit of events or the study's end."""

    def __init__(self, spec: StudySpec, classes: dict[int, str], test_cases: int, scored_cases: int) -> None:
        self.now = START
        self.scored_cases = scored_cases
        self.data = make_data(classes, test_cases)
        self.store = MemoryStore()
        self.events: list[Event] = []
        self.study = Study.replay([self._record(StudyStarted(at=START, spec=spec, software=SOFTWARE))])
        self.tell(SessionStarted(at=START, host="workstation", process=4711))

    def _record(self, event: Event) -> Event:
        self.events.append(event)
        return event

    def tell(self, event: Event) -> None:
        self.study.apply(self._record(event))

    def told(self) -> Told:
        return Told(self.study, self.data, self.store, self.events)

    def answer(self, action: object, failing: dict[int, tuple[FailureReason, str]]) -> None:
        match action:
            case Propose():
                self._propose(action)
            case Queue():
                self._run(action, failing)
            case EndSearch():
                self.tell(SearchEnded(at=self.now, why=action.why))
            case ChooseRefit():
                self._choose_refit()
            case ChooseEnsemble():
                self._ensemble(action.candidates)
            case EndStudy():
                self.tell(StudyEnded(at=self.now, succeeded=action.succeeded, why=action.why))

    def _propose(self, action: Propose) -> None:
        number = action.trial
        origin, budget, note = origin_of(number)
        trial = Trial(
            number=number,
            configuration=configuration_of(number),
            origin=origin,
            bracket=action.bracket,
            model_budget_epochs=budget,
        )
        self.tell(TrialProposed(at=self.now, trial=trial, note=note))

    def _run(self, action: Queue, failing: dict[int, tuple[FailureReason, str]]) -> None:
        run, known = action.run, self.study.runs.get(action.run.id)
        self.tell(RunQueued(at=self.now, run=run, resume_from=action.resume_from))
        if run.trial % 13 == 9 and known is None and run.purpose is Purpose.SEARCH:
            self.now += 20
            self.tell(RunLost(at=self.now, run_id=run.id, cause=LossCause.CRASH, why="its process ended by signal 9"))
            return
        failure = failing.get(run.trial) if run.purpose is Purpose.SEARCH else None
        trial = self.study.trials[run.trial]
        result = result_of(run, trial.configuration, list(self.data.dataset.foreground), failure)
        self.now += result.seconds
        self.tell(RunFinished(at=self.now, run=run, result=result))

    def _choose_refit(self) -> None:
        chosen = [trial.number for trial, _ in self.study.ranking[:2]]
        runs = tuple(
            Run(trial=number, budget_epochs=200, fold=fold, purpose=Purpose.REFIT)
            for fold in range(3)
            for number in chosen
        )
        self.tell(RefitChosen(at=self.now, runs=runs, why="200 epochs each" if runs else "no run completed"))

    def _ensemble(self, candidates: tuple[str, ...]) -> None:
        self.tell(EnsembleQueued(at=self.now, candidates=candidates))
        weights = (0.4, 0.3, 0.2, 0.1)
        runs = [self.study.runs[run_id].run for run_id in candidates[:4]]
        members = tuple(
            EnsembleMember(
                run_id=run.id,
                trial=run.trial,
                fold=run.fold,
                weight=weight,
                checkpoint=keys.checkpoint_manifest(run.id),
            )
            for run, weight in zip(runs, weights, strict=False)
        )
        classes = list(self.data.dataset.foreground)
        self.now += 94
        result = EnsembleResult(
            members=members,
            largest_component=(classes[0],),
            validation_dice={value: 0.893 - 0.01 * k for k, value in enumerate(classes)},
            single_validation_dice=0.871,
            scored_cases=self.scored_cases,
            planned_cases=96,
            test=scores_of(self.data.split.test, classes, self.store),
            seconds=94.0,
            peak_memory_bytes=2**31,
        )
        self.tell(EnsembleFinished(at=self.now, result=result))


def tell(
    *,
    classes: dict[int, str] | None = None,
    test_cases: int = 42,
    scored_cases: int = 96,
    iterations: int = 4,
    events: int | None = None,
    failing: dict[int, tuple[FailureReason, str]] | None = None,
    search: SearchSpec | None = None,
) -> Told:
    """Return a study told to its end, or until so many events."""
    spec = StudySpec(
        name="hippocampus-one-hour",
        dataset="data/hippocampus",
        search=search or SearchSpec(seed=8),
        budget=BudgetSpec(iterations=iterations, time=7200, max_seconds_per_epoch=60, refit_share=0.1),
    )
    narrator = Narrator(spec, classes or CLASSES, test_cases, scored_cases)
    while not narrator.study.ended and (events is None or len(narrator.events) < events):
        action = next_action(narrator.study, narrator.now)
        narrator.answer(action, FAILING if failing is None else failing)
    return narrator.told()


def origin_of(number: int) -> tuple[Origin, int | None, str]:
    if number == 0:
        return Origin.STANDARD, None, ""
    if number < 22:
        return Origin.WARM_UP, None, ""
    if number == 29:
        return Origin.FALLBACK, None, "the model failed (singular matrix); drawn at random instead"
    if number % 3 == 1:
        return Origin.RANDOM, None, ""
    return Origin.MODEL, 7 if number < 38 else 22, ""


def configuration_of(number: int) -> Configuration:
    generator = np.random.default_rng(1000 + number)
    if number == 0:
        return Configuration()
    return Configuration(
        depth=int(generator.integers(2, 7)),
        channels=int(generator.choice([8, 16, 32, 64, 128])),
        channel_multiplier=round(float(generator.uniform(0.5, 3.0)), 3),
        convolution=str(generator.choice(["2d", "3d"])),
        convolutions_per_layer=int(generator.integers(0, 4)),
        normalisation=str(generator.choice(["none", "zscore", "percentile_zscore", "minmax"])),
        resampling=str(generator.choice(["none", "mean", "median"])),
        loss=str(
            generator.choice(["dice", "generalised_dice", "dice_ce", "dice_hausdorff", "dice_topk", "dice_focal"])
        ),
        first_stride=int(generator.integers(1, 3)),
        flips=str(generator.choice(["none", "left_right", "all"])),
    )


def quality_of(configuration: Configuration) -> float:
    """Return the Dice that a configuration would reach in the end."""
    loss = {"dice_hausdorff": 0.05, "generalised_dice": 0.04, "dice": 0.015}.get(configuration.loss, 0.0)
    return (
        0.89
        - 0.09 * (configuration.convolution == "2d")
        - 0.03 * abs(configuration.depth - 4)
        - loss
        - 0.06 * (configuration.normalisation == "none")
        - 0.02 * (configuration.first_stride == 2)
        - 0.012 * (configuration.flips == "all")
    )


def result_of(
    run: Run,
    configuration: Configuration,
    classes: list[int],
    failure: tuple[FailureReason, str] | None,
) -> Result:
    generator = np.random.default_rng(run.trial)
    cost = 0.15 * (1 + 0.6 * configuration.depth) * (configuration.channels / 16) ** 0.4
    added = run.budget_epochs if run.purpose is Purpose.REFIT else max(1, round(run.budget_epochs * 2 / 3))
    if failure is not None:
        return Result(
            run_id=run.id,
            state=RunState.FAILED,
            reason=failure[0],
            message=failure[1],
            epochs=2,
            seconds=2 * cost,
            device="cpu",
        )
    top, speed = quality_of(configuration), generator.uniform(6, 14)
    epochs = sorted({*range(5, run.budget_epochs, 5), run.budget_epochs})
    curve = []
    for epoch in epochs:
        mean = top * (1 - math.exp(-(epoch + 4) / speed)) + 0.02 * generator.normal() / math.sqrt(epoch)
        mean = min(0.97, max(0.01, mean))
        curve.append(
            CurvePoint(
                epoch=epoch,
                seconds=epoch * cost,
                training_loss=1 - 0.95 * mean,
                validation_loss=1 - mean,
                dice={value: mean + 0.01 * (len(classes) // 2 - k) for k, value in enumerate(classes)},
            )
        )
    return Result(
        run_id=run.id,
        state=RunState.COMPLETE,
        loss=1 - curve[-1].mean_dice,
        curve=tuple(curve),
        epochs=added,
        seconds=added * cost + 2.5,
        seconds_per_epoch=cost,
        prediction_seconds_per_case=0.12,
        peak_memory_bytes=int(2**30 * (0.5 + configuration.channels / 64)),
        parameters=1000 * configuration.channels * configuration.depth,
        checkpoint=keys.checkpoint_manifest(run.id),
        device="cpu",
    )


def scores_of(cases: tuple[str, ...], classes: list[int], store: MemoryStore) -> tuple[CaseScores, ...]:
    generator = np.random.default_rng(5)
    rows = []
    for number, case in enumerate(cases):
        dice: dict[int, float | None] = {
            value: float(np.clip(0.89 - 0.015 * k - generator.gamma(1.2, 0.018), 0, 1))
            for k, value in enumerate(classes)
        }
        hd95: dict[int, float | None] = {value: 0.6 + 8 * (0.92 - (d or 0)) for value, d in dice.items()}
        surface: dict[int, float | None] = {value: min(1.0, (d or 0) + 0.07) for value, d in dice.items()}
        if number % 4 == 1 and len(classes) > 2:
            dice[classes[2]] = hd95[classes[2]] = surface[classes[2]] = None
        rows.append(CaseScores(case=case, dice=dice, hd95_mm=hd95, surface_dice=surface))
    worst = sorted(rows, key=lambda row: np.mean([d for d in row.dice.values() if d is not None]))[:4]
    for row in worst:
        store.put(f"ensemble/overlays/{row.case}.png", overlay_png(len(row.case)))
    keyed = {row.case for row in worst}
    return tuple(
        row.model_copy(update={"overlay": f"ensemble/overlays/{row.case}.png"}) if row.case in keyed else row
        for row in rows
    )


def overlay_png(seed: int) -> bytes:
    """Return a picture of three square panels side by side: image, reference, prediction."""
    size = 96
    y, x = np.mgrid[0:size, 0:size] - size / 2
    noise = np.random.default_rng(seed).normal(0, 0.05, (size, size))
    grey = np.clip(0.75 - np.hypot(x, y) / size + noise, 0, 1)
    panels = [np.repeat(grey[..., None], 3, axis=2) for _ in range(3)]
    panels[1][np.hypot(x - 5, y) < 16] = (0.0, 0.45, 0.7)
    panels[2][np.hypot(x - 2, y + 3) < 15] = (0.9, 0.6, 0.0)
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, np.concatenate(panels, axis=1), format="png", metadata={"Software": None})
    return buffer.getvalue()


def make_data(classes: dict[int, str], test_cases: int) -> StudyData:
    ids = [f"hippocampus_{number:03d}" for number in range(test_cases + 168)]
    dataset = Dataset(
        name="Task04_Hippocampus",
        root="data/hippocampus",
        layout=Layout.MSD,
        channels=("MRI",),
        labels={0: "background", **classes},
        cases=tuple(Case(id=i, images=(f"imagesTr/{i}.nii.gz",), label=f"labelsTr/{i}.nii.gz") for i in ids),
    )
    development = ids[test_cases:]
    split = Split(seed=0, test=tuple(ids[:test_cases]), folds=tuple(tuple(development[k::4]) for k in range(4)))
    facts = ChannelFacts(minimum=0, maximum=255, mean=90, std=30, percentile_00_5=2, percentile_99_5=240)
    case = CaseFacts(
        id=development[0],
        shape_voxels=(35, 51, 35),
        spacing_mm=(1.0, 1.0, 1.0),
        box_start=(0, 0, 0),
        box_shape=(35, 51, 35),
        channels=(facts,),
        class_voxels={0: 60000, 1: 1500, 2: 1400},
    )
    spec = StudySpec(name="x", dataset="x", budget=BudgetSpec(iterations=1))
    return StudyData(
        dataset=dataset,
        split=split,
        fingerprint=Fingerprint(cases=(case,)),
        training=spec.training,
        execution=spec.execution,
    )


@pytest.fixture(scope="session")
def tell_study():
    """Return the function that tells a study."""
    return tell


@pytest.fixture(scope="session")
def finished() -> Told:
    """Return a whole BOHB study: 46 trials, failures of each cause, three classes, 42 test cases."""
    return tell()


@pytest.fixture(scope="session")
def halfway() -> Told:
    """Return a study in the middle of its search."""
    return tell(events=60)


@pytest.fixture(scope="session")
def fresh() -> Told:
    """Return a study that has only started."""
    return tell(events=2)


@pytest.fixture(scope="session")
def failed() -> Told:
    """Return a study in which nothing could be trained."""
    return tell(iterations=1, failing={n: (FailureReason.OUT_OF_MEMORY, "peak 14.8 GiB") for n in range(99)})


@pytest.fixture(scope="session")
def untested() -> Told:
    """Return a finished study without test cases, whose ensemble was chosen in a hurry."""
    return tell(test_cases=0, scored_cases=12, iterations=1)


AWKWARD_CLASSES = {
    number: f"<b>{name}</b> & $x^2$ of the right upper lobe, segment {number}" if number % 3 == 0 else name
    for number, name in enumerate(
        (
            "Aorta",
            "Left ventricle of the heart including papillary muscles and trabeculations",
            "Oesophagus",
            "Spleen",
            "Portal_vein_and_splenic_vein_without_any_space_to_break_the_line",
            "Gallbladder",
            "Liver",
            "Stomach",
            "Pancreas",
            "Right adrenal gland",
            "Left adrenal gland",
            "Inferior vena cava",
        ),
        start=1,
    )
}


@pytest.fixture(scope="session")
def awkward() -> Told:
    """Return a finished study of twelve classes whose names are long and hold markup."""
    return tell(classes=AWKWARD_CLASSES, iterations=1)

"""Small studies without data: records and fakes that several tests share."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from automonai.controller import Controller, run_study
from automonai.domain.configuration import Configuration
from automonai.domain.dataset import Case, Dataset, Layout, Split
from automonai.domain.events import StudyStarted
from automonai.domain.fingerprint import CaseFacts, ChannelFacts, Fingerprint
from automonai.domain.request import (
    EnsembleMember,
    EnsembleRequest,
    EnsembleResult,
    StudyData,
    TrainRequest,
)
from automonai.domain.run import CurvePoint, Origin, Result, RunState
from automonai.domain.study import Study
from automonai.execution.fake import FakeExecutor, VirtualClock
from automonai.search.sampler import History, Proposal, Sampler
from automonai.spec import BudgetSpec, ExecutionSpec, StudySpec
from automonai.storage import keys
from automonai.storage.journal import Journal
from automonai.storage.memory import MemoryStore
from automonai.storage.store import Store

CHANNEL = ChannelFacts(minimum=0, maximum=100, mean=50, std=20, percentile_00_5=1, percentile_99_5=99)


def make_spec(*, parallel: int = 1, **budget: object) -> StudySpec:
    limits: dict[str, object] = {"min_epochs": 1, "max_epochs": 9, **(budget or {"iterations": 3})}
    return StudySpec(
        name="test",
        dataset="nowhere",
        budget=BudgetSpec.model_validate(limits),
        execution=ExecutionSpec(max_parallel_runs=parallel),
    )


def make_data(spec: StudySpec, *, test_cases: int = 2) -> StudyData:
    ids = [f"case-{number}" for number in range(8 + test_cases)]
    facts = tuple(
        CaseFacts(
            id=case_id,
            shape_voxels=(32, 32, 32),
            spacing_mm=(1.0, 1.0, 1.0),
            box_start=(0, 0, 0),
            box_shape=(32, 32, 32),
            channels=(CHANNEL,),
            class_voxels={0: 30000, 1: 2768},
        )
        for case_id in ids[:8]
    )
    cases = tuple(Case(id=i, images=(f"imagesTr/{i}.nii.gz",), label=f"labelsTr/{i}.nii.gz") for i in ids)
    dataset = Dataset(
        name="Test",
        root="nowhere",
        layout=Layout.MSD,
        channels=("MR",),
        labels={0: "background", 1: "organ"},
        cases=cases,
    )
    folds = tuple(tuple(ids[k:8:4]) for k in range(4))
    return StudyData(
        dataset=dataset,
        split=Split(seed=0, test=tuple(ids[8:]), folds=folds),
        fingerprint=Fingerprint(cases=facts),
        training=spec.training,
        execution=spec.execution,
    )


class SeededSampler:
    """Draws from a seed and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def propose(self, history: History, *, index: int, budget_epochs: int) -> Proposal:
        self.asked.append((index, budget_epochs, len(history.observations)))
        draw = random.Random(f"{index}/{len(history.observations)}")
        configuration = Configuration(
            channels=draw.choice([8, 16, 32]), channel_multiplier=round(draw.uniform(0.5, 3), 4)
        )
        return Proposal(configuration=configuration, origin=Origin.RANDOM if index else Origin.STANDARD)


def train(request: TrainRequest) -> Result:
    """Answer as a training would: better with more epochs, best at a multiplier of 2."""
    epochs = request.run.budget_epochs
    loss = round(0.1 + abs(request.configuration.channel_multiplier - 2) / 3 + 0.2 / epochs, 6)
    return Result(
        run_id=request.run_id,
        state=RunState.COMPLETE,
        loss=loss,
        epochs=epochs,
        seconds=float(epochs),
        seconds_per_epoch=1.0,
        checkpoint=keys.checkpoint_manifest(request.run_id),
        curve=(
            CurvePoint(
                epoch=epochs, seconds=float(epochs), training_loss=loss, validation_loss=loss, dice={1: 1 - loss}
            ),
        ),
    )


def choose(request: EnsembleRequest) -> EnsembleResult:
    members = tuple(
        EnsembleMember(
            run_id=member.run_id,
            trial=member.trial,
            fold=member.fold,
            weight=1 / len(request.candidates),
            checkpoint=member.checkpoint,
        )
        for member in request.candidates
    )
    return EnsembleResult(members=members)


@dataclass
class Bench:
    """A study in memory with everything that runs it."""

    spec: StudySpec
    store: Store = field(default_factory=MemoryStore)
    sampler: Sampler = field(default_factory=SeededSampler)
    clock: VirtualClock = field(default_factory=lambda: VirtualClock(1000.0))
    memory_bytes: int | None = None

    def executor(self, **options: object) -> FakeExecutor:
        settings: dict[str, object] = {
            "train": train,
            "choose": choose,
            "seconds": seconds_of,
            "slots": self.spec.execution.max_parallel_runs,
            **options,
        }
        return FakeExecutor(store=self.store, clock=self.clock, **settings)  # type: ignore[arg-type]

    def run(self, executor: FakeExecutor | None = None, journal: Journal | None = None, **options: Any) -> Study:
        """Start the study or take it up, and see it through; the options are the controller's."""
        journal = journal or Journal(self.store)
        events = journal.read()
        if not events:
            started = StudyStarted(at=self.clock(), spec=self.spec)
            journal.append(started)
            events = [started]
        controller = Controller(
            study=Study.replay(events),
            data=make_data(self.spec),
            store=self.store,
            journal=journal,
            sampler=self.sampler,
            executor=executor or self.executor(),
            memory_bytes=self.memory_bytes,
            clock=self.clock,
            **options,
        )
        return run_study(controller)


def seconds_of(request: TrainRequest | EnsembleRequest) -> float:
    return float(request.run.budget_epochs) if isinstance(request, TrainRequest) else 1.0

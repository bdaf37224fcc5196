"""One study in one store, carried on by one machine, by the cluster, and by one machine again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from cluster_study import has_gone_on
from real_cluster import DATASET, eventually, phase, store_on_this_machine, submit, wait_for_end

from automonai.cli import main
from automonai.domain.events import (
    EnsembleFinished,
    EnsembleQueued,
    Event,
    RunFinished,
    RunLost,
    RunQueued,
    SearchEnded,
    SessionStarted,
    StudyEnded,
    TrialProposed,
)
from automonai.domain.run import Run
from automonai.storage import keys
from automonai.storage.journal import Journal
from automonai.storage.opening import open_store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "automonai.cli")
LOCATION = "s3://automonai/studies/moved"
LOW, HIGH = 200, 400
SPEC = f"""
name: moved
dataset: {DATASET}
store: s3://automonai/studies
split: {{test: 0.25, folds: 2}}
search:
  seed: 3
  space: {{depth: 2, channels: {{type: ordinal, values: [4, 8]}}, loss: {{type: categorical, values: [dice, dice_ce]}}}}
  standard: {{depth: 2, channels: 4}}
budget: {{iterations: 1, min_epochs: {LOW}, max_epochs: {HIGH}, eta: 2}}
refit: {{epochs: 20}}
training: {{max_patch_voxels: 4096, validation_every_epochs: 1}}
execution: {{device: cpu, threads: 1, max_parallel_runs: 1}}
"""
"""Two trials, one of them promoted, its two refits and the ensemble, one at a time; a trial works for some 20 s."""
FIRST, SECOND = Run(trial=0, budget_epochs=LOW), Run(trial=1, budget_epochs=LOW)
DECISIONS = (TrialProposed, RunQueued, RunFinished, SearchEnded, EnsembleQueued, EnsembleFinished, StudyEnded)


@pytest.fixture(scope="module")
def beside(release: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """Start the same study here, to run undisturbed beside the one that is moved; give its folder and process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(SPEC) | {"store": str(folder)}))
    with pytest.MonkeyPatch.context() as monkeypatch, store_on_this_machine(release, monkeypatch):
        process = subprocess.Popen([*COMMAND, "search", str(path)], cwd=ROOT)
        yield folder / "moved", process
        process.kill()


@pytest.fixture(scope="module")
def moved(release: str, beside: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Event]]:
    """Stop the study in the middle of its first run here, of its second on the cluster, and end it here."""
    path = tmp_path_factory.mktemp("moved") / "study.yaml"
    path.write_text(SPEC)
    with pytest.MonkeyPatch.context() as monkeypatch, store_on_this_machine(release, monkeypatch):
        monkeypatch.setenv("AUTOMONAI_NAMESPACE", release)
        search_until_it_learns(path, FIRST)
        workflow = submit(release, {"name": "moved", "gpus-per-run": "0", "spec": SPEC})
        eventually(lambda: learns(SECOND), f"{SECOND.id} has a checkpoint", seconds=300)
        assert main(["stop", LOCATION]) == 0
        wait_for_end(release, workflow, seconds=200)
        assert phase(release, workflow) in ("Succeeded", "Failed")
        assert not open_store(LOCATION).exists(keys.result(SECOND.id)), "the run ended before it could be stopped"
        assert main(["search", str(path)]) == 0
        yield events_of(LOCATION)


@pytest.fixture(scope="module")
def undisturbed(beside: tuple[Path, subprocess.Popen[bytes]]) -> list[Event]:
    study, process = beside
    assert process.wait(timeout=600) == 0
    return events_of(str(study))


def test_its_journal_is_the_one_of_an_undisturbed_study(moved: list[Event], undisturbed: list[Event]) -> None:
    assert decisions(moved) == decisions(undisturbed)


def test_three_sessions_share_the_work(moved: list[Event], undisturbed: list[Event]) -> None:
    hosts = [event.host for event in moved if isinstance(event, SessionStarted)]
    assert len(hosts) == 3
    assert hosts[0] == hosts[2] != hosts[1]
    assert len([event for event in undisturbed if isinstance(event, SessionStarted)]) == 1


def test_no_run_is_lost_or_repeated(moved: list[Event]) -> None:
    assert not [event for event in moved if isinstance(event, RunLost)]
    for kind in (RunQueued, RunFinished):
        runs = [event.run.id for event in moved if isinstance(event, kind)]
        assert len(runs) == len(set(runs))


def test_what_was_learnt_elsewhere_is_gone_on_with(moved: list[Event], undisturbed: list[Event]) -> None:
    assert losses(moved) == pytest.approx(losses(undisturbed), abs=1e-4)
    results = {event.run.id: event.result for event in moved if isinstance(event, RunFinished)}
    assert has_gone_on(FIRST, results[FIRST.id])
    assert has_gone_on(SECOND, results[SECOND.id])


def search_until_it_learns(spec: Path, run: Run) -> None:
    """Search on this machine, and press Ctrl-C once a run has a checkpoint."""
    process = subprocess.Popen(
        [*COMMAND, "search", str(spec)],
        cwd=ROOT,
        env=dict(os.environ),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background programs ignore it
    )
    try:
        eventually(lambda: learns(run) or process.poll() is not None, f"{run.id} has a checkpoint")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "nothing is lost" in errors
    assert not open_store(LOCATION).exists(keys.result(run.id)), "the run ended before it could be stopped"


def learns(run: Run) -> bool:
    return open_store(LOCATION).exists(keys.checkpoint_manifest(run.id))


def events_of(location: str) -> list[Event]:
    return Journal(open_store(location)).read()


def decisions(events: list[Event]) -> list[object]:
    """Return what was decided, in order: all but times, and figures that the last digit may differ in."""
    decided: list[object] = []
    for event in events:
        if isinstance(event, RunFinished):
            decided.append((event.kind, event.run.id, event.result.state))
        elif isinstance(event, EnsembleFinished):
            decided.append((event.kind, [member.run_id for member in event.result.members]))
        elif isinstance(event, DECISIONS):
            decided.append(event.model_dump(exclude={"at"}))
    return decided


def losses(events: list[Event]) -> dict[str, float | None]:
    return {event.run.id: event.result.loss for event in events if isinstance(event, RunFinished)}

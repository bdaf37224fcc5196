"""Real processes, real training, kill -9: what comes out must be what an undisturbed search gives."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from automonai import api
from automonai.domain.study import Study
from automonai.storage.journal import Journal
from automonai.storage.local import LocalStore

SPEC = """
name: {name}
dataset: {dataset}
store: {store}
split: {{test: 0.25, folds: 2}}
search:
  sampler: bohb
  seed: 3
  space:
    depth: 2
    channels: {{type: ordinal, values: [4, 8]}}
    convolutions_per_layer: {{type: integer, low: 0, high: 1}}
    loss: {{type: categorical, values: [dice, dice_ce]}}
  standard: {{depth: 2, channels: 4}}
budget: {{iterations: 2, min_epochs: 1, max_epochs: 3, eta: 3}}
training: {{max_patch_voxels: 4096, validation_every_epochs: 1}}
execution: {{max_parallel_runs: 1, threads: 1, device: cpu, max_retries: 20}}
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return api.phantom(tmp_path_factory.mktemp("data") / "phantom", cases=8, shape=(24, 24, 20))


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    store = tmp_path_factory.mktemp("undisturbed")
    controller = start(write_spec(store, dataset))
    output, _ = controller.communicate(timeout=280)
    assert controller.returncode == 0, output.decode()
    return story(store / "kill")


def write_spec(store: Path, dataset: Path) -> Path:
    path = store / "study.yaml"
    path.write_text(SPEC.format(name="kill", dataset=dataset, store=store))
    return path


def start(spec: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "automonai.cli", "search", str(spec)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    )


def heed_ctrl_c() -> None:
    """Undo what a shell does to programs that it starts in the background: they ignore SIGINT, and so would theirs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def story(folder: Path) -> dict[str, object]:
    study = Study.replay(Journal(LocalStore(folder)).read())
    assert study.ensemble is not None
    return {
        "trials": [trial.model_dump() for trial in study.trials.values()],
        "losses": {run_id: study.runs[run_id].result.loss for run_id in study.finished},
        "members": [(member.run_id, member.weight) for member in study.ensemble.members],
        "test": [scores.dice for scores in study.ensemble.test],
    }


def workers_of(controller: subprocess.Popen[bytes]) -> list[int]:
    children = Path(f"/proc/{controller.pid}/task/{controller.pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def wait_for_events(controller: subprocess.Popen[bytes], count: int) -> bool:
    """Read that many of the controller's lines; False if it ended before."""
    assert controller.stdout is not None
    return all(controller.stdout.readline() for _ in range(count))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_controller_killed_again_and_again_ends_with_the_undisturbed_study(
    dataset: Path, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    spec, draw = write_spec(tmp_path, dataset), random.Random(1)
    for _ in range(4):
        controller = start(spec)
        assert wait_for_events(controller, draw.randint(3, 6))
        controller.kill()
        controller.communicate()
    controller = start(spec)
    output, _ = controller.communicate(timeout=280)
    assert controller.returncode == 0, output.decode()
    assert story(tmp_path / "kill") == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_killed_in_mid_run_are_replaced_and_their_runs_end_alike(
    dataset: Path, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    spec, draw, killed = write_spec(tmp_path, dataset), random.Random(2), 0
    controller = start(spec)
    for _ in range(3):
        assert wait_for_events(controller, draw.randint(4, 6))
        for worker in workers_of(controller):
            os.kill(worker, signal.SIGKILL)
            killed += 1
    output, _ = controller.communicate(timeout=280)
    assert controller.returncode == 0, output.decode()
    assert killed
    assert story(tmp_path / "kill") == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_leaves_a_study_that_goes_on(dataset: Path, undisturbed: dict[str, object], tmp_path: Path) -> None:
    spec = write_spec(tmp_path, dataset)
    controller = start(spec)
    assert wait_for_events(controller, 6)
    os.kill(controller.pid, signal.SIGINT)
    output, _ = controller.communicate(timeout=60)
    assert controller.returncode == 130, output.decode()
    assert re.search(rb"automonai search", output)
    controller = start(spec)
    controller.communicate(timeout=280)
    assert story(tmp_path / "kill") == undisturbed

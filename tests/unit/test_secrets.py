"""The store's keys stand in the environment of every process; nothing that a study writes or shows may hold them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pytest.importorskip("urllib3", reason="needs the extra automonai[cluster]")
pytest.importorskip("pythonjsonlogger", reason="needs the extra automonai[cluster]")
from fake_cluster import FakeCluster, Object
from studies import choose, make_data, train

import automonai.worker
from automonai.cli import main
from automonai.domain.events import StudyStarted
from automonai.domain.request import EnsembleRequest, EnsembleResult, TrainRequest
from automonai.domain.run import Result
from automonai.execution import cluster_api
from automonai.parameters import StudyParameters, study_spec
from automonai.storage import keys
from automonai.storage.journal import Journal
from automonai.storage.local import LocalStore

KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIA0TEST0OF0SECRETS",
    "AWS_SECRET_ACCESS_KEY": "the/secret+key/of=the=test",
    "AWS_SESSION_TOKEN": "the/session+token/of=the=test",
}
SPEC = "budget: {iterations: 1, min_epochs: 1, max_epochs: 3}\nsplit: {folds: 2}\n"
FORM = {"name": "brain", "dataset": "nowhere", "sampler": "random", "spec": SPEC}
JOB_TEMPLATE = {"image": "trainer:1", "env_from_secrets": ["automonai-s3"], "env": {"OMP_NUM_THREADS": "1"}}


@pytest.fixture(autouse=True)
def keys_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


def found_in(text: str) -> list[str]:
    """Return the names of the keys that a text holds, as they are or as JSON, YAML or a URL would write them."""
    return [name for name, value in KEYS.items() if value in text or value.replace("/", "%2F") in text]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """Give a cluster whose pods run the real worker, except for the training."""
    cluster = FakeCluster()
    store = LocalStore(tmp_path / "studies" / "brain")

    def play(job: Object) -> None:
        run_id = job["metadata"]["labels"]["automonai/run"]
        pod = cluster.start_pod(job)
        code = automonai.worker.serve(run_id, store=store, cache_folder=tmp_path, stop=threading.Event())
        cluster.end_pod(pod, code)

    cluster.on_job = play
    cluster.put("workflows", {"metadata": {"name": "brain-abc"}, "spec": {}, "status": {"phase": "Running"}})
    cluster.start()
    monkeypatch.setattr(cluster_api, "connect", lambda namespace: cluster.api())
    yield cluster
    cluster.stop()


@pytest.fixture
def step(tmp_path: Path, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make this process a step of a workflow whose study has begun; return the study's folder."""
    template = tmp_path / "job-template.yaml"
    template.write_text(yaml.safe_dump(JOB_TEMPLATE))
    here = {"STORE": tmp_path, "JOB_TEMPLATE": template, "WORKFLOW_NAME": "brain-abc", "WORKFLOW_UID": "u"}
    for name, value in {**here, "NAMESPACE": "test", "LOG_FORMAT": "json"}.items():
        monkeypatch.setenv(f"AUTOMONAI_{name}", str(value))
    spec = study_spec(StudyParameters.model_validate(FORM), str(tmp_path))
    folder = tmp_path / "studies" / "brain"
    LocalStore(folder).put(keys.DATA, make_data(spec).model_dump_json().encode())
    Journal(LocalStore(folder)).append(StudyStarted(at=time.time(), spec=spec))
    return folder


def played_training(request: TrainRequest, *_: object, **__: object) -> tuple[Result, int]:
    """Train as somebody would who does not know what is secret."""
    automonai.worker.logger.info("trained with %s", KEYS)
    return train(request), 0


def played_choice(request: EnsembleRequest, *_: object, **__: object) -> EnsembleResult:
    return choose(request)


def test_a_study_on_a_cluster_leaves_no_key_in_its_store_its_objects_or_its_logs(
    step: Path, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(automonai.worker, "_train", played_training)
    monkeypatch.setattr(automonai.worker, "_choose", played_choice)
    for name in ("search", "refit"):
        assert main(["step", name, *(f"--{field}={value}" for field, value in FORM.items())]) == 0
    written = {path.relative_to(step).as_posix(): path for path in step.rglob("*") if path.is_file()}
    for name in ("request.json", "result.json", "log.txt", "journal/", "report.html", "report.json"):
        assert any(name in path for path in written), name
    assert not {path: found for path, file in written.items() if (found := found_in(file.read_bytes().decode()))}
    assert len(cluster.objects["jobs"]) > 3
    assert not found_in(json.dumps(cluster.objects))
    output = capsys.readouterr()
    lines = [json.loads(line) for line in output.err.splitlines()]
    assert {line.get("event") for line in lines} >= {"run_queued", "run_finished", "study_ended"}
    assert {line["study"] for line in lines} == {"brain"}
    assert not found_in(output.err + output.out)


def test_no_template_and_no_workflow_holds_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hera", reason="needs the extra automonai[cluster]")
    from pipelines.__main__ import documents

    texts = documents()
    assert len(texts) >= 4
    assert not {path.name: found for path, text in texts.items() if (found := found_in(text))}
    spec = tmp_path / "study.yaml"
    document = {"name": "test", "dataset": "s3://bucket/datasets/brain", "budget": {"iterations": 1}}
    spec.write_text(yaml.safe_dump(document))
    assert main(["workflow", "render", str(spec)]) == 0
    assert not found_in(capsys.readouterr().out)

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fake_cluster import NAMESPACE, FakeCluster

from automonai import api, cluster_cli, cluster_steps
from automonai.cli import main
from automonai.domain.run import FailureReason, Result, RunState
from automonai.execution import cluster_api
from automonai.parameters import StudyParameters


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    document = {"name": "test", "dataset": "s3://bucket/datasets/brain", "budget": {"iterations": 2}}
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    cluster = FakeCluster()
    cluster.start()
    monkeypatch.setattr(cluster_api, "connect", lambda namespace: cluster.api())
    yield cluster
    cluster.stop()


def test_a_step_gets_the_form_as_it_was_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[StudyParameters] = []

    def search(parameters: StudyParameters, *, watch: object) -> int:
        seen.append(parameters)
        return 143

    monkeypatch.setattr(cluster_steps, "search", search)
    form = [
        "--dataset=s3://b/datasets/d",
        "--name=n",
        "--budget=3 iterations",
        "--parallel-runs=4",
        "--gpus-per-run=",
        "--spec=",
    ]
    assert main(["step", "search", *form]) == 143
    assert seen == [StudyParameters(dataset="s3://b/datasets/d", name="n", budget="3 iterations", parallel_runs="4")]


def test_a_faulty_parameter_ends_the_check_with_code_2_and_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOMONAI_STORE", "s3://bucket")
    assert main(["step", "check", "--name=n", "--dataset=s3://b/d", "--budget=much"]) == 2
    assert "budget 'much'" in capsys.readouterr().err


def test_an_error_of_a_step_is_its_pods_last_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = tmp_path / "termination-log"
    message.touch()
    monkeypatch.setattr(cluster_cli, "TERMINATION_LOG", message)
    monkeypatch.setenv("AUTOMONAI_STORE", "s3://bucket")
    assert main(["step", "check", "--name=n", "--dataset=s3://b/d", "--budget=much"]) == 2
    assert message.read_text().startswith("parameter budget 'much': write a time")
    assert main(["step", "train", "--dataset=d", "--output=o", "--epochs=two"]) == 2
    assert message.read_text().startswith("Invalid value for '--epochs'")


def test_a_training_without_a_result_fails_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    result = Result(run_id="r", state=RunState.FAILED, reason=FailureReason.NON_FINITE_LOSS)
    monkeypatch.setattr(api, "train", lambda *_, **__: result)
    assert main(["step", "train", "--dataset=d", "--output=o", "--epochs=1"]) == 1


def test_a_trainings_faulty_configuration_is_told_by_its_parameter(capsys: pytest.CaptureFixture[str]) -> None:
    form = ["--dataset=d", "--output=o", "--epochs=1"]
    assert main(["step", "train", *form, "--configuration={depht: 2}"]) == 2
    assert "parameter configuration: depht" in capsys.readouterr().err
    assert main(["step", "train", *form, "--configuration={depth: 2"]) == 2
    assert "parameter configuration is neither YAML nor JSON" in capsys.readouterr().err


def test_a_rendered_workflow_refers_to_the_template_and_carries_the_spec(
    spec_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hera", reason="needs the extra automonai[cluster]")
    assert main(["workflow", "render", str(spec_file), "--set", "search.seed=5"]) == 0
    workflow = yaml.safe_load(capsys.readouterr().out)
    assert workflow["spec"]["workflowTemplateRef"] == {"name": "automonai-study"}
    parameters = {entry["name"]: entry["value"] for entry in workflow["spec"]["arguments"]["parameters"]}
    spec = yaml.safe_load(parameters["spec"])
    assert spec["search"] == {"seed": 5}
    assert "execution" not in spec, "what a spec leaves out is the chart's to say"


def test_a_workflow_of_a_dataset_on_this_machine_is_refused(
    spec_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["workflow", "render", str(spec_file), "--set", "dataset=./folder"]) == 2
    assert "automonai data push ./folder s3://BUCKET/datasets/NAME" in capsys.readouterr().err


def test_a_rendered_workflow_is_for_the_argo_that_is_named(spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hera", reason="needs the extra automonai[cluster]")
    assert main(["workflow", "render", str(spec_file), "--instance-id", "imaging"]) == 0
    labels = yaml.safe_load(capsys.readouterr().out)["metadata"]["labels"]
    assert labels == {"workflows.argoproj.io/controller-instanceid": "imaging"}


@pytest.mark.parametrize("labels", [{}, {"workflows.argoproj.io/controller-instanceid": "imaging"}])
def test_a_study_is_submitted_to_the_argo_that_the_installed_template_is_for(
    labels: dict[str, str], spec_file: Path, cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hera", reason="needs the extra automonai[cluster]")
    others = {"app.kubernetes.io/instance": "automonai"}
    cluster.put("workflowtemplates", {"metadata": {"name": "automonai-study", "labels": labels | others}})
    assert main(["workflow", "submit", str(spec_file), "-n", NAMESPACE]) == 0
    (workflow,) = cluster.objects["workflows"].values()
    assert workflow["metadata"].get("labels", {}) == labels
    assert workflow["spec"]["workflowTemplateRef"] == {"name": "automonai-study"}
    assert f"{workflow['metadata']['name']} started in namespace {NAMESPACE}" in capsys.readouterr().out


def test_a_namespace_without_the_chart_is_told_before_anything_is_submitted(
    spec_file: Path, cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["workflow", "submit", str(spec_file), "-n", NAMESPACE]) == 2
    assert "has no workflow template automonai-study" in capsys.readouterr().err
    assert cluster.objects["workflows"] == {}


def test_without_hera_the_missing_extra_is_named(
    spec_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pipelines", None)
    assert main(["workflow", "render", str(spec_file)]) == 2
    assert "pip install '.[cluster]'" in capsys.readouterr().err


def test_the_log_of_an_unknown_run_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(tmp_path), "trial-0001-epochs-0001-fold-0"]) == 2
    assert "has no log" in capsys.readouterr().err

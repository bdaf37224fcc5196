"""What the API server itself says to the rendered chart: the schemas, admission and Pod Security of a real cluster."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from real_cluster import CHART, helm, kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

VALUES = Path(__file__).parents[1] / "unit" / "chart" / "values"
APIS = ("argoproj.io/v1alpha1/WorkflowTemplate", "kueue.x-k8s.io/v1beta1")


@pytest.fixture(autouse=True, scope="module")
def programs() -> None:
    if shutil.which("helm") is None or shutil.which("kubectl") is None:
        pytest.skip("helm and kubectl are needed")


@pytest.mark.parametrize("name", sorted(path.stem for path in VALUES.glob("*.yaml")))
def test_the_api_server_accepts_every_object_without_a_warning(name: str, namespace: str, tmp_path: Path) -> None:
    path = tmp_path / "rendered.yaml"
    path.write_text(rendered(name, namespace))
    documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
    for document in documents:
        if document["kind"] == "ServiceAccount":  # no pod is admitted before its account is there
            kubectl("create", "serviceaccount", document["metadata"]["name"], "-n", namespace)
    answer = kubectl(*DRY_RUN, "-n", namespace, "-f", str(path))
    assert answer.count("(server dry run)\n") == len(documents) > 20


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ("backoffLimit: ", "retries: ", 'unknown field "spec.retries"'),
        ("runAsNonRoot: true", "runAsNonRoot: false", "violate PodSecurity"),
    ],
)
def test_the_api_server_would_refuse_a_faulty_object(
    right: str, wrong: str, words: str, namespace: str, tmp_path: Path
) -> None:
    path = tmp_path / "rendered.yaml"
    text = rendered("minio", namespace)
    assert right in text
    path.write_text(text.replace(right, wrong))
    with pytest.raises(AssertionError, match=words):
        kubectl(*DRY_RUN, "-n", namespace, "-f", str(path))


DRY_RUN = ("apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors")


def rendered(name: str, namespace: str) -> str:
    theirs = ("controller.priorityClassName=", "metrics.podMonitor.enabled=false", "metrics.rules.enabled=false")
    settings = [word for setting in theirs for word in ("--set", setting)]  # what the test's cluster need not have
    values = ("-f", str(VALUES / f"{name}.yaml"), *settings)
    known = [word for api in APIS for word in ("--api-versions", api)]
    return helm("template", "automonai", str(CHART), "-n", namespace, *values, *known)

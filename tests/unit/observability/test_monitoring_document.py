from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

TEXT = (Path(__file__).parents[3] / "docs" / "monitoring.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def test_there_is_a_configuration_for_one_machine_and_one_for_a_cluster_without_the_operator() -> None:
    assert ["kubernetes_sd_configs" in snippet for snippet in SNIPPETS] == [False, True]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, a part of Prometheus")
@pytest.mark.parametrize("snippet", SNIPPETS, ids=["machine", "cluster"])
def test_prometheus_takes_the_configuration(snippet: str, tmp_path: Path) -> None:
    document = yaml.safe_load(snippet)
    for job in document["scrape_configs"]:
        if job.pop("kubernetes_sd_configs", None):  # Debian's promtool was built without Kubernetes
            job["static_configs"] = [{"targets": ["pod:9109"]}]
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(document))
    answer = subprocess.run(["promtool", "check", "config", path], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr

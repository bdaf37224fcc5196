from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCS = Path(__file__).parents[3] / "docs"


def snippets(path: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", (DOCS / path).read_text(encoding="utf-8"), re.DOTALL)


def on_one_machine() -> dict[str, Any]:
    (only,) = snippets("monitoring.md")
    document: dict[str, Any] = yaml.safe_load(only)
    return document


def on_a_cluster_without_the_operator() -> dict[str, Any]:
    """Return the job with the relabelling that stands below it."""
    job, relabelling = (yaml.safe_load(snippet) for snippet in snippets("runbooks/README.md")[:2])
    (scraped,) = job["scrape_configs"]
    assert scraped["relabel_configs"] == []
    scraped |= relabelling
    assert scraped.pop("kubernetes_sd_configs")  # Debian's promtool was built without Kubernetes
    scraped["static_configs"] = [{"targets": ["pod:9109"]}]
    return {"scrape_configs": [scraped]}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, a part of Prometheus")
@pytest.mark.parametrize("documented", [on_one_machine, on_a_cluster_without_the_operator])
def test_prometheus_takes_the_configuration(documented: Any, tmp_path: Path) -> None:
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(documented()))
    answer = subprocess.run(["promtool", "check", "config", path], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from script_loading import load_script

import automonai
from automonai import spec

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def declared() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for text in (*PROJECT["dependencies"], *(text for extra in extras for text in extra))]


@pytest.mark.parametrize("requirement", declared(), ids=lambda requirement: requirement.name)
def test_every_declared_package_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    pinned = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned)


def test_no_pin_has_a_local_label_that_only_one_index_knows() -> None:
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins().values())


@pytest.mark.parametrize("name", automonai.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(automonai, name) is not None
    assert name in dir(automonai)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = automonai.nothing_such  # type: ignore[attr-defined]


def test_importing_the_package_loads_nothing_but_itself() -> None:
    code = "import sys; before = set(sys.modules); import automonai; print(*(set(sys.modules) - before))"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"pydantic", "yaml", "numpy", "torch", "click"} & set(answer.stdout.split())


def test_the_example_spec_is_valid_and_shows_every_section() -> None:
    path = ROOT / "examples" / "study.yaml"
    loaded = spec.load_spec(path)
    assert loaded.budget.time == 3600
    assert set(loaded.search.space) == set(spec.DEFAULT_SPACE)
    assert set(yaml.safe_load(path.read_text())) == set(spec.StudySpec.model_fields)


@pytest.mark.parametrize("path", ["README.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))])
def test_links_inside_the_documents_lead_somewhere(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    local = [target for target in targets if "://" not in target and not target.endswith("report.png")]
    assert not [target for target in local if not ((ROOT / path).parent / target).exists()]


@pytest.mark.parametrize("path", ["docs/how-to.md", "docs/start.md"])
def test_yaml_snippets_of_the_documents_are_valid_specs(path: str) -> None:
    snippets = re.findall(r"```yaml\n(.*?)```", (ROOT / path).read_text(encoding="utf-8"), re.DOTALL)
    base = {"name": "x", "dataset": "x", "budget": {"iterations": 1}}
    for snippet in snippets:
        document = yaml.safe_load(snippet)
        spec.parse_spec(base | document, where=path)


def test_sizes_finds_a_long_function_and_a_long_file(tmp_path: Path) -> None:
    sizes = load_script("sizes")
    path = tmp_path / "long.py"
    path.write_text("def f():\n" + "    x = 1\n" * 501)
    assert len(list(sizes.oversized(path))) == 2
    path.write_text("def f():\n" + "    x = 1\n" * 59)
    assert not list(sizes.oversized(path))

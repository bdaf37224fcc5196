from __future__ import annotations

import os
import re
from pathlib import Path

import click
import pytest
from script_loading import load_script

from automonai.cli import cli

reference = load_script("reference")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference"
VERBS = [(), *reference.verbs(cli)]


def written(page: str) -> str:
    return (FOLDER / page).read_text(encoding="utf-8")


def anchors(page: str) -> set[str]:
    """Return a page's headings as links name them."""
    return {re.sub(r"[^\w -]", "", title).lower() for title in re.findall(r"^#+ (.+)$", written(page), re.MULTILINE)}


@pytest.mark.parametrize("page", reference.PAGES)
def test_the_reference_is_what_the_code_says(page: str) -> None:
    assert written(page) == reference.PAGES[page](), "run scripts/reference.py"


def test_no_page_is_left_of_what_is_no_longer_written() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(reference.PAGES)


@pytest.mark.parametrize("page", ["spec.md", "results.md", "events.md", "metrics.md"])
def test_every_row_says_what_its_thing_means(page: str) -> None:
    rows = [line for line in written(page).splitlines() if line.startswith("| `")]
    assert rows
    assert not [row for row in rows if row.endswith("|  |")]


@pytest.mark.parametrize("page", ["results.md", "events.md"])
def test_every_record_that_a_table_names_has_its_own(page: str) -> None:
    links = re.findall(r"\]\(([\w.]*)#([\w-]+)\)", written(page))
    assert links
    assert not [anchor for target, anchor in links if anchor not in anchors(target or page)]


def test_the_verbs_of_a_group_have_sections_and_hidden_ones_have_none() -> None:
    sections = re.findall(r"^## (.+)$", written("cli.md"), re.MULTILINE)
    assert {"search", "data push", "workflow render", "workflow submit"} <= set(sections)
    assert not [section for section in sections if section.startswith("step")]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_option_has_a_help_text(verb: tuple[str, ...]) -> None:
    command: click.Command = cli
    for word in verb:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    assert not [option.name for option in command.params if isinstance(option, click.Option) and not option.help]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_says_what_the_golden_file_says(verb: tuple[str, ...]) -> None:
    golden = ROOT / "tests" / "golden" / "help" / f"{'-'.join(verb) or 'automonai'}.txt"
    text = reference.help_text(verb)
    if os.environ.get("AUTOMONAI_RENEW_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()

import json
import os
from html.parser import HTMLParser
from pathlib import Path

import pytest

from automonai.report import summarise, write_report
from automonai.report.pictures import pictures_section
from automonai.storage import keys
from automonai.storage.memory import MemoryStore

GOLDEN = Path(__file__).parents[2] / "golden" / "report"
RENEW = "AUTOMONAI_RENEW_GOLDEN"
SECTIONS = {
    "answer",
    "configuration",
    "cost",
    "curves",
    "incumbent",
    "importance",
    "parallel",
    "pareto",
    "classes",
    "worst",
    "proposals",
    "failures",
    "ensemble",
    "notes",
    "software",
}
STUDIES = ("finished", "halfway", "fresh", "failed", "untested", "awkward")


class Page(HTMLParser):
    """What a page holds, and whether its elements are closed in order."""

    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.ids, self.open, self.texts = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [values[name] for name in ("src", "href", "xlink:href") if name in values]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)


@pytest.fixture(scope="module")
def reported():
    """Return a study's page and JSON, written once."""
    written = {}

    def report(told):
        if id(told) not in written:
            write_report(told.study, told.data, told.store)
            page = told.store.get(keys.REPORT_HTML).decode()
            written[id(told)] = page, json.loads(told.store.get(keys.REPORT_JSON))
        return written[id(told)]

    return report


@pytest.fixture(params=STUDIES)
def told(request):
    return request.getfixturevalue(request.param)


def test_a_page_has_every_section_whatever_the_study_has_reached(told, reported):
    assert set(Page(reported(told)[0]).ids) >= SECTIONS


def test_a_page_is_one_file_without_scripts_or_references(told, reported):
    page = Page(reported(told)[0])
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert "http" not in reported(told)[0]
    assert "@import" not in reported(told)[0]


def test_a_page_is_well_formed_and_its_ids_are_unique(told, reported):
    page = Page(reported(told)[0])
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))


def test_a_page_names_every_class_as_text(told, reported):
    text = Page(reported(told)[0]).text
    assert all(name in text for name in told.data.dataset.foreground.values())


def test_the_answer_comes_first(finished, reported):
    page, report = reported(finished)
    assert f"{report['test']['mean_dice']:.3f}" in page[page.index('id="answer"') : page.index('id="configuration"')]


def test_every_figure_says_how_to_read_it_and_what_it_shows(finished, reported):
    page = reported(finished)[0]
    assert page.count("How to read it") == page.count("<svg") == 7
    assert page.count('role="img" aria-label=') == 7


def test_the_worst_cases_are_shown_with_their_scores(finished, reported):
    page, report = reported(finished)
    for case in report["test"]["cases"][:4]:
        assert f"<strong>{case['case']}</strong>, mean Dice {case['mean_dice']:.3f}" in page
    assert page.count("data:image/png;base64,") == 4


def test_a_picture_that_is_not_in_the_store_is_said_to_be_missing(finished):
    summary = summarise(finished.study, finished.data)
    assert pictures_section(summary, MemoryStore()).count("The picture is not in the store.") == 4


def test_a_fallback_and_a_lost_run_are_on_the_page(finished, reported):
    text = Page(reported(finished)[0]).text
    assert "1 proposal fell back to chance" in text
    assert "singular matrix" in text
    assert "was lost: its process ended by signal 9" in text


def test_a_running_study_says_what_is_not_there_yet(halfway, reported):
    text = Page(reported(halfway)[0]).text
    assert "Not finished: searching" in text
    assert "There is no ensemble and no test score yet" in text


def test_a_failed_study_says_why(failed, reported):
    assert "Failed: no configuration could be trained" in Page(reported(failed)[0]).text


def test_a_study_without_test_cases_says_so(untested, reported):
    assert "No cases were set aside for a test" in Page(reported(untested)[0]).text


def test_an_ensemble_that_was_chosen_by_few_cases_says_so_where_its_score_stands(untested, reported):
    page = reported(untested)[0]
    answer = Page(page[page.index('id="answer"') - 9 : page.index('<section id="configuration"')]).text
    assert "of the ensemble, on 12 of 96 planned held-out cases; no test" in answer
    assert "The ensemble was chosen on 12 of 96 planned held-out cases: the time was up." in answer


def test_an_ensemble_that_was_chosen_by_all_its_cases_says_by_how_many(finished, reported):
    text = Page(reported(finished)[0]).text
    assert "Held-out cases by which it was chosen 96 " in text
    assert "the time was up" not in text


def test_the_same_study_gives_the_same_bytes(halfway, reported):
    page = reported(halfway)[0]
    write_report(halfway.study, halfway.data, halfway.store)
    assert halfway.store.get(keys.REPORT_HTML).decode() == page


def test_the_json_has_what_readers_rely_on(finished, reported):
    report = reported(finished)[1]
    assert report["version"] == 1
    assert report["study"] == "hippocampus-one-hour"
    assert {"mean", "low", "high"} <= set(report["test"]["dice"]["Lesion"])
    assert report["winner"]["configuration"]["convolution"] == "3d"
    assert len(report["ensemble"]["members"]) == 4
    assert {"model", "random", "standard", "fallback"} <= set(report["proposals"])
    assert {"complete", "failed", "lost"} <= set(report["runs"])
    assert {"epochs", "seconds"} <= set(report["budget"])


def test_the_json_is_as_it_was(finished, reported):
    path = GOLDEN / "report.json"
    report = reported(finished)[1]
    if os.environ.get(RENEW):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert_like(report, json.loads(path.read_text(encoding="utf-8")), "report")


def assert_like(found, expected, where):
    """Compare parsed objects; numbers may differ in the last digits between processors."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), f"{where}: renew with {RENEW}=1"
        for key, value in expected.items():
            assert_like(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), f"{where}: renew with {RENEW}=1"
        for position, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_like(one, other, f"{where}[{position}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9), f"{where}: renew with {RENEW}=1"
    else:
        assert found == expected, f"{where}: renew with {RENEW}=1"

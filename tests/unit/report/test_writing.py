import json
import os
from html.parser import HTMLParser
from pathlib import Path

import pytest

from automonai.domain.run import FailureReason, Origin
from automonai.report import summarise, write_report
from automonai.report.importance import measure_importance
from automonai.report.page import render_page
from automonai.report.pictures import pictures_section
from automonai.report.summary import Failure
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
    assert "on the 12 of 96 planned held-out cases of the choice; no test" in answer
    assert "by which the ensemble was chosen, so it is slightly too good" in answer
    assert "The ensemble was chosen on 12 of 96 planned held-out cases: the time was up." in answer


def test_an_ensemble_that_was_chosen_by_all_its_cases_says_by_how_many(finished, reported):
    text = Page(reported(finished)[0]).text
    assert "Held-out cases by which it was chosen 96 " in text
    assert "the time was up" not in text


def test_the_score_of_the_choice_says_that_it_was_chosen_by_it(finished, reported):
    text = Page(reported(finished)[0]).text
    assert "Dice on held-out cases, best configuration by itself 0.871, all pieces kept" in text
    assert "0.883, each case by the networks that had not seen it; chosen on the same 96 cases" in text


def test_a_single_configuration_of_which_all_pieces_are_kept_has_one_score(finished):
    summary = summarise(finished.study, finished.data)
    first = summary.ensemble.members[:1]
    alone = summary.ensemble.model_copy(update={"members": first, "largest_component": ()})
    page = render_page(summary.model_copy(update={"ensemble": alone}), finished.study, finished.store)
    assert "best configuration by itself" not in page
    assert "each case by the network that had not seen it" in page


def test_captions_speak_of_several_rungs_only_where_there_are_some(finished, reported):
    sentences = (
        "it was not among the best of its rung",
        "its shape tells how long it was",
        "It may step down",
        "Values were reached at different lengths of training.",
        "The shape tells how many epochs",
        "All budgets count together",
    )
    page = reported(finished)[0]
    summary = summarise(finished.study, finished.data)
    update = {"rungs": (200,), "importance": measure_importance(finished.study)}
    single = render_page(summary.model_copy(update=update), finished.study, finished.store)
    assert [words for words in sentences if words not in page] == []
    assert [words for words in sentences if words in single] == []


def test_the_captions_say_what_a_triangle_at_the_edge_is(finished, reported):
    assert reported(finished)[0].count("A triangle at the lower edge stands for a value that lies below it.") == 3


def test_importance_says_what_chance_alone_can_do(finished, reported):
    page, report = reported(finished)
    assert report["importance"]["results"] < 100
    assert "chance alone makes long bars" in page
    assert "A bar may exceed the share that is predicted" in page


def test_the_standard_configuration_stands_beside_the_best(finished, reported):
    head = '<th scope="col" class="number">'
    assert f"{head}Standard (trial 0)</th>" in reported(finished)[0]
    assert reported(finished)[0].count(f"{head}Trial ") == 4


def test_a_standard_configuration_that_ranks_low_stands_beside_the_best_as_well(finished):
    summary = summarise(finished.study, finished.data)
    trials = [t.model_copy(update={"rank": 40}) if t.origin is Origin.STANDARD else t for t in summary.trials]
    page = render_page(summary.model_copy(update={"trials": tuple(trials)}), finished.study, finished.store)
    assert "Standard (trial 0)" in page


def test_a_winner_that_ranks_low_stands_beside_the_best_as_well(finished):
    summary = summarise(finished.study, finished.data)
    ninth = next(trial for trial in summary.trials if trial.rank == 9)
    winner = summary.winner.model_copy(update={"trial": ninth.trial})
    page = render_page(summary.model_copy(update={"winner": winner}), finished.study, finished.store)
    assert f">Trial {ninth.trial}</th>" in page


def test_the_best_configurations_fit_on_paper_whoever_is_shown_beside_them(finished):
    summary = summarise(finished.study, finished.data)
    ninth = next(trial for trial in summary.trials if trial.rank == 9)
    trials = [t.model_copy(update={"rank": 40}) if t.origin is Origin.STANDARD else t for t in summary.trials]
    winner = summary.winner.model_copy(update={"trial": ninth.trial})
    summary = summary.model_copy(update={"trials": tuple(trials), "winner": winner})
    page = render_page(summary, finished.study, finished.store)
    head = '<th scope="col" class="number">'
    assert page.count(f"{head}Trial ") + page.count(f"{head}Standard ") == 5


def test_failures_of_one_cause_share_a_row_whatever_numbers_they_name(finished):
    summary = summarise(finished.study, finished.data)
    many = tuple(
        Failure(cause=FailureReason.DOES_NOT_FIT, message=f"a step needs {number} GiB", runs=(f"trial-{number}",))
        for number in range(20, 120)
    )
    page = render_page(summary.model_copy(update={"failures": many}), finished.study, finished.store)
    assert page.count("a step needs") == 1
    assert "a step needs 20 GiB (and 99 other messages)" in page
    assert "and 95 more" in page


def test_a_search_without_a_model_is_not_blamed_for_having_none(finished):
    summary = summarise(finished.study, finished.data).model_copy(update={"sampler": "random"})
    page = render_page(summary, finished.study, finished.store)
    assert "This search method has no model." in page
    assert "proposed by the model" not in page


def test_the_worst_cases_say_how_they_are_seen(finished, reported):
    page = reported(finished)[0]
    assert "in the axial slice with the most wrong voxels, seen from the feet" in page
    assert "Where no orange is to be seen nothing was found in that slice." in page


@pytest.mark.parametrize(
    ("dice", "hd95_mm", "words"),
    [
        (0.0, None, "Lesion: 0.000 (missed altogether, or not in the reference)."),
        (0.0, 31.0, "Lesion: 0.000 (no overlap)."),
        (None, None, "Lesion: not present."),
        (0.5, 3.0, "Lesion: 0.500."),
    ],
)
def test_a_structure_without_overlap_says_why(finished, dice, hd95_mm, words):
    summary = summarise(finished.study, finished.data)
    case = summary.test.cases[0].model_copy(update={"dice": {"Lesion": dice}, "hd95_mm": {"Lesion": hd95_mm}})
    scores = summary.test.model_copy(update={"cases": (case,)})
    assert words in pictures_section(summary.model_copy(update={"test": scores}), finished.store)


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

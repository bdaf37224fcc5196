"""A real search of a tiny study on this machine, scraped over HTTP as Prometheus would, and killed once."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from scraping import free_port, promtool_complaints, scrape, values

from automonai import api
from automonai.domain.run import Result
from automonai.domain.study import Study
from automonai.storage import keys
from automonai.storage.journal import Journal
from automonai.storage.local import LocalStore

SPEC = """
name: shown
dataset: {dataset}
store: {store}
split: {{test: 0.25, folds: 2}}
search:
  sampler: random
  space:
    depth: 2
    channels: {{type: ordinal, values: [4, 8]}}
    channel_multiplier: {{type: real, low: 1.0, high: 2.0}}
    loss: {{type: categorical, values: [dice, dice_ce]}}
  standard: {{depth: 2, channels: 4, channel_multiplier: 1.0}}
budget: {{iterations: {iterations}, min_epochs: 1, max_epochs: 2}}
training: {{max_patch_voxels: 4096, validation_every_epochs: 1}}
execution: {{max_parallel_runs: 1, threads: 1, device: cpu}}
refit: {{epochs: {refit_epochs}}}
"""
TRAINING_CASES = 3
"""Of 8 cases 2 are kept for the test and 3 are held out; an epoch is a patch of each of the others."""
ITERATIONS = 16
"""So many that a stalled scraper, which sees the first result seconds late, still kills the search on its way."""
REFIT_EPOCHS = 60
"""So many that a stalled scraper sees a refit at work: there are only two."""
BOTH_REFITS = 'automonai_runs_finished_total{outcome="complete",rung="refit",study="shown"} 2.0'
ATTEMPTS = 3
SCRAPE_SECONDS = 0.2
PATIENCE_SECONDS = 240.0

Series = tuple[str, frozenset[tuple[str, str]]]
RESUMES: Series = ("automonai_controller_resumes_total", frozenset({("study", "shown")}))


@dataclass
class Scraped:
    """What one study showed from its begin to its end, and what it left."""

    texts: list[str]
    restarted_at: int
    """Index of the first scrape of the second controller."""
    study: Study
    store: LocalStore

    def results(self, rung: str) -> list[Result]:
        """Return the rung's results as the workers wrote them."""
        runs = [record.run for record in self.study.runs.values() if record.run.rung == rung]
        return [Result.model_validate_json(self.store.get(keys.result(run.id))) for run in runs]

    @cached_property
    def series(self) -> list[Mapping[Series, float]]:
        """Return the samples of each scrape."""
        return [values(text) for text in self.texts]

    def seen(self, name: str, **labels: str) -> list[float]:
        """Return what a series showed, scrape by scrape; where there is none, nothing."""
        wanted = labels.items()
        return [
            number
            for scrape in self.series
            for (known, own), number in scrape.items()
            if known == name and wanted <= own
        ]


def scrapes(controller: subprocess.Popen[bytes], port: int, *, enough: Callable[[str], bool]) -> Iterator[str]:
    """Yield what the endpoint shows until that is enough or the controller has ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while controller.poll() is None and time.monotonic() < deadline:
        try:
            text = scrape(port)
        except OSError:  # not there yet, or not any more
            time.sleep(SCRAPE_SECONDS)
            continue
        yield text
        if enough(text):
            return
        time.sleep(SCRAPE_SECONDS)


def start(spec: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "automonai.cli", "search", str(spec), "--metrics-port", str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def has_a_result(text: str) -> bool:
    return (
        re.search(r'automonai_runs_finished_total{outcome="complete",rung="2",study="shown"} [1-9]', text) is not None
    )


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Scraped:
    """Scrape a study; once more where a stalled machine, or the moment of the kill, leaves the tests nothing to see."""
    for _ in range(ATTEMPTS):
        seen = scraped_study(tmp_path_factory.mktemp("shown"))
        # A run that is killed between its last step and its result trains nothing afterwards: it has no throughput.
        has_rates = all(result.patches_per_second is not None for result in seen.results("2"))
        if has_rates and 0 < seen.restarted_at < len(seen.texts) and BOTH_REFITS in seen.texts[-1]:
            break
    return seen


def scraped_study(folder: Path) -> Scraped:
    port, dataset = free_port(), api.phantom(folder / "phantom", cases=8, shape=(24, 24, 20))
    spec = folder / "study.yaml"
    spec.write_text(SPEC.format(dataset=dataset, store=folder, iterations=ITERATIONS, refit_epochs=REFIT_EPOCHS))
    killed = start(spec, port)
    before = list(scrapes(killed, port, enough=has_a_result))
    killed.kill()
    killed.communicate()
    controller = start(spec, port)
    after = list(scrapes(controller, port, enough=lambda _: False))
    output, _ = controller.communicate(timeout=PATIENCE_SECONDS)
    assert controller.returncode == 0, output.decode()
    store = LocalStore(folder / "shown")
    study = Study.replay(Journal(store).read())
    return Scraped(texts=[*before, *after], restarted_at=len(before), study=study, store=store)


@pytest.mark.slow
def test_throughput_and_peak_memory_are_those_of_the_results(scraped: Scraped) -> None:
    for name, field in (
        ("automonai_run_throughput_patches_per_second", "patches_per_second"),
        ("automonai_run_peak_memory_bytes", "peak_memory_bytes"),
    ):
        shown = scraped.seen(name, rung="2")
        written = [getattr(result, field) for result in scraped.results("2")]
        assert len(written) == ITERATIONS
        assert None not in written
        assert set(shown) <= set(written)
        assert shown[-1] == written[-1]


@pytest.mark.slow
def test_what_the_search_came_to_is_shown(scraped: Scraped) -> None:
    assert scraped.study.incumbent is not None
    assert scraped.seen("automonai_study_best_objective")[-1] == scraped.study.incumbent[1].loss
    assert scraped.seen("automonai_study_best_dice")[-1] == scraped.study.incumbent[1].mean_dice
    assert scraped.seen("automonai_proposals_total", origin="standard")[-1] == 1
    assert scraped.seen("automonai_controller_resumes_total")[-1] == 1
    results = [*scraped.results("2"), *scraped.results("refit")]
    assert len(results) == ITERATIONS + 2
    patches = sum(result.epochs * (result.patches_per_epoch or 0) for result in results)
    assert scraped.seen("automonai_study_patches_total")[-1] == patches
    assert patches == (ITERATIONS + REFIT_EPOCHS) * 2 * TRAINING_CASES


@pytest.mark.slow
def test_no_counter_fell_when_the_controller_was_killed_and_started_again(scraped: Scraped) -> None:
    last = scraped.series[scraped.restarted_at - 1]
    first = next(scrape for scrape in scraped.series[scraped.restarted_at :] if RESUMES in scrape)
    assert (last[RESUMES], first[RESUMES]) == (0, 1)
    from_journal = {
        series: number
        for series, number in last.items()
        if series[0].endswith(("_total", "_count", "_sum", "_bucket"))
        and not series[0].startswith(("automonai_propose_", "automonai_storage_", "process_"))
        and "worker" not in dict(series[1])
    }
    assert sum(from_journal.values()) > 0
    assert not [series for series, number in from_journal.items() if first[series] < number]


@pytest.mark.slow
def test_a_running_training_is_shown_by_the_controller_with_its_trial_and_rung(scraped: Scraped) -> None:
    shown = [
        dict(labels) for scrape in scraped.series for (name, labels) in scrape if name == "automonai_train_steps_total"
    ]
    assert {"study": "shown", "trial": "0", "rung": "2", "worker": "worker-0"} in shown
    assert "refit" in {labels["rung"] for labels in shown}


@pytest.mark.slow
def test_nothing_is_left_of_a_training_that_has_ended(scraped: Scraped) -> None:
    assert not list((scraped.store.root / "workers").glob("*.prom"))


@pytest.mark.slow
def test_promtool_has_nothing_to_say_at_any_moment(scraped: Scraped) -> None:
    busiest = sorted(scraped.texts, key=len)[-3:]
    assert [promtool_complaints(text) for text in (scraped.texts[0], *busiest)] == [""] * 4

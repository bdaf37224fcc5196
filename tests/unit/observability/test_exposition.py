from __future__ import annotations

import os
import threading
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from scraping import free_port, promtool_complaints, scrape

from automonai.errors import UserError
from automonai.observability.definitions import Definition
from automonai.observability.exposition import TEXTFILE_SECONDS, Joined, Labelled, Textfiles, serve, write_textfile

THINGS = Definition("automonai_things_total", "counter", "Things.", ("kind",))
SPEEDS = Definition("automonai_speed_seconds", "histogram", "Speeds.", buckets=(0.1, 1.0))


class Fixed(Collector):
    def __init__(self, *families: Metric) -> None:
        self.families = families

    def collect(self) -> Iterable[Metric]:
        return self.families


def things(value: float, kind: str = "good") -> CounterMetricFamily:
    family = THINGS.counter_family()
    family.add_metric((kind,), value)
    return family


def samples(collector: Collector) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in collector.collect()
        for sample in family.samples
    }


def test_labels_are_added_to_every_sample_and_a_samples_own_stay() -> None:
    collector = Labelled(Fixed(things(3)), labels={"study": "brain", "kind": "constant"})
    assert samples(collector) == {("automonai_things_total", (("kind", "good"), ("study", "brain"))): 3}


def test_labelling_leaves_the_wrapped_collectors_samples_as_they_were() -> None:
    inner = Fixed(things(3))
    list(Labelled(inner, labels={"study": "brain"}).collect())
    assert samples(inner) == {("automonai_things_total", (("kind", "good"),)): 3}


def test_the_clients_created_series_are_left_out() -> None:
    counter = THINGS.counter()
    counter.labels("good").inc()
    assert [name for name, _ in samples(Labelled(counter, labels={}))] == ["automonai_things_total"]


def test_a_family_of_several_collectors_is_named_once() -> None:
    joined = Joined(Fixed(things(1)), Fixed(things(2, "bad")))
    assert len(list(joined.collect())) == 1
    assert sorted(samples(joined).values()) == [1, 2]


def test_what_a_worker_writes_is_shown_with_the_name_of_its_file(tmp_path: Path) -> None:
    histogram = SPEEDS.histogram()
    histogram.observe(0.5)
    for number in range(2):
        run = Labelled(Fixed(things(7)), histogram, labels={"trial": "3"})
        write_textfile(run, tmp_path / "workers" / f"worker-{number}.prom")
    shown = samples(Textfiles(tmp_path / "workers"))
    for worker in ("worker-0", "worker-1"):
        assert shown["automonai_things_total", (("kind", "good"), ("trial", "3"), ("worker", worker))] == 7
        assert shown["automonai_speed_seconds_bucket", (("le", "1.0"), ("trial", "3"), ("worker", worker))] == 1


def test_a_file_is_written_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "worker-0.prom"
    write_textfile(Fixed(things(7)), path)
    before = path.read_text()

    class Failing(Collector):
        def collect(self) -> Iterable[Metric]:
            yield things(8)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        write_textfile(Failing(), path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_old_file_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "worker-0.prom"
    write_textfile(Fixed(things(7)), path)
    os.utime(path, (1000.0, 1000.0))
    assert samples(Textfiles(tmp_path, clock=lambda: 1000.0 + TEXTFILE_SECONDS))
    assert not samples(Textfiles(tmp_path, clock=lambda: 1000.1 + TEXTFILE_SECONDS))


def test_a_folder_that_is_not_there_has_no_metrics(tmp_path: Path) -> None:
    assert not samples(Textfiles(tmp_path / "nowhere"))


def test_a_broken_file_is_logged_and_the_others_are_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_textfile(Fixed(things(7)), tmp_path / "worker-0.prom")
    (tmp_path / "worker-1.prom").write_text("automonai_things_total{kind= 3\n")
    assert list(samples(Textfiles(tmp_path)).values()) == [7]
    assert "worker-1.prom" in caplog.text


def test_metrics_are_there_by_http_while_the_body_runs_and_no_longer() -> None:
    port, before = free_port(), set(threading.enumerate())
    with serve(Fixed(things(3)), port=port, address="127.0.0.1"):
        assert 'automonai_things_total{kind="good"} 3.0' in scrape(port)
    with pytest.raises(OSError, match="refused"):
        scrape(port)
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=60.0)
        assert not thread.is_alive()


def test_all_addresses_are_served_by_default() -> None:
    port = free_port()
    with serve(Fixed(things(3)), port=port):
        assert "automonai_things_total" in scrape(port)


def test_a_scrape_sees_what_the_collector_says_at_that_moment() -> None:
    port, collector = free_port(), Fixed(things(3))
    with serve(collector, port=port, address="127.0.0.1"):
        scrape(port)
        collector.families = (things(4),)
        assert 'automonai_things_total{kind="good"} 4.0' in scrape(port)


def test_a_port_in_use_is_told_to_the_user() -> None:
    port = free_port()
    with (
        serve(Fixed(), port=port, address="127.0.0.1"),
        pytest.raises(UserError, match=f"port {port}: another program uses it"),
        serve(Fixed(), port=port, address="127.0.0.1"),
    ):
        pass


def test_prometheus_own_format_holds_the_same(tmp_path: Path) -> None:
    port, gauge = free_port(), GaugeMetricFamily("automonai_x_bytes", "X.", 2)
    with serve(Fixed(things(3), gauge), port=port, address="127.0.0.1"):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
        )
        with urllib.request.urlopen(request) as answer:
            families = list(parse_openmetrics(answer.read().decode()))
        plain = list(text_string_to_metric_families(scrape(port)))
    assert [family.name for family in families] == [family.name for family in plain]


def test_promtool_objects_to_a_counter_whose_name_does_not_say_so() -> None:
    assert "automonai_x" in promtool_complaints("# HELP automonai_x X.\n# TYPE automonai_x counter\nautomonai_x 1\n")

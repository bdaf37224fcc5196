"""What a metric is, stated once: the code that counts, the endpoint and the reference in docs all read it from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, SummaryMetricFamily

Kind = Literal["counter", "gauge", "histogram", "summary"]
UNITS = {"seconds": "s", "bytes": "bytes", "ratio": "0 to 1", "watts": "W", "patches_per_second": "patches/s"}
"""Ending of a metric's name to its unit; other metrics are numbers of things."""


@dataclass(frozen=True)
class Definition:
    """A metric's name and meaning; `study` and other labels that all its samples share are added at the endpoint."""

    name: str
    kind: Kind
    help: str
    """One or two sentences."""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper limits of a histogram's buckets; the last, infinite one goes without saying."""

    @property
    def unit(self) -> str:
        """Return the unit that the name says; empty for a number of things."""
        stem = self.name.removesuffix("_total")
        return next((unit for ending, unit in UNITS.items() if stem.endswith(f"_{ending}")), "")

    def counter_family(self) -> CounterMetricFamily:
        """Return an empty family, to be filled with what was counted elsewhere."""
        return CounterMetricFamily(self.name, self.help, labels=self.labels)

    def gauge_family(self) -> GaugeMetricFamily:
        """Return an empty family, to be filled with what was measured elsewhere."""
        return GaugeMetricFamily(self.name, self.help, labels=self.labels)

    def histogram_family(self) -> HistogramMetricFamily:
        """Return an empty family, to be filled with what was observed elsewhere."""
        return HistogramMetricFamily(self.name, self.help, labels=self.labels)

    def summary_family(self) -> SummaryMetricFamily:
        """Return an empty family of sums and counts, to be filled with what was observed elsewhere."""
        return SummaryMetricFamily(self.name, self.help, labels=self.labels)

    def counter(self) -> Counter:
        """Return a counter of this process that any of its threads may increase."""
        return Counter(self.name, self.help, self.labels, registry=None)

    def histogram(self) -> Histogram:
        """Return a histogram of this process that any of its threads may observe into."""
        return Histogram(self.name, self.help, self.labels, registry=None, buckets=self.buckets)

    def series(self, values: int = 1) -> int:
        """Return how many series the metric has at so many different values of its labels."""
        each = {"counter": 1, "gauge": 1, "histogram": len(self.buckets) + 3, "summary": 2}
        return values * each[self.kind]

"""A study's metrics while a controller runs it, put together alike on one machine and on a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from automonai.controller import Unwatched, Watch, Watches
from automonai.search.timed import TimedSampler
from automonai.storage.observing import observed_by

if TYPE_CHECKING:
    from automonai.observability.study_metrics import StudyMetrics
    from automonai.search.sampler import Sampler


@dataclass(frozen=True)
class Monitoring:
    """What a controller is to be given so that its study's metrics are known."""

    watch: Watch = field(default_factory=Unwatched)
    _metrics: StudyMetrics | None = None

    def timed(self, sampler: Sampler) -> Sampler:
        """Return the sampler, its time taken if there is somebody to see it."""
        return sampler if self._metrics is None else TimedSampler(sampler, self._metrics.on_proposal)


@contextmanager
def monitored(
    study: str,
    *,
    port: int | None,
    watch: Watch | None = None,
    gpus_per_run: int = 1,
    workers_folder: Path | None = None,
) -> Iterator[Monitoring]:
    """Show a study's metrics to Prometheus while the body runs it.

    Args:
        study: Its name.
        port: Where they are shown; None: nowhere, and then nothing is counted.
        watch: Who else looks on.
        gpus_per_run: 0: runs on the CPU.
        workers_folder: Where workers of this machine leave theirs, which are shown, too.

    Raises:
        UserError: If the port is in use or may not be used.
    """
    others = watch or Unwatched()
    if port is None:
        yield Monitoring(others)
        return
    from automonai.observability.exposition import Joined, Labelled, Textfiles, serve
    from automonai.observability.storage_metrics import StorageMetrics
    from automonai.observability.study_metrics import StudyMetrics

    metrics, requests = StudyMetrics(gpus_per_run=gpus_per_run), StorageMetrics()
    own = Labelled(metrics, requests, labels={"study": study})
    shown = own if workers_folder is None else Joined(own, Textfiles(workers_folder))
    with observed_by(requests), serve(shown, port=port):
        yield Monitoring(Watches(others, metrics), metrics)

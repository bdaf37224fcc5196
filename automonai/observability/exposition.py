"""How metrics reach Prometheus: an HTTP endpoint, and text files that another process's endpoint shows beside its own.

Collectors are called by the endpoint's threads: what they return must be finished, or guarded by locks.
"""

from __future__ import annotations

import copy
import errno
import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, start_http_server, write_to_textfile
from prometheus_client.parser import text_fd_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from automonai.errors import UserError

logger = logging.getLogger(__name__)

TEXTFILE_SECONDS = 60.0
"""A text file that was not written anew for so long tells of a process that is gone."""


class Joined(Collector):
    """The metrics of several collectors, each family once: an exposition must not name one twice."""

    def __init__(self, *collectors: Collector) -> None:
        """Remember whose metrics these are; samples of one family must differ in their labels."""
        self._collectors = collectors

    def collect(self) -> Iterable[Metric]:
        """Return each family with all its samples; type and help are those of the first that has it."""
        families: dict[str, Metric] = {}
        for collector in self._collectors:
            for family in collector.collect():
                known = families.get(family.name)
                families[family.name] = family if known is None else _with_samples(known, family.samples)
        return families.values()


class Labelled(Collector):
    """The metrics of collectors with some labels more, the same for every sample.

    The client's `_created` series, of which nobody asks anything, are left out.
    """

    def __init__(self, *collectors: Collector, labels: Mapping[str, str]) -> None:
        """Remember whose metrics get which labels; a sample's own label of that name stays."""
        self._joined = Joined(*collectors)
        self._labels = dict(labels)

    def collect(self) -> Iterable[Metric]:
        """Yield each family anew; the collectors' own are left as they are."""
        for family in self._joined.collect():
            labelled = copy.copy(family)
            labelled.samples = [
                sample._replace(labels={**self._labels, **sample.labels})
                for sample in family.samples
                if not sample.name.endswith("_created")
            ]
            yield labelled


class Textfiles(Collector):
    """What other processes of this machine have written into a folder's `*.prom` files.

    Each sample gets a label `worker`, its file's name without the ending: two folds of one trial are told apart by it.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Remember the folder, which need not exist, and the clock that files' times are compared with."""
        self._folder = folder
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        """Return the families of all files that are fresh; one that cannot be read is logged and left out."""
        files = [
            Labelled(_Families(families), labels={"worker": path.stem})
            for path in sorted(self._folder.glob("*.prom"))
            if (families := self._read(path))
        ]
        return Joined(*files).collect()

    def _read(self, path: Path) -> tuple[Metric, ...]:
        try:
            if self._clock() - path.stat().st_mtime > TEXTFILE_SECONDS:
                return ()
            with path.open(encoding="utf-8") as text:
                return tuple(text_fd_to_metric_families(text))
        except FileNotFoundError:  # its run has ended meanwhile
            return ()
        except (OSError, ValueError) as error:
            logger.warning("%s: is left out of the metrics: %s", path, error)
            return ()


class _Families(Collector):
    """Metrics that are finished."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def write_textfile(collector: Collector, path: Path) -> None:
    """Write metrics into a file, whole or not at all, for an endpoint that has `Textfiles` of its folder.

    Args:
        collector: Whose metrics.
        path: Ends in `.prom`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(path), _registry(collector))


@contextmanager
def serve(collector: Collector, *, port: int, address: str = "") -> Iterator[None]:
    """Show metrics at `http://ADDRESS:PORT/metrics` while the body runs.

    Args:
        collector: Whose metrics; the endpoint's threads call it.
        port: Of TCP.
        address: Of this machine's; empty: all of them.

    Raises:
        UserError: If the port is in use or may not be used.
    """
    try:
        server, thread = start_http_server(port, address or _everywhere(), _registry(collector))
    except OSError as error:
        raise UserError(f"metrics cannot be shown at port {port}: {_advice(error)}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _registry(collector: Collector) -> CollectorRegistry:
    """Return a registry of one collector: the client's endpoint asks more of its source than a collector has."""
    registry = CollectorRegistry(support_collectors_without_names=True)
    registry.register(collector)
    return registry


def _with_samples(family: Metric, samples: Iterable[Sample]) -> Metric:
    joined = copy.copy(family)
    joined.samples = [*family.samples, *samples]
    return joined


def _everywhere() -> str:
    """Return the address of all interfaces, IPv6's included where there is IPv6: some clusters have nothing else."""
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 - nothing that is shown is secret


def _advice(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program uses it; name another one"
    if error.errno == errno.EACCES:
        return "only root may use it; name one above 1023"
    return str(error.strerror or error)

"""What the metrics of a trial cost its training loop: the step rate with them, scraped every few seconds, and without.

The product's own loop trains one small 3D network on a phantom, on the CPU, in pairs of equally many steps: one half
unmetered, the other metered, shown by HTTP and scraped by another process; which half comes first alternates. Beside
the rates stands what the meter alone takes of a step, timed by itself, for a noisy machine's rates may not tell it from
nothing. Writes a markdown table.

    python benchmarks/metrics_overhead.py [--output FILE] [--pairs 20] [--seconds 15] [--threads 1]
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, median, stdev

import torch
from torch import nn

from automonai.domain.configuration import Configuration
from automonai.domain.plan import Plan, make_plan
from automonai.domain.request import TrainRequest
from automonai.domain.run import Run
from automonai.domain.tally import Tally
from automonai.imaging.augmentation import Augmentation
from automonai.imaging.checking import check_dataset
from automonai.imaging.fingerprinting import fingerprint
from automonai.imaging.patches import PatchReader
from automonai.imaging.phantom import write_phantom
from automonai.imaging.preprocessing import prepare_case
from automonai.learning.batches import MakeBatch, batch_source
from automonai.learning.checkpoint import Progress
from automonai.learning.loop import LoopSettings, Trainer, train
from automonai.learning.losses import make_loss
from automonai.learning.memory import peak_memory_bytes
from automonai.learning.metering import UNMETERED, Meter
from automonai.learning.network import build_network
from automonai.learning.precision import Precision, choose_precision, keep_freed_memory
from automonai.learning.validation import Validation
from automonai.observability.exposition import serve
from automonai.observability.training_metrics import TrainingMetrics
from automonai.observability.worker_metrics import WorkerMetrics
from automonai.spec import ExecutionSpec, TrainingSpec

CPU = ExecutionSpec(device="cpu")
CONFIGURATION = Configuration(depth=2, channels=8, augmentation=1.0)
PATCH_VOXELS = (16, 16, 16)
SCRAPER = """
import sys, time, urllib.request
scrapes = 0
while True:
    try:
        urllib.request.urlopen(sys.argv[1]).read()
    except OSError:
        pass  # the unmetered half: nobody listens
    else:
        scrapes += 1
        print(scrapes, flush=True)
    time.sleep(float(sys.argv[2]))
"""


def main() -> None:
    """Measure all pairs and write the table."""
    options = _options()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder, _scraped(options.scrape_seconds) as (port, scrapes):
        trainer, make_batch = _training(Path(folder))
        steps = _steps(trainer, make_batch, options.seconds)
        pairs = [_pair(trainer, make_batch, steps, port, number) for number in range(options.pairs)]
        scraped = len(scrapes.read_text().split())
    text = "\n".join(_table(pairs, trainer.plan, steps, scraped, options)) + "\n"
    print(text)
    if options.output:
        Path(options.output).write_text(text, encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="markdown file")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each half of a pair, about")
    parser.add_argument("--scrape-seconds", type=float, default=5.0, help="between two scrapes")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


@contextmanager
def _scraped(seconds: float) -> Iterator[tuple[int, Path]]:
    """Give a port that another process scrapes whenever somebody listens there, and the file of its scrapes."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    with tempfile.NamedTemporaryFile() as scrapes:
        command = [sys.executable, "-c", SCRAPER, f"http://localhost:{port}/metrics", str(seconds)]
        scraper = subprocess.Popen(command, stdout=scrapes)
        try:
            yield port, Path(scrapes.name)
        finally:
            scraper.terminate()
            scraper.wait()


def _training(folder: Path) -> tuple[Trainer, MakeBatch]:
    """Return a new trainer and what makes its batches, augmentation included."""
    write_phantom(folder / "phantom", cases=8, shape=(32, 32, 32), seed=0)
    checked = check_dataset(folder / "phantom")
    plan = make_plan(
        CONFIGURATION,
        dataset=checked.dataset,
        fingerprint=fingerprint(checked, [case.id for case in checked.dataset.cases]),
        training=TrainingSpec(patch_voxels=PATCH_VOXELS),
    )
    cases = tuple(
        prepare_case(checked.dataset, case, spacing_mm=plan.spacing_mm, crop=CONFIGURATION.crop, cache_folder=folder)
        for case in checked.dataset.cases
    )
    device = torch.device("cpu")
    torch.manual_seed(0)
    trainer = Trainer(
        plan,
        build_network(plan.network, slice_axis=plan.slice_axis),
        loss_of=make_loss(CONFIGURATION.loss),
        precision=Precision(device, choose_precision(CPU, device)),
        progress=Progress(seed=0, steps_per_epoch=1),
    )
    augmentation = Augmentation.of(plan)
    reader = PatchReader(cases, plan, seed=0, margin_voxels=augmentation.margin_voxels)
    return trainer, batch_source(reader, augmentation, seed=0, device=device)


def _steps(trainer: Trainer, make_batch: MakeBatch, seconds: float) -> int:
    """Return how many steps take so long, after some that warm everything up."""
    _train(trainer, make_batch, 20, UNMETERED)
    tally = _train(trainer, make_batch, 50, UNMETERED)
    return max(1, round(seconds * tally.steps / tally.seconds))


def _pair(trainer: Trainer, make_batch: MakeBatch, steps: int, port: int, number: int) -> tuple[float, float]:
    """Return the steps per second without and with metrics."""
    if number % 2:
        metered = _metered_rate(trainer, make_batch, steps, port)
        return _rate(_train(trainer, make_batch, steps, UNMETERED)), metered
    bare = _rate(_train(trainer, make_batch, steps, UNMETERED))
    return bare, _metered_rate(trainer, make_batch, steps, port)


def _metered_rate(trainer: Trainer, make_batch: MakeBatch, steps: int, port: int) -> float:
    request = TrainRequest(run=Run(trial=0, budget_epochs=1), configuration=CONFIGURATION, seed=0)
    training = TrainingMetrics({1: "organ"}, peak_memory_bytes=peak_memory_bytes)
    metrics = WorkerMetrics(study="overhead")
    with serve(metrics, port=port), metrics.during(request, training, allocator=None):
        return _rate(_train(trainer, make_batch, steps, training))


def _train(trainer: Trainer, make_batch: MakeBatch, steps: int, meter: Meter) -> Tally:
    """Make so many steps in the product's loop: one epoch, at whose end nothing is scored or written."""
    trainer.progress = Progress(seed=0, steps_per_epoch=steps)

    def validate(network: nn.Module) -> Validation:
        return Validation(loss=0.0, dice={1: 0.0}, seconds=0.0)

    return train(
        trainer,
        make_batch,
        settings=LoopSettings(epochs=1, validation_every_epochs=1),
        validate=validate,
        commit=lambda _: None,
        stop=threading.Event(),
        meter=meter,
    )


def _rate(tally: Tally) -> float:
    return tally.steps / tally.seconds


def _meter_seconds(steps: int = 100_000) -> float:
    """Return what the meter takes of one step, the making of what it is told included."""
    meter = TrainingMetrics({1: "organ"}, peak_memory_bytes=peak_memory_bytes)
    began = time.perf_counter()
    for step in range(steps):
        meter.stepped(Tally(steps=step, patches=step, seconds=1.0, data_wait_seconds=1.0), epoch=1, loss=0.5)
    return (time.perf_counter() - began) / steps


def _table(
    pairs: list[tuple[float, float]], plan: Plan, steps: int, scraped: int, options: argparse.Namespace
) -> list[str]:
    ratios = [metered / bare for bare, metered in pairs]
    error = stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")
    bare, metered = median(one for one, _ in pairs), median(other for _, other in pairs)
    patch, meter = "x".join(map(str, plan.patch_voxels)), _meter_seconds()
    return [
        f"{len(pairs)} pairs of {steps} steps each, {patch} voxels, batch {plan.batch_size}, {options.threads} threads;"
        f" scraped every {options.scrape_seconds:g} s, {scraped} scrapes in all.",
        "",
        "| | steps/s, median | metered / unmetered: mean ± standard error | median (smallest to largest) |",
        "|---|---|---|---|",
        f"| unmetered | {bare:.2f} | | |",
        f"| metered and scraped | {metered:.2f} | {fmean(ratios):.4f} ± {error:.4f}"
        f" | {median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f}) |",
        "",
        f"The meter alone takes {meter * 1e6:.1f} µs of a step, {100 * meter * bare:.3f} % of it.",
    ]


if __name__ == "__main__":
    main()

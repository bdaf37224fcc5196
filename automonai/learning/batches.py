"""The batches of a training: read by threads, augmented on the device that trains, ahead of the step.

Axes: image_BCXYZ, label_BXYZ.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import torch
from torch import Tensor

from automonai.domain.seeds import derive_seed
from automonai.imaging.augmentation import Augmentation, augment
from automonai.imaging.patches import Batch, PatchReader

MakeBatch = Callable[[int], tuple[Tensor, Tensor]]
"""From a step to its image_BCXYZ and label_BXYZ, on the device that trains; called by any thread."""

_MOST_READERS = 4
"""A GPU's step on two patches of 128^3 voxels takes as long as reading them takes one thread; smaller networks less."""


def batch_source(reader: PatchReader, augmentation: Augmentation, *, seed: int, device: torch.device) -> MakeBatch:
    """Return what makes the augmented batch of a step from the step alone, on the device.

    On a GPU this happens in a stream of its own: copies and augmentation do not wait for the step that is computed.
    There one batch is augmented at a time, whatever the threads: it takes several times its own memory.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    turn = threading.Lock()

    def augmented(batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        return augment(
            batch.image_BCXYZ.to(device),
            batch.label_BXYZ.to(device),
            augmentation=augmentation,
            spacing_B3=batch.spacing_B3,
            seed=derive_seed(seed, "augmentation", step),
        )

    def make(step: int) -> tuple[Tensor, Tensor]:
        batch = reader.read(step)
        if stream is None:
            return augmented(batch, step)
        with turn, torch.cuda.stream(stream):
            image_BCXYZ, label_BXYZ = augmented(batch, step)
            stream.synchronize()
        for tensor in (image_BCXYZ, label_BXYZ):
            tensor.record_stream(torch.cuda.default_stream(device))  # its memory is not free before the step is done
        return image_BCXYZ, label_BXYZ

    return make


def readers_beside(device: torch.device) -> int:
    """Return how many threads read batches: one beside a CPU's training, on a GPU's the CPU has nothing else to do."""
    return 1 if device.type == "cpu" else min(_MOST_READERS, torch.get_num_threads())


def read_ahead(make: MakeBatch, first_step: int, *, threads: int = 1) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield the batches of `first_step` and on; each thread makes one of the next meanwhile; close it when done."""
    own_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "batches", initializer=torch.set_num_threads, initargs=(1,))
    try:
        pending = deque(pool.submit(make, first_step + ahead) for ahead in range(threads))
        for step in count(first_step + threads):
            batch = pending.popleft().result()
            pending.append(pool.submit(make, step))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(own_threads)  # the threads' own number was torch's default for new threads, too

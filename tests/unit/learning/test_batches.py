from __future__ import annotations

import threading
import time

import pytest
import torch
from tinytraining import make_batch, tiny_trainer
from torch import Tensor

from automonai.learning.batches import read_ahead, readers_beside


def test_a_cpu_is_left_to_the_training_and_beside_a_gpu_it_reads() -> None:
    assert readers_beside(torch.device("cpu")) == 1
    assert readers_beside(torch.device("cuda")) == min(4, torch.get_num_threads())


@pytest.mark.parametrize("readers", [1, 3])
def test_batches_come_in_order_and_their_threads_end_with_them(readers: int) -> None:
    before = set(threading.enumerate())
    batches = read_ahead(make_batch, 3, threads=readers)
    assert all(torch.equal(next(batches)[0], make_batch(step)[0]) for step in range(3, 9))
    batches.close()
    assert set(threading.enumerate()) <= before


def test_an_error_of_the_reader_reaches_the_training() -> None:
    def broken(step: int) -> tuple[Tensor, Tensor]:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk"):
        next(read_ahead(broken, 0))


def test_the_thread_leaves_torchs_thread_number_as_it_was() -> None:
    threads = torch.get_num_threads()
    batches = read_ahead(make_batch, 0)
    next(batches)
    batches.close()
    found: list[int] = []
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert [torch.get_num_threads(), *found] == [threads, threads]


def test_slow_reading_does_not_change_the_losses() -> None:
    def slowly(step: int) -> tuple[Tensor, Tensor]:
        time.sleep(0.003 * (step % 3))
        return make_batch(step)

    losses = []
    for make, readers in ((make_batch, 1), (slowly, 1), (slowly, 3)):
        trainer = tiny_trainer()
        batches = read_ahead(make, 0, threads=readers)
        losses.append([trainer.update(*next(batches), learning_rate=1e-2) for _ in range(6)])
        batches.close()
    assert losses[0] == losses[1] == losses[2]

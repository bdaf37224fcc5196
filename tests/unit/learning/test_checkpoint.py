from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tinytraining import tiny_plan, tiny_trainer

from automonai.errors import CorruptObjectError, ObjectNotFoundError
from automonai.learning.checkpoint import Manifest, read_checkpoint, read_member, write_checkpoint
from automonai.storage.memory import MemoryStore

KEY = "runs/one/checkpoint/manifest.json"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    store, trainer = MemoryStore(), tiny_trainer()
    trainer.update(torch.randn(1, 1, 8, 8, 8), torch.ones(1, 8, 8, 8, dtype=torch.uint8), learning_rate=1e-3)
    write_checkpoint(trainer.checkpoint(), store=store, manifest_key=KEY)
    found = read_checkpoint(store, KEY, tmp_path)
    assert found.plan == tiny_plan()
    assert found.progress == trainer.progress
    for name, value in trainer.network.state_dict().items():
        assert torch.equal(found.network[name], value)
    assert list(tmp_path.iterdir()) == []


def test_a_new_checkpoint_replaces_the_one_before() -> None:
    store, trainer = MemoryStore(), tiny_trainer()
    for _ in range(2):
        write_checkpoint(trainer.checkpoint(), store=store, manifest_key=KEY)
        trainer.update(torch.randn(1, 1, 8, 8, 8), torch.ones(1, 8, 8, 8, dtype=torch.uint8), learning_rate=1e-3)
    manifest = Manifest.model_validate_json(store.get(KEY))
    assert sorted(store.list()) == sorted([KEY, manifest.key])
    assert manifest.epoch == 1


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    store = MemoryStore()
    manifest = write_checkpoint(tiny_trainer().checkpoint(), store=store, manifest_key=KEY)
    content = bytearray(store.get(manifest.key))
    content[len(content) // 2] ^= 1
    store.put(manifest.key, bytes(content))
    with pytest.raises(CorruptObjectError, match="SHA-256"):
        read_checkpoint(store, KEY, tmp_path)


def test_a_missing_file_and_a_missing_manifest_are_told_apart(tmp_path: Path) -> None:
    store = MemoryStore()
    with pytest.raises(ObjectNotFoundError):
        read_checkpoint(store, KEY, tmp_path)
    manifest = write_checkpoint(tiny_trainer().checkpoint(), store=store, manifest_key=KEY)
    store.delete(manifest.key)
    with pytest.raises(CorruptObjectError, match="not there"):
        read_checkpoint(store, KEY, tmp_path)


def test_a_manifest_that_is_none_is_corrupt(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put(KEY, b"{}")
    with pytest.raises(CorruptObjectError, match="manifest"):
        read_checkpoint(store, KEY, tmp_path)


def test_a_member_has_the_averaged_weights_and_only_predicts(tmp_path: Path) -> None:
    store, trainer = MemoryStore(), tiny_trainer()
    for _ in range(3):
        trainer.update(torch.randn(1, 1, 8, 8, 8), torch.ones(1, 8, 8, 8, dtype=torch.uint8), learning_rate=1e-2)
    write_checkpoint(trainer.checkpoint(), store=store, manifest_key=KEY)
    plan, network = read_member(store, KEY, tmp_path)
    image = torch.randn(1, 1, 8, 8, 8)
    assert plan == trainer.plan
    assert not network.training
    assert torch.equal(network(image), trainer.average(image))
    assert not torch.equal(network(image), trainer.network(image))
    assert not network(image).requires_grad


@contextmanager
def no_file_beyond(size_bytes: int) -> Iterator[None]:
    """Have the system refuse to make a file larger, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room_bytes", [0, 700, 10_000])
def test_a_full_disk_is_no_fault_of_the_run_and_the_checkpoint_before_stays(room_bytes: int) -> None:
    store, trainer = MemoryStore(), tiny_trainer()
    first = write_checkpoint(trainer.checkpoint(), store=store, manifest_key=KEY)
    trainer.update(torch.randn(1, 1, 8, 8, 8), torch.ones(1, 8, 8, 8, dtype=torch.uint8), learning_rate=1e-3)
    with pytest.raises(OSError, match=r"File too large.*state\.pt"), no_file_beyond(room_bytes):
        write_checkpoint(trainer.checkpoint(), store=store, manifest_key=KEY)
    assert sorted(store.list()) == sorted([KEY, first.key])


def test_what_cannot_be_stored_is_no_fault_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("a tensor without storage")

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(RuntimeError, match="without storage"):
        write_checkpoint(tiny_trainer().checkpoint(), store=MemoryStore(), manifest_key=KEY)


def test_what_killed_processes_left_of_their_checkpoints_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store, made = MemoryStore(), list[Path]()
    upload = store.upload

    def remember_and_upload(source: Path, key: str) -> None:
        made.append(source.parent)
        upload(source, key)

    monkeypatch.setattr(store, "upload", remember_and_upload)
    write_checkpoint(tiny_trainer().checkpoint(), store=store, manifest_key=KEY)
    of_killed, of_others = made[0].with_name(f"{made[0].name}-2"), tmp_path / "others"
    for folder in (made[0], of_killed, of_others):
        folder.mkdir()
        (folder / "state.pt").write_bytes(b"half a file")
    for folder in (of_killed, of_others):
        os.utime(folder, (time.time() - 2 * 86400,) * 2)
    write_checkpoint(tiny_trainer().checkpoint(), store=store, manifest_key=KEY)
    assert sorted(tmp_path.iterdir()) == sorted([made[0], of_others])  # the first is as new as one being written

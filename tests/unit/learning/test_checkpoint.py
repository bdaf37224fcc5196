from __future__ import annotations

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

"""Mutated NIfTI files and dataset.json through the check: success or DatasetError, never anything else.

AUTOMONAI_FUZZ_CASES says how many mutations (default 100).
"""

from __future__ import annotations

import gzip
import json
import os
import random
import time
from pathlib import Path

import pytest

from automonai.errors import DatasetError
from automonai.imaging.checking import check_dataset
from automonai.imaging.phantom import write_phantom

CASES = int(os.environ.get("AUTOMONAI_FUZZ_CASES", "100"))
SECONDS_PER_CASE = 5
JUNK: list[object] = [
    None, True, -1, 0, 1e308, float("nan"), float("inf"), "", "..", "\0", "/", "\ud800", "a" * 5000, [], [[]], {},
    {"0": {}}, 10**30, "./imagesTr", "imagesTr/phantom_001.nii.gz", ["background"], "NaN", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    write_phantom(root, cases=2, shape=(18, 17, 16), channels=2)
    return root


def flip_bytes(content: bytearray, chance: random.Random, end: int) -> None:
    for _ in range(chance.choice([1, 2, 8, 64])):
        content[chance.randrange(min(end, len(content)))] = chance.randrange(256)


def mutate_file(content: bytes, chance: random.Random) -> bytes:
    """Spoil the header, the values or the compressed bytes, or cut, repeat or insert a piece."""
    raw = bytearray(gzip.decompress(content))
    kind = chance.randrange(7)
    if kind < 3:
        flip_bytes(raw, chance, 352 if kind < 2 else len(raw))
    elif kind == 3:
        start = chance.randrange(0, 344, 2)
        raw[start : start + chance.choice([2, 4, 8])] = chance.choice([b"\xff\x7f", b"\0\0", b"\xff\xff\xff\xff"])
    elif kind == 4:
        del raw[chance.randrange(len(raw)) :]
    packed = bytearray(gzip.compress(bytes(raw), 1)) if chance.random() < 0.7 else raw
    if kind == 5:
        flip_bytes(packed, chance, len(packed))
    elif kind == 6:
        place = chance.randrange(len(packed))
        packed[place : place + chance.randrange(20)] = chance.randbytes(chance.randrange(40))
    return bytes(packed)


def mutate_document(text: str, chance: random.Random) -> bytes:
    """Replace a random value or key by junk, or spoil the text."""
    document = json.loads(text)
    node, key = document, chance.choice(list(document))
    while isinstance(node[key], dict | list) and node[key] and chance.random() < 0.7:
        node = node[key]
        key = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
    if isinstance(node, dict) and chance.random() < 0.3:
        node[chance.choice(["", "1", "-1", "é", "\ud800", "labels", "x" * 300])] = node.pop(key)
    else:
        node[key] = chance.choice(JUNK)
    content = bytearray(json.dumps(document).encode())
    if chance.random() < 0.3:
        flip_bytes(content, chance, len(content))
    return bytes(content)


def spoil(root: Path, target: Path, chance: random.Random) -> bytes:
    kept = target.read_bytes()
    is_document = target.suffix == ".json"
    target.write_bytes(mutate_document(kept.decode(), chance) if is_document else mutate_file(kept, chance))
    return kept


def refusal(root: Path) -> tuple[str, ...] | None:
    try:
        check_dataset(root)
    except DatasetError as error:
        return error.problems
    return None


@pytest.mark.parametrize("seed", range(CASES))
def test_a_mutated_dataset_passes_or_is_refused(source: Path, seed: int) -> None:
    chance = random.Random(seed)
    files = sorted(source.rglob("*.nii.gz"))
    target = source / "dataset.json" if chance.random() < 0.4 else chance.choice(files)
    kept = spoil(source, target, chance)
    started = time.process_time()
    try:
        problems = refusal(source)
    finally:
        target.write_bytes(kept)
    assert problems is None or all(problem.strip().encode() for problem in problems)
    assert time.process_time() - started < SECONDS_PER_CASE

"""Checkpoints: everything a training needs to go on bit for bit, and the network that is scored.

One file that torch loads with `weights_only` (tensors, numbers, and records as JSON text), and a manifest that commits
it: the file is put first, then the manifest, and only then the file before it is deleted.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from automonai.domain.plan import Plan
from automonai.domain.records import Record
from automonai.domain.run import CurvePoint
from automonai.errors import CorruptObjectError, ObjectNotFoundError
from automonai.learning.network import build_network
from automonai.storage.local import sha256_of
from automonai.storage.store import Store

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_VERSION = 1
_DOWNLOAD = ".checkpoint-"
_UPLOAD = "automonai-checkpoint-"
_DAY_SECONDS = 86400


class Manifest(Record):
    """What commits a checkpoint: its file counts only with exactly this content."""

    version: int = _VERSION
    key: str
    """Store key of the file."""
    sha256: str
    bytes: int
    epoch: int


class PlateauState(Record):
    """How often the learning rate was divided, and what it waits for; see `loop.after_epoch`."""

    best_loss: float | None = None
    epochs_without_progress: int = 0
    divisions: int = 0


class Progress(Record):
    """Where a training stands."""

    seed: int
    step: int = 0
    """Optimiser steps of the trial on this fold, earlier rungs included."""
    steps_per_epoch: int
    origin_step: int = 0
    """Step at which this run took over from a lower rung."""
    epoch_loss_sum: float = 0.0
    """Of the losses of the epoch at hand."""
    seconds: float = 0.0
    """Training and validation time of the trial."""
    validation_seconds: float | None = None
    """What the last validation took; None before the first."""
    curve: tuple[CurvePoint, ...] = ()
    plateau: PlateauState = PlateauState()
    validation_due: bool = False
    """Whether the run was stopped within the validation after its last step, which then comes before the next one."""
    is_finished: bool = False
    """Whether the run has come to its end, its last validation included."""

    @property
    def epoch(self) -> int:
        """Return the epochs begun so far."""
        return -(-self.step // self.steps_per_epoch)


@dataclass(frozen=True)
class Checkpoint:
    """A training at rest; all tensors on the CPU when read."""

    plan: Plan
    progress: Progress
    network: dict[str, Tensor]
    """The weights that the optimiser moves."""
    average: dict[str, Tensor]
    """Their moving average: the network that is scored."""
    optimizer: dict[str, object]
    scaler: dict[str, object]


def write_checkpoint(checkpoint: Checkpoint, *, store: Store, manifest_key: str) -> Manifest:
    """Commit a checkpoint in place of the one before it.

    The file is made in the system's folder for temporary files.

    Raises:
        OSError: If there is no room for it, here or in the store; the checkpoint before it is as it was.
    """
    before = _manifest_if_any(store, manifest_key)
    content = {
        "version": _VERSION,
        "plan": checkpoint.plan.model_dump_json(),
        "progress": checkpoint.progress.model_dump_json(),
        "network": checkpoint.network,
        "average": checkpoint.average,
        "optimizer": checkpoint.optimizer,
        "scaler": checkpoint.scaler,
    }
    _remove_old_remains(Path(tempfile.gettempdir()), _UPLOAD)
    with tempfile.TemporaryDirectory(prefix=_UPLOAD) as folder:
        path = Path(folder) / "state.pt"
        _save(content, path)
        digest = sha256_of(path)
        folder_key = manifest_key.rpartition("/")[0]
        key = f"{folder_key}/state-{checkpoint.progress.step:08d}-{digest[:12]}.pt"
        manifest = Manifest(key=key, sha256=digest, bytes=path.stat().st_size, epoch=checkpoint.progress.epoch)
        store.upload(path, key)
    store.put(manifest_key, manifest.model_dump_json().encode())
    if before is not None and before.key != key:
        store.delete(before.key)
    return manifest


def read_checkpoint(store: Store, manifest_key: str, folder: Path) -> Checkpoint:
    """Return a committed checkpoint.

    Args:
        store: Where it lies.
        manifest_key: Of its manifest.
        folder: Any folder with room for the file, which is removed again.

    Raises:
        ObjectNotFoundError: If there is no manifest under that key.
        CorruptObjectError: If the file is missing, or is not what the manifest says.
    """
    manifest = _read_manifest(store, manifest_key)
    with _downloaded(store, manifest, folder) as path:
        content = torch.load(path, map_location="cpu", weights_only=True)
    if content.get("version") != _VERSION:
        raise CorruptObjectError(
            f"{manifest.key}: version {content.get('version')}, expected {_VERSION}; train it anew"
        )
    return Checkpoint(
        plan=Plan.model_validate_json(content["plan"]),
        progress=Progress.model_validate_json(content["progress"]),
        network=content["network"],
        average=content["average"],
        optimizer=content["optimizer"],
        scaler=content["scaler"],
    )


def read_member(store: Store, manifest_key: str, folder: Path) -> tuple[Plan, nn.Module]:
    """Return a trained network for prediction: the scored weights, on the CPU, in evaluation mode, without gradients.

    Args:
        store: Where the checkpoint lies.
        manifest_key: Of its manifest.
        folder: Any folder with room for the file, which is removed again.

    Raises:
        ObjectNotFoundError: If there is no manifest under that key.
        CorruptObjectError: If the file is missing, or is not what the manifest says.
    """
    checkpoint = read_checkpoint(store, manifest_key, folder)
    network = build_network(checkpoint.plan.network, slice_axis=checkpoint.plan.slice_axis)
    network.load_state_dict(checkpoint.average)
    return checkpoint.plan, network.eval().requires_grad_(False)


def _read_manifest(store: Store, manifest_key: str) -> Manifest:
    try:
        return Manifest.model_validate_json(store.get(manifest_key))
    except ValidationError as error:
        raise CorruptObjectError(f"{manifest_key}: is not a checkpoint's manifest: {error}") from error


def _manifest_if_any(store: Store, manifest_key: str) -> Manifest | None:
    try:
        return _read_manifest(store, manifest_key)
    except (ObjectNotFoundError, CorruptObjectError):
        return None


@contextmanager
def _downloaded(store: Store, manifest: Manifest, folder: Path) -> Iterator[Path]:
    """Give the checkpoint's file once its content is proven."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove_old_remains(folder, _DOWNLOAD)
    with tempfile.TemporaryDirectory(prefix=_DOWNLOAD, dir=folder) as place:
        path = Path(place) / "state.pt"
        try:
            store.download(manifest.key, path)
        except ObjectNotFoundError as error:
            raise CorruptObjectError(f"{manifest.key}: the manifest names it, but it is not there") from error
        found = sha256_of(path)
        if found != manifest.sha256:
            raise CorruptObjectError(
                f"{manifest.key}: SHA-256 is {found}, expected {manifest.sha256}"
                f" ({path.stat().st_size} bytes, expected {manifest.bytes})"
            )
        yield path


def _remove_old_remains(folder: Path, prefix: str) -> None:
    """Remove what processes left that were killed: nobody else does, and a disk has an end."""
    for remains in folder.glob(f"{prefix}*"):
        with suppress(FileNotFoundError):  # another process is faster
            if time.time() - remains.stat().st_mtime > _DAY_SECONDS:
                shutil.rmtree(remains, ignore_errors=True)


class _Remembering(io.BufferedWriter):
    """A file that keeps the error of a write: torch makes a RuntimeError of it, which does not tell a full disk."""

    error: OSError | None = None

    def write(self, data: ReadableBuffer) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _save(content: dict[str, object], path: Path) -> None:
    """Write a file by torch; what the system refuses is an OSError again, for it is no fault of the run's."""
    file = _Remembering(path.open("wb", buffering=0))
    try:
        with file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        refused = error if isinstance(error, OSError) else file.error
        if refused is None:
            raise
        raise OSError(refused.errno, refused.strerror, str(path)) from error


def cpu_state(state: dict[str, object]) -> dict[str, object]:
    """Return a nested state with its tensors copied to the CPU, so that later steps do not change it."""
    return cast("dict[str, object]", _copied(state))


def _copied(value: object) -> object:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(part) for part in value)
    return value

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from automonai.errors import CorruptObjectError, DatasetError, UserError
from automonai.storage import datasets
from automonai.storage.datasets import MANIFEST, fetch_dataset, limit_from_environment, pinned, push_dataset
from automonai.storage.local import LocalStore
from automonai.storage.opening import open_store

FETCH = """
import logging, sys, time
from pathlib import Path
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from automonai.storage.datasets import fetch_dataset
print("got", fetch_dataset(sys.argv[1], cache_folder=Path(sys.argv[2])), flush=True)
time.sleep(float(sys.argv[3]))
"""


@pytest.fixture(autouse=True)
def leases() -> Iterator[None]:
    """Let each test begin as a process does, and end as one."""
    yield
    end_process()


def end_process() -> None:
    """Do what the end of a process does to its datasets."""
    for lease in datasets._leases.values():
        os.close(lease)
    datasets._leases.clear()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "source")


@pytest.fixture
def bucket(tmp_path: Path, source: Path) -> str:
    """Give where the dataset was pushed to."""
    push_dataset(source, str(tmp_path / "bucket"))
    return str(tmp_path / "bucket")


def make_dataset(folder: Path, *, cases: int = 3, fill: bytes = b"x") -> Path:
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "dataset.json").write_text('{"name": "test"}')
    for number in range(cases):
        (folder / "imagesTr" / f"case_{number}.nii.gz").write_bytes(fill * 1000 + str(number).encode())
    return folder


def test_what_is_linked_is_pushed_and_a_loop_of_links_is_left(tmp_path: Path, source: Path) -> None:
    (source / "imagesTr").rename(tmp_path / "elsewhere")
    (source / "imagesTr").symlink_to(tmp_path / "elsewhere")
    (source / "imagesTs").symlink_to(tmp_path / "elsewhere")
    (source / "loop").symlink_to(source)
    pushed = push_dataset(source, str(tmp_path / "bucket"))
    assert pushed.files == 7
    assert (tmp_path / "bucket" / "imagesTr" / "case_2.nii.gz").is_file()


def test_a_name_that_s3_cannot_have_is_told_before_anything_is_pushed(tmp_path: Path, source: Path) -> None:
    (source / "imagesTr" / "a\\b.nii.gz").write_bytes(b"x")
    with pytest.raises(DatasetError, match="backslash"):
        push_dataset(source, str(tmp_path / "bucket"))
    assert not (tmp_path / "bucket").exists()


def files_below(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def forget_files(bucket: str) -> None:
    """Delete all but the manifest, so that nothing can be downloaded any more."""
    for key in list(open_store(bucket).list()):
        open_store(bucket).delete(key)


def start_fetch(bucket: str, cache: Path, *, seconds: float = 0.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, bucket, str(cache), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_what_was_pushed_is_fetched(source: Path, bucket: str, tmp_path: Path) -> None:
    assert files_below(fetch_dataset(bucket, cache_folder=tmp_path / "cache")) == files_below(source)


def test_hidden_files_are_not_pushed(source: Path, tmp_path: Path) -> None:
    (source / "imagesTr" / "._case_0.nii.gz").write_bytes(b"resource fork")
    (source / ".git").mkdir()
    (source / ".git" / "config").write_bytes(b"")
    assert push_dataset(source, str(tmp_path / "bucket")).files == 4


def test_a_folder_without_a_dataset_is_not_pushed(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(DatasetError, match=r"source: there is no dataset\.json"):
        push_dataset(tmp_path / "source", str(tmp_path / "bucket"))
    assert not (tmp_path / "bucket").exists()


def test_a_second_push_sends_what_has_changed(source: Path, bucket: str) -> None:
    assert push_dataset(source, bucket).uploaded == 0
    (source / "imagesTr" / "case_1.nii.gz").write_bytes(b"changed")
    push = push_dataset(source, bucket)
    assert (push.files, push.uploaded, push.bytes_uploaded) == (4, 1, 7)


def test_a_push_tells_each_file(source: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    push_dataset(source, str(tmp_path / "bucket"), on_file=lambda *file: told.append(file))
    assert [(done, total) for _, done, total in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert told[0][0] == "dataset.json"


def test_an_interrupted_push_counts_for_nothing_and_goes_on(source: Path, tmp_path: Path) -> None:
    bucket = str(tmp_path / "bucket")

    def interrupt(path: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push_dataset(source, bucket, on_file=interrupt)
    with pytest.raises(DatasetError, match="push is not finished"):
        fetch_dataset(bucket, cache_folder=tmp_path / "cache")
    assert push_dataset(source, bucket).uploaded <= 2
    assert files_below(fetch_dataset(bucket, cache_folder=tmp_path / "cache")) == files_below(source)


def test_a_second_fetch_downloads_nothing(source: Path, bucket: str, tmp_path: Path) -> None:
    fetch_dataset(bucket, cache_folder=tmp_path / "cache")
    end_process()
    forget_files(bucket)
    assert files_below(fetch_dataset(bucket, cache_folder=tmp_path / "cache")) == files_below(source)


def test_a_pinned_dataset_in_the_cache_needs_no_store_at_all(bucket: str, tmp_path: Path) -> None:
    folder = fetch_dataset(bucket, cache_folder=tmp_path / "cache")
    location = pinned(bucket, folder)
    end_process()
    (Path(bucket) / MANIFEST).unlink()
    assert fetch_dataset(location, cache_folder=tmp_path / "cache") == folder


def test_a_pinned_dataset_that_was_pushed_anew_is_refused(source: Path, bucket: str, tmp_path: Path) -> None:
    location = pinned(bucket, fetch_dataset(bucket, cache_folder=tmp_path / "one"))
    (source / "imagesTr" / "case_1.nii.gz").write_bytes(b"changed")
    push_dataset(source, bucket)
    with pytest.raises(DatasetError, match="has changed since it was checked"):
        fetch_dataset(location, cache_folder=tmp_path / "two")


def test_a_file_that_is_not_what_the_manifest_says_is_an_error(bucket: str, tmp_path: Path) -> None:
    LocalStore(Path(bucket)).put("imagesTr/case_1.nii.gz", b"spoilt")
    with pytest.raises(CorruptObjectError, match=r"imagesTr/case_1\.nii\.gz: is not what the manifest says"):
        fetch_dataset(bucket, cache_folder=tmp_path / "cache")


def test_a_file_that_is_missing_is_an_error(bucket: str, tmp_path: Path) -> None:
    LocalStore(Path(bucket)).delete("imagesTr/case_1.nii.gz")
    with pytest.raises(CorruptObjectError, match="though the manifest names it"):
        fetch_dataset(bucket, cache_folder=tmp_path / "cache")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"files": [{"path": "../x", "bytes": 1, "sha256": "0"}]}'])
def test_a_manifest_that_is_none_is_an_error(bucket: str, tmp_path: Path, content: bytes) -> None:
    LocalStore(Path(bucket)).put(MANIFEST, content)
    with pytest.raises(CorruptObjectError, match="is no manifest"):
        fetch_dataset(bucket, cache_folder=tmp_path / "cache")


def test_what_a_killed_fetch_left_is_used_once_it_is_proven(source: Path, bucket: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    entry = fetch_dataset(bucket, cache_folder=cache)
    end_process()
    place = entry.with_name(f".fetching-{entry.name}")
    entry.rename(place)
    (place / "imagesTr" / "case_0.nii.gz").unlink()
    (place / "imagesTr" / "case_1.nii.gz").write_bytes(b"half")
    (place / "imagesTr" / ".writing-abc").write_bytes(b"half")
    LocalStore(Path(bucket)).delete("imagesTr/case_2.nii.gz")  # whole already, hence not asked for
    assert files_below(fetch_dataset(bucket, cache_folder=cache)) == files_below(source)


def test_processes_that_want_the_same_dataset_fetch_it_once(source: Path, bucket: str, tmp_path: Path) -> None:
    processes = [start_fetch(bucket, tmp_path / "cache") for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sum("fetching" in output for output in outputs) == 1
    folders = {line.partition(" ")[2] for output in outputs for line in output.splitlines() if line.startswith("got")}
    assert len(folders) == 1
    assert files_below(Path(folders.pop())) == files_below(source)


def test_the_least_recently_used_dataset_makes_room(tmp_path: Path) -> None:
    cache, entries = tmp_path / "cache", []
    buckets = [str(tmp_path / f"bucket-{letter}") for letter in "abc"]
    for bucket in buckets:
        push_dataset(make_dataset(tmp_path / f"source-{bucket[-1]}", fill=bucket[-1].encode()), bucket)
    for bucket in (*buckets[:2], buckets[0]):  # the second one is the one that was not used for longest
        entries.append(fetch_dataset(bucket, cache_folder=cache, limit_bytes=7000))
        end_process()
        time.sleep(0.01)
    last = fetch_dataset(buckets[2], cache_folder=cache, limit_bytes=7000)
    assert last.is_dir()
    assert entries[0].is_dir()
    assert not entries[1].exists()
    assert {folder.name for folder in last.parent.iterdir() if folder.is_dir()} == {entries[0].name, last.name}


def test_a_dataset_in_use_is_never_evicted(bucket: str, tmp_path: Path) -> None:
    push_dataset(make_dataset(tmp_path / "other", fill=b"y"), str(tmp_path / "other-bucket"))
    user = start_fetch(bucket, tmp_path / "cache", seconds=60)
    assert user.stdout is not None
    folder = Path(next(line for line in user.stdout if line.startswith("got")).split()[1])
    try:
        with pytest.raises(UserError, match="AUTOMONAI_DATASET_CACHE_GIB .*higher"):
            fetch_dataset(str(tmp_path / "other-bucket"), cache_folder=tmp_path / "cache", limit_bytes=4000)
        assert folder.is_dir()
    finally:
        user.kill()
        user.communicate()
    fetch_dataset(str(tmp_path / "other-bucket"), cache_folder=tmp_path / "cache", limit_bytes=4000)
    assert not folder.exists()


def test_what_another_dataset_left_half_fetched_makes_room_first(bucket: str, source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    old = fetch_dataset(bucket, cache_folder=cache)
    end_process()
    buckets = [str(tmp_path / name) for name in ("half", "new")]
    for name in buckets:
        push_dataset(make_dataset(tmp_path / f"source-{Path(name).name}", fill=name[-1].encode()), name)
    half = fetch_dataset(buckets[0], cache_folder=cache)
    end_process()
    half.rename(half.with_name(f".fetching-{half.name}"))
    new = fetch_dataset(buckets[1], cache_folder=cache, limit_bytes=7000)
    assert {folder.name for folder in new.parent.iterdir() if folder.is_dir()} == {old.name, new.name}


@pytest.mark.parametrize("text", ["", "much", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMONAI_DATASET_CACHE_GIB", text)
    with pytest.raises(UserError, match="expected a number of GiB"):
        limit_from_environment()


def test_a_dataset_goes_to_a_bucket_and_comes_back(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    minio = request.getfixturevalue("minio")
    for name, value in minio.environment().items():
        monkeypatch.setenv(name, value)
    location = "s3://automonai/datasets/there-and-back"
    assert push_dataset(source, location).uploaded == 4
    assert push_dataset(source, location).uploaded == 0
    folder = fetch_dataset(location, cache_folder=tmp_path / "cache")
    assert files_below(folder) == files_below(source)

"""What every Store promises; fixtures supply the implementations."""

import hashlib
import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from automonai.errors import ObjectNotFoundError
from automonai.storage.local import LocalStore
from automonai.storage.memory import MemoryStore
from automonai.storage.store import Store

PREFIXES = (f"studies/test-{number}" for number in itertools.count())


@pytest.fixture(params=["memory", "local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    match request.param:
        case "memory":
            return MemoryStore()
        case "local":
            return LocalStore(tmp_path / "store")
    made: Store = request.getfixturevalue("minio").store(next(PREFIXES))
    return made


def test_what_was_put_is_got(store: Store) -> None:
    store.put("a/b.json", b"content")
    assert store.get("a/b.json") == b"content"


def test_a_put_replaces_what_was_there(store: Store) -> None:
    store.put("a", b"old and longer")
    store.put("a", b"new")
    assert store.get("a") == b"new"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(content=st.binary(max_size=2000))
def test_any_bytes_come_back(store: Store, content: bytes) -> None:
    store.put("bytes", content)
    assert store.get("bytes") == content


def test_a_missing_object_is_an_error_that_names_its_key(store: Store) -> None:
    with pytest.raises(ObjectNotFoundError, match="runs/none"):
        store.get("runs/none")


def test_a_folder_is_no_object(store: Store) -> None:
    store.put("runs/a/result.json", b"1")
    assert not store.exists("runs/a")
    with pytest.raises(ObjectNotFoundError):
        store.get("runs/a")


def test_a_missing_object_cannot_be_downloaded_and_leaves_no_file(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFoundError):
        store.download("none", tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_exists_tells_objects_apart(store: Store) -> None:
    store.put("a/b", b"")
    assert store.exists("a/b")
    assert not store.exists("a/c")


def test_an_object_tells_its_checksum_and_a_missing_one_has_none(store: Store, tmp_path: Path) -> None:
    store.put("a/b", b"content")
    (tmp_path / "source").write_bytes(b"more content")
    store.upload(tmp_path / "source", "a/c")
    assert store.sha256("a/b") == hashlib.sha256(b"content").hexdigest()
    assert store.sha256("a/c") == hashlib.sha256(b"more content").hexdigest()
    assert store.sha256("a") is None


def test_list_yields_the_keys_of_a_prefix_in_order(store: Store) -> None:
    for key in ("runs/b", "runs/a/x", "journal/1", "runs2"):
        store.put(key, b"1")
    assert list(store.list("runs/")) == ["runs/a/x", "runs/b"]
    assert list(store.list("runs")) == ["runs/a/x", "runs/b", "runs2"]
    assert list(store.list("nothing/")) == []
    assert len(list(store.list())) == 4


def test_a_file_goes_up_and_comes_down(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    store.upload(source, "big/file")
    store.download("big/file", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == source.read_bytes()


def test_delete_removes_and_may_be_repeated(store: Store) -> None:
    store.put("a", b"1")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/./b", "a\\b", "a/"])
def test_a_key_that_is_no_relative_path_is_refused(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="is not a key"):
        store.put(key, b"1")

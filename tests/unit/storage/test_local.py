from pathlib import Path

import pytest

from automonai.storage.local import LocalStore, discard_unfinished, write_whole


def test_a_write_that_fails_leaves_the_old_content_and_no_other_file(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a", b"old")

    def fail(stream: object) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "a", fail)
    assert store.get("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_files_that_are_still_being_written_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".writing-abc").write_bytes(b"half")
    assert list(LocalStore(tmp_path).list()) == []


def test_what_a_killed_writer_left_is_discarded_and_nothing_else(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("runs/a/result.json", b"whole")
    (tmp_path / "runs" / "a" / ".writing-x").write_bytes(b"half")
    (tmp_path / "runs" / ".lock").touch()
    discard_unfinished(tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"result.json", ".lock"}

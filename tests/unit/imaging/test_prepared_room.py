"""The bound of the cache of prepared cases: who goes first, and who stays whatever the bound."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from pathlib import Path

import pytest

from automonai.imaging import prepared_room
from automonai.imaging.prepared_room import LIMIT_VARIABLE, forget_uses, make_room, making, note_use


def entry(folder: Path, name: str, *, size: int = 100, used_at: float = 0.0) -> Path:
    made = folder / name
    made.mkdir(parents=True)
    (made / "case.json").write_bytes(b"")
    (made / "image.npy").write_bytes(bytes(size))
    os.utime(made, (used_at, used_at))
    return made


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if (path / "case.json").is_file()}


def test_what_was_used_longest_ago_goes_first_and_no_more_than_needed(tmp_path: Path) -> None:
    for name, used_at in (("old", 1.0), ("older", 0.5), ("new", 2.0)):
        entry(tmp_path, name, used_at=used_at)
    make_room(tmp_path, 100, limit_bytes=300)
    assert kept(tmp_path) == {"old", "new"}
    make_room(tmp_path, 100, limit_bytes=300)
    assert kept(tmp_path) == {"old", "new"}


def test_what_this_process_uses_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    note_use(entry(tmp_path, "mine", used_at=0.0))
    entry(tmp_path, "nobodys", used_at=9e9)
    with caplog.at_level(logging.WARNING):
        make_room(tmp_path, 100, limit_bytes=150)
    assert kept(tmp_path) == {"mine"}
    assert "exceeded" in caplog.text


def test_what_this_process_has_forgotten_goes_unless_it_is_used_again(tmp_path: Path) -> None:
    forget_uses(tmp_path)
    uses = [entry(tmp_path, name) for name in ("earlier", "again")]
    for used in uses:
        note_use(used)
    forget_uses(tmp_path)
    note_use(uses[1])
    make_room(tmp_path, 100, limit_bytes=100)
    assert kept(tmp_path) == {"again"}


def test_what_another_living_process_uses_stays_and_what_a_dead_one_used_does_not(tmp_path: Path) -> None:
    entry(tmp_path, "theirs")
    entry(tmp_path, "the-deads")
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "dead").write_text("the-deads\n")
    with (tmp_path / "users" / "living").open("w") as note:
        fcntl.flock(note, fcntl.LOCK_EX)
        note.write("theirs\n")
        note.flush()
        make_room(tmp_path, 100, limit_bytes=100)
    assert kept(tmp_path) == {"theirs"}
    assert not (tmp_path / "users" / "dead").exists()


def test_using_an_entry_makes_it_the_newest(tmp_path: Path) -> None:
    first, second = entry(tmp_path, "first", used_at=1.0), entry(tmp_path, "second", used_at=2.0)
    note_use(first)
    assert first.stat().st_mtime > second.stat().st_mtime
    with pytest.raises(FileNotFoundError):
        note_use(tmp_path / "gone")


def test_an_entry_that_is_about_to_be_evicted_cannot_be_taken_into_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note_use(entry(tmp_path, "mine"))
    wanted, answers = entry(tmp_path, "wanted"), []

    def use() -> None:
        try:
            note_use(wanted)
            answers.append(wanted.is_dir())
        except FileNotFoundError:
            answers.append(False)

    user, in_use = threading.Thread(target=use), prepared_room._in_use

    def in_use_before_the_use(users: Path) -> set[str]:
        found = in_use(users)
        user.start()
        user.join(0.2)
        return found

    monkeypatch.setattr(prepared_room, "_in_use", in_use_before_the_use)
    make_room(tmp_path, 100, limit_bytes=250)
    user.join()
    assert (answers, kept(tmp_path)) == ([False], {"mine"})


def test_nobody_waits_while_what_was_evicted_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry(tmp_path, "old")
    mine, deleted = entry(tmp_path, "mine", used_at=1.0), []

    def delete(folder: Path, **_: object) -> None:
        with (tmp_path / "room.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        note_use(mine)
        deleted.append(folder.name)

    monkeypatch.setattr(prepared_room.shutil, "rmtree", delete)
    make_room(tmp_path, 100, limit_bytes=200)
    assert [name.rpartition("-")[0] for name in deleted] == [".evicted-old"]


@pytest.mark.parametrize("limit_bytes", [None, 1000])
def test_what_killed_processes_left_unfinished_goes_and_what_living_ones_write_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_bytes: int | None
) -> None:
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    left = tmp_path / ".writing-left"
    left.mkdir()
    (left / "image.npy").write_bytes(b"half")
    with making(tmp_path / "new") as unfinished:
        unfinished.mkdir()
        make_room(tmp_path, 100, limit_bytes=limit_bytes)
        assert {folder.name for folder in tmp_path.glob(".*")} == {".writing-new"}


def test_without_a_bound_nothing_is_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    entry(tmp_path, "a")
    make_room(tmp_path, 10**9)
    assert kept(tmp_path) == {"a"}
    monkeypatch.setenv(LIMIT_VARIABLE, "0.00000005")
    make_room(tmp_path, 1)
    assert kept(tmp_path) == set()

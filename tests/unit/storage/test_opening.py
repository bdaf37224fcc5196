from __future__ import annotations

import sys
from pathlib import Path

import pytest

from automonai.errors import UserError
from automonai.storage.local import LocalStore
from automonai.storage.opening import join_location, open_store, place_on_this_machine, user_cache_folder


def test_a_path_opens_a_folder(tmp_path: Path) -> None:
    assert isinstance(open_store(tmp_path), LocalStore)
    assert isinstance(open_store(str(tmp_path)), LocalStore)


def test_an_s3_location_opens_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    s3 = pytest.importorskip("automonai.storage.s3")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    store = open_store("s3://bucket/studies/test")
    assert isinstance(store, s3.S3Store)
    assert store.location == s3.S3Location("bucket", "studies/test")


def test_a_missing_client_is_told_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "automonai.storage.s3", raising=False)
    monkeypatch.setitem(sys.modules, "minio", None)
    with pytest.raises(UserError, match=r"pip install '\.\[cluster\]'"):
        open_store("s3://bucket/studies/test")


def test_an_s3_location_that_became_a_path_is_refused() -> None:
    with pytest.raises(UserError, match="in Python as text"):
        open_store(Path("s3://bucket/studies/test"))


@pytest.mark.parametrize(
    ("store", "joined"), [("./studies", "studies/test"), ("s3://b", "s3://b/test"), ("s3://b/s/", "s3://b/s/test")]
)
def test_a_studys_location_is_its_name_below_the_store(store: str, joined: str) -> None:
    assert join_location(store, "test") == joined


@pytest.mark.parametrize(
    ("variable", "folder"), [("XDG_CACHE_HOME", "here/automonai"), ("HOME", "here/.cache/automonai")]
)
def test_the_cache_is_where_the_system_has_it(variable: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, "here")
    assert user_cache_folder() == Path(folder)


def test_a_study_in_a_bucket_has_its_own_folder_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = place_on_this_machine("s3://one/studies/test")
    assert here == place_on_this_machine("s3://one/studies/test/")
    assert here != place_on_this_machine("s3://two/studies/test")
    assert here.is_relative_to(tmp_path)
    assert place_on_this_machine("studies/test") == Path("studies/test")

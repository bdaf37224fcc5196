from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

pytest.importorskip("minio", reason="needs the extra automonai[cluster]")

import minio_server
from answers import Answers, answering_server
from certificates import make_authority
from minio.credentials.providers import AssumeRoleProvider, StaticProvider
from minio.minioadmin import MinioAdmin
from minio_server import ACCESS_KEY, BUCKET, SECRET_KEY, MinioServer

from automonai.errors import (
    CorruptObjectError,
    ObjectNotFoundError,
    StorageError,
    StoreAccessError,
    StoreUnavailableError,
)
from automonai.storage import connections, s3
from automonai.storage.retrying import Retrying
from automonai.storage.s3 import PART_BYTES, S3Store
from automonai.storage.s3_settings import S3Location, S3Settings

IMPATIENT = Retrying(patience_seconds=0.0, least_tries=1)
READER, READER_SECRET = "reader", "reader-not-so-secret"
CUT_OFF = (
    b"<Error><Code>ClientDisconnected</Code><Message>Client disconnected before response was ready</Message></Error>"
)
"""What a MinIO that is being stopped answers, with status 499."""


@pytest.fixture
def store(minio: MinioServer, request: pytest.FixtureRequest) -> S3Store:
    return minio.store(f"unit/{request.node.name}".replace("[", "-").replace("]", ""), retrying=IMPATIENT)


@pytest.fixture
def answering() -> Iterator[tuple[str, type[Answers]]]:
    with answering_server() as server:
        yield server


@pytest.fixture(scope="module")
def reader(minio: MinioServer) -> MinioServer:
    """Give a server that has an account with the right to read and no other."""
    admin = MinioAdmin(
        endpoint=f"127.0.0.1:{minio.port}",
        credentials=StaticProvider(ACCESS_KEY, SECRET_KEY),
        secure=False,
        region="us-east-1",
    )
    admin.user_add(READER, READER_SECRET)
    admin.policy_set("readonly", user=READER)
    return minio


def count_requests(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by each request's method."""
    seen: list[str] = []
    pool = store._client._http
    send = pool.urlopen

    def urlopen(method: str, url: str, **options: object) -> object:
        seen.append(method)
        return send(method, url, **options)

    monkeypatch.setattr(pool, "urlopen", urlopen)
    return seen


def told(error: BaseException) -> str:
    """Return everything that a log of this error would show."""
    return "".join(traceback.format_exception(error)) + repr(error)


@pytest.mark.parametrize(
    ("text", "bucket", "prefix"),
    [("s3://abc", "abc", ""), ("s3://abc/", "abc", ""), ("s3://a.b-c/studies/x/", "a.b-c", "studies/x")],
)
def test_a_location_is_a_bucket_and_a_prefix(text: str, bucket: str, prefix: str) -> None:
    assert S3Location.parse(text) == S3Location(bucket, prefix)
    assert str(S3Location.parse(text)) == text.rstrip("/")


@pytest.mark.parametrize("text", ["s3://", "s3://A_b/x", "s3://ab", "s3:/abc/x", "s3://abc//x", "s3://abc/../x"])
def test_a_malformed_location_is_refused(text: str) -> None:
    with pytest.raises(StoreAccessError, match=r"s3://bucket/folder"):
        S3Location.parse(text)


def test_settings_come_from_the_variables_of_s3_tools(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.crt"
    bundle.touch()
    settings = S3Settings.from_environment(
        {
            "AWS_ENDPOINT_URL": "https://general:1",
            "AWS_ENDPOINT_URL_S3": "https://special:2/",
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_SESSION_TOKEN": "token",
            "AWS_REGION": "eu-1",
            "AWS_CA_BUNDLE": str(bundle),
            "AWS_S3_ADDRESSING_STYLE": "virtual",
        }
    )
    assert settings == S3Settings(
        endpoint="https://special:2",
        region="eu-1",
        ca_bundle=str(bundle),
        addressing="virtual",
        access_key="id",
        secret_key="secret",
        session_token="token",
    )
    assert S3Settings.from_environment({"AWS_ENDPOINT_URL": "http://general:1"}).endpoint == "http://general:1"
    assert S3Settings.from_environment({}).endpoint == "https://s3.amazonaws.com"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AWS_ENDPOINT_URL_S3": "minio:9000"}, "expected https://host"),
        ({"AWS_ENDPOINT_URL_S3": "http://minio:9000/path"}, "expected https://host"),
        ({"AWS_ENDPOINT_URL_S3": "http://user:hush@minio:9000"}, "holds a user or password"),
        ({"AWS_ACCESS_KEY_ID": "id"}, "set both"),
        ({"AWS_CA_BUNDLE": "/nowhere/ca.crt"}, "/nowhere/ca.crt, which is no file"),
        ({"AWS_S3_ADDRESSING_STYLE": "dns"}, "expected path, virtual or auto"),
    ],
)
def test_malformed_settings_are_refused_with_their_variable(variables: dict[str, str], message: str) -> None:
    with pytest.raises(StoreAccessError, match=message) as caught:
        S3Settings.from_environment(variables)
    assert "hush" not in told(caught.value)


def test_keys_do_not_show_in_reprs() -> None:
    settings = S3Settings(access_key="the-id", secret_key="the-secret", session_token="the-token")
    shown = repr(settings) + repr(S3Store(S3Location("abc"), settings))
    assert not [secret for secret in ("the-id", "the-secret", "the-token") if secret in shown]


@pytest.mark.parametrize(
    ("addressing", "endpoint", "url"),
    [
        ("", "https://minio.example:9000", "https://minio.example:9000/abc/x"),
        ("virtual", "https://minio.example:9000", "https://abc.minio.example:9000/x"),
        ("", "https://s3.amazonaws.com", "https://abc.s3.dualstack.eu-central-1.amazonaws.com/x"),
        ("path", "https://s3.amazonaws.com", "https://s3.dualstack.eu-central-1.amazonaws.com/abc/x"),
    ],
)
def test_buckets_are_addressed_by_path_or_by_host(addressing: str, endpoint: str, url: str) -> None:
    settings = S3Settings(endpoint=endpoint, region="eu-central-1", addressing=addressing)
    built = S3Store(S3Location("abc"), settings)._client._base_url.build(
        method="GET", region="eu-central-1", bucket_name="abc", object_name="x"
    )
    assert built.geturl().replace(".dualstack", "") == url.replace(".dualstack", "")


def test_each_operation_is_one_request(store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = count_requests(store, monkeypatch)
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    store.put("a", b"1")
    store.upload(tmp_path / "file", "b")
    store.get("a")
    store.download("b", tmp_path / "copy")
    store.exists("a")
    store.sha256("a")
    assert list(store.list()) == ["a", "b"]
    store.delete("a")
    assert seen == ["PUT", "PUT", "GET", "GET", "HEAD", "HEAD", "GET", "DELETE"]


def test_a_large_file_goes_up_in_parts_and_comes_down_whole(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = count_requests(store, monkeypatch)
    source = tmp_path / "source"
    source.write_bytes(b"0123456789abcdef" * ((2 * PART_BYTES + 4096) // 16))
    store.upload(source, "large")
    assert seen.count("PUT") == 3
    store.download("large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_an_object_that_is_not_what_was_written_is_an_error(store: S3Store, minio: MinioServer, tmp_path: Path) -> None:
    name = store.location.name("a")
    minio.client().put_object(BUCKET, name, BytesIO(b"spoilt"), 6, metadata={"sha256": "0" * 64})
    with pytest.raises(CorruptObjectError, match="SHA-256"):
        store.get("a")
    with pytest.raises(CorruptObjectError, match="SHA-256"):
        store.download("a", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_an_object_of_another_tool_is_taken_as_it_is(store: S3Store, minio: MinioServer) -> None:
    minio.client().put_object(BUCKET, store.location.name("a"), BytesIO(b"plain"), 5)
    assert store.get("a") == b"plain"
    assert store.sha256("a") is None


def test_more_objects_than_a_page_holds_are_listed_in_order(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        store.put(f"x/{number}", b"")
    pages = store._client._list_objects
    monkeypatch.setattr(store._client, "_list_objects", lambda bucket, **options: pages(bucket, max_keys=3, **options))
    seen = count_requests(store, monkeypatch)
    assert list(store.list("x/")) == [f"x/{number}" for number in range(7)]
    assert len(seen) == 3


def test_a_missing_bucket_is_told_with_its_name_and_endpoint(minio: MinioServer) -> None:
    store = S3Store(S3Location("no-such-bucket"), minio.settings, retrying=IMPATIENT)
    for work in (lambda: store.get("a"), lambda: store.put("a", b""), lambda: list(store.list())):
        with pytest.raises(StoreAccessError, match=rf"'no-such-bucket' at {minio.endpoint}.*create it"):
            work()
    with pytest.raises(StoreAccessError, match="no such bucket"):
        store.exists("a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"secret_key": "a-wrong-secret"}, "AWS_SECRET_ACCESS_KEY does not belong"),
        ({"access_key": "nobody-knows-me"}, "does not know this AWS_ACCESS_KEY_ID"),
        ({"session_token": "a-wrong-token"}, "AWS_SESSION_TOKEN does not belong"),
    ],
)
def test_wrong_keys_are_told_with_their_variable_and_never_shown(
    minio: MinioServer, changes: dict[str, str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store = minio.store("keys", **changes)
    for work in (lambda: store.get("a"), lambda: store.put("a", b""), lambda: list(store.list())):
        with pytest.raises(StoreAccessError, match=message) as caught:
            work()
        shown = told(caught.value) + caplog.text
        assert not [key for key in (SECRET_KEY, *changes.values()) if key in shown]


def test_a_right_that_is_missing_is_named(reader: MinioServer) -> None:
    store = reader.store("rights", access_key=READER, secret_key=READER_SECRET)
    with pytest.raises(StoreAccessError, match=r"AccessDenied: the account needs s3:GetObject, s3:PutObject"):
        store.put("a", b"")


def test_an_endpoint_where_nobody_answers_is_named(caplog: pytest.LogCaptureFixture) -> None:
    endpoint = f"http://127.0.0.1:{minio_server.free_port()}"
    settings = S3Settings(endpoint=endpoint, access_key="id", secret_key="the-secret")
    retrying = Retrying(patience_seconds=0.0, least_tries=2, sleep=lambda seconds: None)
    with pytest.raises(StorageError, match=rf"'abc' at {endpoint}: it does not answer.*AWS_ENDPOINT_URL_S3") as caught:
        S3Store(S3Location("abc"), settings, retrying=retrying).get("a")
    assert f"no answer from {endpoint}" in caplog.text
    assert "the-secret" not in told(caught.value) + caplog.text


def test_an_upload_that_goes_on_is_not_given_up_however_long_it_takes(
    answering: tuple[str, type[Answers]], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, handler = answering
    handler.statuses, handler.bytes_per_second = [200], 20e6
    monkeypatch.setattr(s3, "CONNECT_SECONDS", 0.2)
    settings = S3Settings(endpoint=endpoint, access_key="id", secret_key="secret")
    store = S3Store(S3Location("abc"), settings, retrying=Retrying(patience_seconds=0, least_tries=1))
    store.put("a", bytes(PART_BYTES))
    monkeypatch.setattr(connections, "PIECE_BYTES", PART_BYTES)  # as long as a piece takes its time
    handler.statuses, began = [200], time.monotonic()
    store.put("a", bytes(PART_BYTES))
    assert time.monotonic() - began > 2 * s3.CONNECT_SECONDS


@pytest.mark.parametrize("statuses", [[503, 500], [429, 408], [502, 504]])
def test_errors_of_a_busy_server_are_tried_again(
    answering: tuple[str, type[Answers]], statuses: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    endpoint, handler = answering
    handler.statuses = list(statuses)
    handler.kind = "text/html" if 502 in statuses else "application/xml"
    store = S3Store(
        S3Location("abc"),
        S3Settings(endpoint=endpoint, access_key="id", secret_key="secret"),
        retrying=Retrying(sleep=lambda seconds: None),
    )
    expected = StorageError if 502 in statuses else ObjectNotFoundError
    with pytest.raises(expected):
        store.get("a")
    assert len(caplog.records) == len(statuses)


@pytest.mark.parametrize("page", ["<p>überlastet".encode("latin-1"), b"<p>overloaded"])
def test_an_error_page_of_a_proxy_is_no_answer(answering: tuple[str, type[Answers]], page: bytes) -> None:
    endpoint, handler = answering
    handler.statuses = [503]
    handler.body = page

    def answer_otherwise(seconds: float) -> None:
        handler.body = b"<Error><Code>NoSuchKey</Code></Error>"

    store = S3Store(
        S3Location("abc"),
        S3Settings(endpoint=endpoint, access_key="id", secret_key="secret"),
        retrying=Retrying(sleep=answer_otherwise),
    )
    with pytest.raises(ObjectNotFoundError):
        store.get("a")


@pytest.mark.parametrize("has_own_keys", [True, False])
def test_keys_that_expired_by_the_servers_clock_are_waited_for_where_they_are_renewed(
    answering: tuple[str, type[Answers]], has_own_keys: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, handler = answering
    handler.statuses = [400]
    handler.body = b"<Error><Code>ExpiredToken</Code></Error>"
    monkeypatch.setattr(s3, "_provider", lambda settings: StaticProvider("id", "secret"))
    keys_ = {"access_key": "id", "secret_key": "secret"} if has_own_keys else {}

    def answer_otherwise(seconds: float) -> None:
        handler.body = b"<Error><Code>NoSuchKey</Code></Error>"

    store = S3Store(
        S3Location("abc"), S3Settings(endpoint=endpoint, **keys_), retrying=Retrying(sleep=answer_otherwise)
    )
    with pytest.raises(StoreAccessError if has_own_keys else ObjectNotFoundError):
        store.get("a")


@pytest.mark.parametrize("operation", ["get", "exists", "put"])
def test_a_request_that_was_under_way_when_its_server_was_stopped_is_made_again(
    answering: tuple[str, type[Answers]], operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint, handler = answering
    handler.statuses, handler.body = [499, 499, 200], CUT_OFF
    store = S3Store(
        S3Location("abc"),
        S3Settings(endpoint=endpoint, access_key="id", secret_key="secret"),
        retrying=Retrying(sleep=lambda seconds: None),
    )
    {"get": store.get, "exists": store.exists, "put": lambda key: store.put(key, b"content")}[operation]("a")
    assert len(caplog.records) == 2


@pytest.mark.parametrize(("errors", "is_told"), [(2, False), (9, True)])
def test_an_upload_in_parts_that_is_answered_with_an_error_and_status_200_is_made_again(
    answering: tuple[str, type[Answers]], tmp_path: Path, errors: int, is_told: bool
) -> None:
    """AWS answers CompleteMultipartUpload so (its API reference)."""
    endpoint, handler = answering
    left = [CUT_OFF.replace(b"ClientDisconnected", b"InternalError")] * errors
    whole = b'<CompleteMultipartUploadResult><Key>a</Key><ETag>"e"</ETag></CompleteMultipartUploadResult>'
    begun = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"

    def post(self: Answers) -> None:
        self.body = begun if self.path.endswith("?uploads=") else left.pop() if left else whole
        self.statuses = [200]
        self.do_GET()

    handler.do_POST = post  # type: ignore[attr-defined]
    handler.statuses = [200] * 40
    retrying = Retrying(sleep=lambda seconds: None, patience_seconds=0.0, least_tries=4)
    settings = S3Settings(endpoint=endpoint, access_key="id", secret_key="secret")
    store = S3Store(S3Location("abc"), settings, retrying=retrying)
    (tmp_path / "large").write_bytes(bytes(PART_BYTES + 1))
    if is_told:
        with pytest.raises(
            StoreUnavailableError, match="cannot put a in bucket 'abc' .* the server answers with errors"
        ):
            store.upload(tmp_path / "large", "a")
    else:
        store.upload(tmp_path / "large", "a")
    assert len(left) == max(0, errors - 4)


@pytest.mark.parametrize(
    ("variables", "is_used"),
    [({}, False), ({"http_proxy": "PROXY"}, True), ({"http_proxy": "PROXY", "no_proxy": "minio.invalid"}, False)],
)
def test_a_proxy_is_used_where_the_environment_names_one(
    answering: tuple[str, type[Answers]], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], is_used: bool
) -> None:
    proxy, handler = answering
    handler.statuses, handler.body = [200], b"content"
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("PROXY", proxy))
    settings = S3Settings(endpoint="http://minio.invalid:9000", access_key="id", secret_key="secret")
    store = S3Store(S3Location("abc"), settings, retrying=IMPATIENT)
    if is_used:
        assert store.get("a") == b"content"
    else:
        with pytest.raises(StoreUnavailableError):
            store.get("a")


def test_a_page_that_is_no_s3_answer_is_told(answering: tuple[str, type[Answers]]) -> None:
    endpoint, handler = answering
    handler.kind, handler.body = "text/html", b"<html>welcome</html>"
    settings = S3Settings(endpoint=endpoint, access_key="id", secret_key="secret")
    with pytest.raises(StorageError, match="none of an S3 service"):
        S3Store(S3Location("abc"), settings, retrying=IMPATIENT).get("a")


def test_keys_of_a_containers_identity_are_used(
    reader: MinioServer, answering: tuple[str, type[Answers]], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = AssumeRoleProvider(
        sts_endpoint=reader.endpoint, access_key=READER, secret_key=READER_SECRET, region="us-east-1"
    ).retrieve()
    endpoint, handler = answering
    keys = {"AccessKeyId": session.access_key, "SecretAccessKey": session.secret_key, "Token": session.session_token}
    handler.statuses = [200]
    handler.body = json.dumps({**keys, "Expiration": "2999-01-01T00:00:00Z"}).encode()
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{endpoint}/keys")
    reader.store("identity").put("a", b"content")
    settings = replace(reader.settings, access_key=None, secret_key=None)
    store = S3Store(S3Location(BUCKET, "identity"), settings, retrying=IMPATIENT)
    assert store.get("a") == b"content"
    with pytest.raises(StoreAccessError, match="AccessDenied"):
        store.put("a", b"other")


def test_a_refused_web_identity_does_not_show_its_token(
    answering: tuple[str, type[Answers]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    token = tmp_path / "token"
    token.write_text("the-token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/test")
    settings = S3Settings(endpoint="http://127.0.0.1:1", sts_endpoint=answering[0])
    retrying = Retrying(patience_seconds=0.0, least_tries=2, sleep=lambda seconds: None)
    with pytest.raises(StoreUnavailableError, match="identity was not accepted") as caught:
        S3Store(S3Location("abc"), settings, retrying=retrying).get("a")
    assert "the-token" not in told(caught.value) + caplog.text


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    folder = tmp_path_factory.mktemp("secure")
    with minio_server.running(
        folder / "data", certificates=make_authority(folder / "certificates", "IP:127.0.0.1")
    ) as server:
        yield server


def test_a_server_with_a_certificate_of_an_own_authority_is_trusted_by_its_file(
    secure: MinioServer, tmp_path: Path
) -> None:
    store = secure.store("tls")
    store.put("a", b"content")
    assert store.get("a") == b"content"
    (tmp_path / "source").write_bytes(b"x" * (PART_BYTES + 1))
    store.upload(tmp_path / "source", "b")
    store.download("b", tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_size == PART_BYTES + 1


def test_an_untrusted_certificate_is_refused_at_once(secure: MinioServer) -> None:
    settings = replace(secure.settings, ca_bundle=None)
    with pytest.raises(StoreAccessError, match=r"certificate is not trusted; set AWS_CA_BUNDLE"):
        S3Store(S3Location(BUCKET), settings).get("a")

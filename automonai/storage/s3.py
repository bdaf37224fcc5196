"""A Store in a bucket of any S3 service; the only importer of minio."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit
from xml.etree import ElementTree

import certifi
import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials
from minio.credentials.providers import IamAwsProvider, Provider, StaticProvider
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from minio.helpers import ObjectWriteResult
from urllib3.exceptions import HTTPError, SSLError

from automonai.errors import (
    AutoMonaiError,
    CorruptObjectError,
    ObjectNotFoundError,
    StorageError,
    StoreAccessError,
    StoreUnavailableError,
)
from automonai.storage.connections import http_client
from automonai.storage.local import check_key, sha256_of, write_whole
from automonai.storage.observing import Operation, observed
from automonai.storage.retrying import Retrying
from automonai.storage.s3_settings import S3Location, S3Settings

T = TypeVar("T")

AWS_STS_ENDPOINT = "https://sts.amazonaws.com"
CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
IDENTITY_SECONDS = 5.0
"""Where there is no instance role, nobody answers at its address: do not wait long to say so."""
PART_BYTES = 16 * 2**20
"""Up to here an upload is one request; four parts at most are in memory at once."""
PARALLEL_PARTS = 3
CONNECTIONS = 16
CHECKSUM = "sha256"
"""Name of the metadata that holds an object's SHA-256."""

_TRANSIENT_CODES = frozenset(
    {
        "ClientDisconnected",  # a MinIO that is being stopped says so, with status 499, to whoever still waits
        "IncompleteBody",  # a proxy was stopped in the middle of what it passed on
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
    }
)
_TRANSIENT_STATUSES = frozenset({408, 429, 499, *range(500, 600)}) - {501}
_VERBS = {"head": "look at"}
_MISSING = frozenset({"NoSuchKey", "NoSuchObject"})
_REMEDIES = {
    "AccessDenied": "the account needs s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket on that bucket,"
    " for AWS without AWS_REGION s3:GetBucketLocation too",
    "AllAccessDisabled": "the bucket is closed; ask who keeps it",
    "AuthorizationHeaderMalformed": "set AWS_REGION to the bucket's region",
    "ExpiredToken": "the session has expired; get new keys and an AWS_SESSION_TOKEN",
    "InvalidAccessKeyId": "the server does not know this AWS_ACCESS_KEY_ID; mend it or the endpoint",
    "InvalidToken": "AWS_SESSION_TOKEN does not belong to these keys; mend or unset it",
    "InvalidTokenId": "AWS_SESSION_TOKEN does not belong to these keys; mend or unset it",
    "NoSuchBucket": "there is no such bucket; create it (mc mb, aws s3 mb) or mend the location",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION (and AWS_ENDPOINT_URL_S3) to it",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY does not belong to AWS_ACCESS_KEY_ID, or AWS_REGION is wrong",
}


class S3Store:
    """Objects below a prefix of a bucket, each with its SHA-256, which is verified when it is read.

    An object without it (some other tool wrote it) is taken as it is. What fails for a while (connections, 5xx,
    SlowDown) is tried again until the patience of `retrying` is over.
    """

    def __init__(self, location: S3Location, settings: S3Settings, *, retrying: Retrying | None = None) -> None:
        """Remember where and how; nothing is connected before the first request."""
        self.location = location
        self._settings = settings
        self._retrying = retrying or Retrying()

    def __repr__(self) -> str:
        return f"S3Store({self.location}, {self._settings.endpoint})"

    def get(self, key: str) -> bytes:
        def read() -> bytes:
            with self._opened(key) as response:
                content: bytes = response.read()
                self._verify(key, hashlib.sha256(content).hexdigest(), response.headers)
                return content

        return self._request("get", key, read, received_bytes=len)

    def put(self, key: str, content: bytes) -> None:
        name = self._name(key)
        metadata = {CHECKSUM: hashlib.sha256(content).hexdigest()}

        def write() -> None:
            body = io.BytesIO(content)
            written = self._client.put_object(
                self.location.bucket,
                name,
                body,
                len(content),
                metadata=dict(metadata),
                part_size=PART_BYTES,
                num_parallel_uploads=PARALLEL_PARTS,
            )
            _refuse_unconfirmed(written)

        self._request("put", key, write, sent_bytes=len(content))

    def exists(self, key: str) -> bool:
        return self._headers(key) is not None

    def sha256(self, key: str) -> str | None:
        headers = self._headers(key)
        return None if headers is None else headers.get(f"x-amz-meta-{CHECKSUM}")

    def list(self, prefix: str = "") -> Iterator[str]:
        start = self.location.name("")

        def names() -> list[str]:  # the whole of it, so that a failing page can be asked for again
            found = self._client.list_objects(self.location.bucket, prefix=start + prefix, recursive=True)
            return [entry.object_name for entry in found if entry.object_name and not entry.is_dir]

        # AWS and MinIO answer in this order; others, and S3 Express buckets, need not.
        yield from sorted(name.removeprefix(start) for name in self._request("list", prefix, names))

    def upload(self, source: Path, key: str) -> None:
        name = self._name(key)
        metadata = {CHECKSUM: sha256_of(source)}

        def write() -> None:
            written = self._client.fput_object(
                self.location.bucket,
                name,
                str(source),
                metadata=dict(metadata),
                part_size=PART_BYTES,
                num_parallel_uploads=PARALLEL_PARTS,
            )
            _refuse_unconfirmed(written)

        self._request("put", key, write, sent_bytes=source.stat().st_size)

    def download(self, key: str, destination: Path) -> None:
        def read() -> int:
            with self._opened(key) as response:
                digest = hashlib.sha256()

                def copy(stream: BinaryIO) -> None:
                    for block in response.stream(1 << 20):
                        digest.update(block)
                        stream.write(block)
                    self._verify(key, digest.hexdigest(), response.headers)

                write_whole(destination, copy)
                return destination.stat().st_size

        self._request("get", key, read, received_bytes=int)

    def delete(self, key: str) -> None:
        name = self._name(key)
        with contextlib.suppress(ObjectNotFoundError):
            self._request("delete", key, lambda: self._client.remove_object(self.location.bucket, name))

    @cached_property
    def _client(self) -> Minio:
        settings, parts = self._settings, urlsplit(self._settings.endpoint)
        is_aws = (parts.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
        client = Minio(
            parts.netloc,
            secure=parts.scheme == "https",
            # Without a region the client would ask for it first, which other services do not always answer.
            region=settings.region or (None if is_aws else "us-east-1"),
            credentials=_provider(settings),
            http_client=http_client(
                settings.endpoint,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
                maxsize=CONNECTIONS,
                cert_reqs="CERT_REQUIRED",
                ca_certs=settings.ca_bundle or certifi.where(),
                retries=False,  # `retrying` is the only one who tries again
            ),
        )
        if settings.addressing == "virtual":
            client.enable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
        elif settings.addressing == "path":
            client.disable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
        return client

    def _name(self, key: str) -> str:
        check_key(key)
        return self.location.name(key)

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[urllib3.BaseHTTPResponse]:
        response = self._client.get_object(self.location.bucket, self._name(key))
        try:
            yield response
        finally:
            response.close()
            response.release_conn()

    def _headers(self, key: str) -> Mapping[str, str] | None:
        """Return an object's headers, or None if there is no object."""
        name = self._name(key)
        try:
            found = self._request("head", key, lambda: self._client.stat_object(self.location.bucket, name))
        except ObjectNotFoundError:
            return None
        return found.metadata or {}

    def _verify(self, key: str, found: str, headers: Mapping[str, str]) -> None:
        expected = headers.get(f"x-amz-meta-{CHECKSUM}")
        if expected is not None and found != expected:
            raise CorruptObjectError(
                f"{self.location}/{key}: SHA-256 is {found}, expected {expected}; restore the object or delete it"
            )

    def _request(
        self,
        operation: Operation,
        key: str,
        work: Callable[[], T],
        *,
        sent_bytes: int = 0,
        received_bytes: Callable[[T], int] = lambda _: 0,
    ) -> T:
        """Do one request, again and again if need be; each try is told to `observing`.

        Raises:
            StorageError: If it fails; see `_explained`.
            StoreAccessError: If what was asked is not allowed or misses its bucket.
        """

        def attempt() -> T:
            return observed(
                work,
                operation=operation,
                code_of=_code,
                sent_bytes=sent_bytes,
                received_bytes=received_bytes,
            )

        verb = _VERBS.get(operation, operation)
        try:
            return self._retrying.call(attempt, transient=self._transient)
        except (MinioException, HTTPError, _NoIdentityError, _UnconfirmedUploadError, *_NO_S3_ANSWER) as error:
            raise self._explained(error, f"{verb} {self.location.name(key)}") from error

    def _transient(self, error: Exception) -> str | None:
        endpoint = self._settings.endpoint
        match error:
            case S3Error() if error.code in _TRANSIENT_CODES or error.response.status in _TRANSIENT_STATUSES:
                return f"{endpoint} answered {error.code}"
            case S3Error() if error.code == "ExpiredToken" and self._settings.access_key is None:
                return f"{endpoint} answered {error.code}"  # this machine's clock is behind: it will renew its keys
            case ServerError() | InvalidResponseError() if _status(error) in _TRANSIENT_STATUSES:
                return f"{endpoint} answered with status {_status(error)}"
            case HTTPError() if not _is_certificate_error(error):
                return f"no answer from {endpoint} ({type(error).__name__})"
            case _UnconfirmedUploadError():
                return f"{endpoint} did not confirm an upload"
            case UnicodeDecodeError() | ElementTree.ParseError():
                return f"{endpoint} answered with a page that is not S3's"
            case _NoIdentityError() if error.is_transient:
                return str(error)
        return None

    def _explained(self, error: Exception, what: str) -> AutoMonaiError:
        """Return the error that says what to do. What the server wrote is left out where it may quote the request."""
        bucket, endpoint = self.location.bucket, self._settings.endpoint
        where = f"cannot {what} in bucket '{bucket}' at {endpoint}"
        if isinstance(error, _NoIdentityError):
            kind = StoreUnavailableError if error.is_transient else StoreAccessError
            return kind(f"{where}: {error}")
        if self._transient(error):
            why = "it does not answer" if isinstance(error, HTTPError) else "the server answers with errors"
            return StoreUnavailableError(
                f"{where}: {why} ({_kind(error)}), tried for {self._retrying.patience_seconds:.0f} s; check that"
                " the server runs and that AWS_ENDPOINT_URL_S3 (or AWS_ENDPOINT_URL) is its address"
            )
        if isinstance(error, HTTPError):
            return StoreAccessError(
                f"{where}: its certificate is not trusted; set AWS_CA_BUNDLE to its authority's file"
            )
        if isinstance(error, S3Error):
            return self._refusal(error, where)
        return StorageError(f"{where}: the answer is none of an S3 service ({_kind(error)}); check the endpoint")

    def _refusal(self, error: S3Error, where: str) -> AutoMonaiError:
        # An answer to HEAD has no body; MinIO says in a header what it would have said there.
        code = error.response.headers.get("x-minio-error-code") or error.code or "?"
        if code in _MISSING:
            return ObjectNotFoundError(f"{where}: no such object")
        if code in _REMEDIES:
            return StoreAccessError(f"{where}: {code}: {_REMEDIES[code]}")
        return StorageError(f"{where}: {code}: {error.message}")


_NO_S3_ANSWER = (UnicodeDecodeError, ElementTree.ParseError)
"""What the client says of a body that is no XML in UTF-8: most often the error page of a proxy on the way."""


class _NoIdentityError(Exception):
    """There are no keys; the message holds no token."""

    def __init__(self, message: str, *, is_transient: bool) -> None:
        super().__init__(message)
        self.is_transient = is_transient


class _EnvironmentIdentity(Provider):
    """Keys of the identity that the environment gives this process, renewed before they expire."""

    def __init__(self, settings: S3Settings) -> None:
        self._has_identity = any(
            os.environ.get(name)
            for name in (
                "AWS_WEB_IDENTITY_TOKEN_FILE",
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            )
        )
        is_web_identity = bool(os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"))
        self._provider = IamAwsProvider(
            custom_endpoint=settings.sts_endpoint if is_web_identity else None,
            region=settings.region,
            http_client=http_client(
                (settings.sts_endpoint or AWS_STS_ENDPOINT) if is_web_identity else None,
                timeout=urllib3.Timeout(total=IDENTITY_SECONDS),
                ca_certs=settings.ca_bundle or certifi.where(),
                retries=False,  # urllib3 would log the URL that it tries again, and that holds the token
            ),
        )

    def retrieve(self) -> Credentials:
        try:
            found = self._provider.retrieve()
        except (ValueError, KeyError, OSError, HTTPError, MinioException) as error:
            # Neither chained nor quoted: the texts of these errors hold the token.
            raise _NoIdentityError(self._advice(type(error).__name__), is_transient=self._has_identity) from None
        self._has_identity = True  # what has given keys once is there, an instance's role included, and may be away
        return found

    def _advice(self, kind: str) -> str:
        if self._has_identity:
            return f"the environment's identity was not accepted ({kind}); check AWS_ROLE_ARN and its token"
        return (
            "there are no keys; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL_S3 if not for AWS"
        )


def _refuse_unconfirmed(written: ObjectWriteResult) -> None:
    """Refuse an upload in parts whose end the server answered with an error under the status 200, as AWS may.

    The client takes such an answer for a result without an entity tag.
    """
    if not written.etag:
        raise _UnconfirmedUploadError(written.object_name)


class _UnconfirmedUploadError(Exception):
    """The server did not say that an object is whole."""


def _provider(settings: S3Settings) -> Provider:
    if settings.access_key is not None and settings.secret_key is not None:
        return StaticProvider(settings.access_key, settings.secret_key, settings.session_token)
    return _EnvironmentIdentity(settings)


def _status(error: ServerError | InvalidResponseError) -> int:
    return error.status_code if isinstance(error, ServerError) else error._code


def _is_certificate_error(error: HTTPError) -> bool:
    """Whether trying again is of no use; a connection that is cut in its handshake is an SSLError too."""
    return isinstance(error, SSLError) and any(isinstance(a, ssl.SSLCertVerificationError) for a in error.args)


def _kind(error: Exception) -> str:
    match error:
        case S3Error():
            return str(error.code)
        case ServerError() | InvalidResponseError():
            return f"status {_status(error)}"
    return type(error).__name__


def _code(error: Exception) -> str:
    """Return how metrics call a failed try: by its answer's HTTP status where there was one."""
    match error:
        case S3Error():
            return str(error.response.status)
        case ServerError() | InvalidResponseError():
            return str(_status(error))
        case _NoIdentityError():
            return "no_identity"
        case CorruptObjectError():
            return "corrupt"
    return "unanswered" if isinstance(error, HTTPError) else "error"

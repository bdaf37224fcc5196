"""Where a bucket is and how its service is reached, from locations and variables as every S3 tool has them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from automonai.errors import StoreAccessError
from automonai.storage.local import check_key

AWS_ENDPOINT = "https://s3.amazonaws.com"

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True)
class S3Location:
    """A bucket and the prefix below which a store's keys lie."""

    bucket: str
    prefix: str = ""

    @classmethod
    def parse(cls, text: str) -> S3Location:
        """Return the location that `s3://bucket/prefix` names; the prefix may be missing.

        Raises:
            StoreAccessError: If it is not of that form.
        """
        bucket, _, prefix = text.removeprefix("s3://").partition("/")
        prefix = prefix.rstrip("/")
        try:
            if prefix:
                check_key(prefix)
        except ValueError as error:
            raise StoreAccessError(f"{text}: is no location; write s3://bucket/folder") from error
        if not text.startswith("s3://") or not _BUCKET.fullmatch(bucket):
            raise StoreAccessError(
                f"{text}: is no location; write s3://bucket/folder, the bucket in 3 to 63 lower-case letters,"
                " digits, hyphens and dots"
            )
        return cls(bucket, prefix)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def name(self, key: str) -> str:
        """Return the object's name in the bucket."""
        return f"{self.prefix}/{key}" if self.prefix else key


@dataclass(frozen=True)
class S3Settings:
    """How the service is reached; keys do not show in its repr."""

    endpoint: str = AWS_ENDPOINT
    """`http(s)://host[:port]`."""
    region: str | None = None
    """None: us-east-1, or what AWS says about the bucket."""
    ca_bundle: str | None = None
    """File of the authorities that are trusted; None: the public ones."""
    addressing: str = ""
    """`path` or `virtual`; empty: virtual for AWS, path for others."""
    access_key: str | None = field(default=None, repr=False)
    """None: the identity that the environment gives (web identity token, container's or instance's role)."""
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    sts_endpoint: str | None = None
    """Who exchanges a web identity token for keys; None: AWS."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> S3Settings:
        """Return the settings of the variables that S3 tools share.

        Raises:
            StoreAccessError: If one of them is malformed or half of a pair.
        """
        variables = os.environ if environment is None else environment
        endpoint = variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL") or AWS_ENDPOINT
        settings = cls(
            endpoint=endpoint.rstrip("/"),
            region=variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION") or None,
            ca_bundle=variables.get("AWS_CA_BUNDLE") or None,
            addressing=variables.get("AWS_S3_ADDRESSING_STYLE", "").removesuffix("auto"),
            access_key=variables.get("AWS_ACCESS_KEY_ID") or None,
            secret_key=variables.get("AWS_SECRET_ACCESS_KEY") or None,
            session_token=variables.get("AWS_SESSION_TOKEN") or None,
            sts_endpoint=variables.get("AWS_ENDPOINT_URL_STS") or None,
        )
        settings._check()
        return settings

    def _check(self) -> None:
        parts = urlsplit(self.endpoint)
        if parts.username or parts.password:
            raise StoreAccessError("AWS_ENDPOINT_URL_S3 holds a user or password; keys belong into AWS_ACCESS_KEY_ID")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query:
            raise StoreAccessError(
                f"AWS_ENDPOINT_URL_S3 (or AWS_ENDPOINT_URL) is '{self.endpoint}'; expected https://host or"
                " http://host:port"
            )
        if (self.access_key is None) != (self.secret_key is None):
            raise StoreAccessError("set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither")
        if self.ca_bundle is not None and not Path(self.ca_bundle).is_file():
            raise StoreAccessError(
                f"AWS_CA_BUNDLE names {self.ca_bundle}, which is no file; name a file of certificates"
            )
        if self.addressing not in ("", "path", "virtual"):
            raise StoreAccessError(f"AWS_S3_ADDRESSING_STYLE is '{self.addressing}'; expected path, virtual or auto")

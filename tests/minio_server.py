"""A real MinIO process for tests, on a free port of this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import urllib3
from minio import Minio
from minio.error import MinioException
from urllib3.exceptions import HTTPError

from automonai.storage.retrying import Retrying
from automonai.storage.s3 import S3Store
from automonai.storage.s3_settings import S3Location, S3Settings

ACCESS_KEY, SECRET_KEY = "test-account", "not-so-secret-but-never-shown"
BUCKET = "automonai"
START_SECONDS = 30.0


def program() -> str:
    """Return the minio program, or skip the test."""
    found = os.environ.get("AUTOMONAI_MINIO") or shutil.which("minio")
    if found is None or not Path(found).is_file():
        pytest.skip("needs the minio program: on PATH, or named by AUTOMONAI_MINIO")
    return found


@dataclass
class MinioServer:
    """One server over one folder; it can be stopped and started again on its port."""

    folder: Path
    certificates: Path | None = None
    """Folder of public.crt, private.key and authority.crt; None: plain HTTP."""
    port: int = field(default_factory=lambda: free_port())
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"{'https' if self.certificates else 'http'}://127.0.0.1:{self.port}"

    @property
    def settings(self) -> S3Settings:
        authority = str(self.certificates / "authority.crt") if self.certificates else None
        return S3Settings(endpoint=self.endpoint, access_key=ACCESS_KEY, secret_key=SECRET_KEY, ca_bundle=authority)

    def start(self) -> None:
        certificates = ["--certs-dir", str(self.certificates)] if self.certificates else []
        self.process = subprocess.Popen(
            [program(), "server", str(self.folder), "--address", f"127.0.0.1:{self.port}", "--quiet", *certificates],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "MINIO_ROOT_USER": ACCESS_KEY,
                "MINIO_ROOT_PASSWORD": SECRET_KEY,
                "MINIO_BROWSER": "off",
                "MINIO_UPDATE": "off",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait_until_ready()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def client(self) -> Minio:
        authority = self.settings.ca_bundle
        http = urllib3.PoolManager(retries=False, **({"ca_certs": authority} if authority else {}))
        return Minio(
            f"127.0.0.1:{self.port}",
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            secure=self.certificates is not None,
            region="us-east-1",
            http_client=http,
        )

    def store(self, prefix: str, *, retrying: Retrying | None = None, **changes: str) -> S3Store:
        """Return a store below a prefix of the test bucket, with some settings changed."""
        return S3Store(S3Location(BUCKET, prefix), replace(self.settings, **changes), retrying=retrying)

    def environment(self) -> dict[str, str]:
        """Return the variables by which any S3 tool reaches this server."""
        variables = {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }
        return variables | ({"AWS_CA_BUNDLE": self.settings.ca_bundle} if self.settings.ca_bundle else {})

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            assert self.process is not None
            assert self.process.poll() is None, "minio ended at once"
            assert time.monotonic() < deadline, "minio does not get ready"
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            if not self.client().bucket_exists(BUCKET):
                self.client().make_bucket(BUCKET)
        except (MinioException, HTTPError):
            return False
        return True


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(folder: Path, *, certificates: Path | None = None) -> Iterator[MinioServer]:
    """Give a started server and stop it afterwards."""
    server = MinioServer(folder, certificates)
    try:
        server.start()
        yield server
    finally:
        server.stop()

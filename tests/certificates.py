"""Certificates of an authority that nobody knows, for servers that tests start."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_authority(folder: Path, *names: str) -> Path:
    """Write an authority and a certificate of it for names such as IP:127.0.0.1, as MinIO wants them."""
    folder.mkdir()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "authority.crt", "-days", "2", "-subj", "/CN=authority")
    openssl("req", *key, "-keyout", "private.key", "-out", "server.csr", "-subj", "/CN=server")
    (folder / "names").write_text(f"subjectAltName={','.join(names)}")
    signer = ("-CA", "authority.crt", "-CAkey", "ca.key", "-CAcreateserial")
    openssl("x509", "-req", "-in", "server.csr", *signer, "-out", "public.crt", "-days", "2", "-extfile", "names")
    return folder

"""Connections to a store: by which proxy, and how long one that moves nothing is waited for."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from automonai.errors import StoreAccessError

SEND_SECONDS = 60.0
"""A piece of a body that is not taken within so long is given up."""
PIECE_BYTES = 256 * 2**10


class _SendsInPieces(HTTPConnection):
    """Gives up sending when nothing goes on, however long a whole body takes.

    urllib3 sends by the timeout of connecting, and Python's sockets count it for all that is sent at once.
    """

    def send(self, data: Any) -> None:
        if self.sock is not None:
            self.sock.settimeout(SEND_SECONDS)
        if not isinstance(data, bytes):
            super().send(data)
            return
        whole = memoryview(data)
        for start in range(0, len(whole), PIECE_BYTES):
            super().send(whole[start : start + PIECE_BYTES])


class _SendsInPiecesByTls(_SendsInPieces, HTTPSConnection):
    """The same by HTTPS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _SendsInPieces


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _SendsInPiecesByTls


def http_client(url: str | None, **options: Any) -> urllib3.PoolManager:
    """Return a client that goes by the proxy which HTTPS_PROXY, HTTP_PROXY and NO_PROXY name for that URL.

    None: by no proxy, as an instance's own address needs it.
    """
    parts = urlsplit(url or "")
    proxy = getproxies().get(parts.scheme)
    if proxy is None or not parts.hostname or proxy_bypass(parts.hostname):
        return _in_pieces(urllib3.PoolManager(**options))
    try:
        return _in_pieces(urllib3.ProxyManager(proxy, **options))
    except (HTTPError, ValueError) as error:  # not quoted: it may hold a password
        raise StoreAccessError(
            f"{parts.scheme.upper()}_PROXY is no proxy's address; expected http://host:port"
        ) from error


def _in_pieces(client: urllib3.PoolManager) -> urllib3.PoolManager:
    client.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return client

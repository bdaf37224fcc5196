"""Seeds are derived, never shared: each use has its own, and none depends on the order of the others."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return the 32-bit seed of one purpose, e.g. `derive_seed(study_seed, "trial", 7)`."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

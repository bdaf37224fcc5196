"""Delete from a folder of installed packages what no program of ours reads: tests, sources in C, unused clients.

`python slim.py FOLDER`. The controller's image has a limit of 600 MB; its packages come with 200 MB of this.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

FOLDERS = ("tests", "__pycache__")
SUFFIXES = (".c", ".cpp", ".h", ".pyx", ".pxd", ".pxi", ".pyi", ".a", ".csv")
PARTS = (
    "kubernetes/aio",
    "matplotlib/mpl-data/fonts/afm",
    "matplotlib/mpl-data/fonts/pdfcorefonts",
    "matplotlib/mpl-data/sample_data",
    "Crypto/SelfTest",
    "joblib/test",
)
KUBERNETES_APIS = ("authorization_v1", "batch_v1", "coordination_v1", "core_v1", "custom_objects", "version")
"""The client loads an API when it is asked for; the others are 20 MB."""


def main(root: Path) -> None:
    """Delete in place."""
    for folder in [path for path in root.rglob("*") if path.is_dir() and path.name in FOLDERS]:
        shutil.rmtree(folder, ignore_errors=True)  # one inside another is gone already
    for path in [path for path in root.rglob("*") if path.suffix in SUFFIXES and path.is_file()]:
        path.unlink()
    for part in PARTS:
        shutil.rmtree(root / part, ignore_errors=True)
    kept = {f"{name}_api.py" for name in KUBERNETES_APIS} | {"__init__.py"}
    for path in (root / "kubernetes" / "client" / "api").glob("*.py"):
        if path.name not in kept:
            path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Import what an image's program imports and compile just that, so that its pods start fast on a read-only root.

`python warm.py FOLDER MODULE...` fails if a module cannot be imported, and if torch can be where it must not:
`--without torch` before the modules. Bytecode does not depend on times, which a layer may change.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import py_compile
import sys
from pathlib import Path


def main() -> None:
    """Import, then compile every module of the folder that was loaded."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("modules", nargs="+")
    parser.add_argument("--without", action="append", default=[])
    options = parser.parse_args()
    sys.dont_write_bytecode = True
    for name in options.without:
        if importlib.util.find_spec(name) is not None:
            raise SystemExit(f"{name} is installed, this image must not have it")
    for name in options.modules:
        importlib.import_module(name)
    for source in sorted(_sources(options.folder)):
        py_compile.compile(str(source), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


def _sources(folder: Path) -> set[Path]:
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    sources = {Path(file) for file in files if file is not None and file.endswith(".py")}
    return {source for source in sources if source.is_relative_to(folder)}


if __name__ == "__main__":
    main()

"""Loads a Python file of scripts/ as a module."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "scripts"


@cache
def load_script(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"scripts.{name}", FOLDER / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # pydantic looks there for what a record's annotations name
    specification.loader.exec_module(module)
    return module

"""YAML and JSON as users write it, and as it is written for them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from automonai.errors import SpecError


def read_yaml(path: str | Path) -> object:
    """Return what a YAML or JSON file holds; None if it is empty, and YAML.

    Raises:
        SpecError: If it cannot be read, or is neither.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_file(text, name=str(path))


def parse_file(content: str | bytes, *, name: str) -> object:
    """Return what a file of that name holds, by its ending JSON or else YAML; None if it is empty, and YAML.

    Raises:
        SpecError: If it holds something else.
    """
    if not name.lower().endswith(".json"):
        return parse_yaml(content, where=name)
    try:
        return json.loads(content, object_pairs_hook=_without_repeats)  # YAML takes no tabs
    except _RepeatedKeyError as error:
        raise SpecError(f"{name}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{name} is no JSON: {error}") from error


def parse_yaml(text: str | bytes, *, where: str) -> object:
    """Return what a YAML or JSON text holds; None if it is empty.

    Raises:
        SpecError: If it is neither, or nested or long beyond measure.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except _RepeatedKeyError as error:
        raise SpecError(f"{where}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError(f"{where} is neither YAML nor JSON: {error}") from error


def dump_yaml(value: object, **style: Any) -> str:
    """Return a value as YAML in its own order; `style` as PyYAML's dump takes it."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, **style)
    return text


class _RepeatedKeyError(ValueError):
    """A key comes twice: one of its values would be dropped without a word."""


def _without_repeats(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a mapping of keys and values.

    Raises:
        _RepeatedKeyError: If a key comes twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise _RepeatedKeyError(f"'{next(key for key in names if names.count(key) > 1)}' is given twice")
    return found


class _Loader(yaml.SafeLoader):
    """Takes for numbers what YAML 1.2 and people do: 1e-3 is one; 1:30 and 2021-01-05 are texts, and 010 is ten."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class's own attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str | bytes) -> None:
        super().__init__(stream)
        self._checked: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse keys that come twice, before those of other mappings are merged in, which they may override."""
        if id(node) not in self._checked:
            self._checked.add(id(node))
            scalars = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            _without_repeats([(key.value, None) for key in scalars if key.tag != "tag:yaml.org,2002:merge"])
        super().flatten_mapping(node)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _kind, _pattern, _firsts in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), list(_firsts))


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either reading would take for something else."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\.?[0-9][0-9.]*([eE][-+]?[0-9]+)?$"), list("-+.0123456789")
)

"""Write docs/reference from the code: the spec's fields, the command line, the journal's events, the metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from click.testing import CliRunner
from pydantic import BaseModel

from automonai import spec
from automonai.cli import cli
from automonai.domain import events
from automonai.domain.configuration import Configuration
from automonai.observability.definitions import Definition
from automonai.observability.gpu import GPU_METRICS
from automonai.observability.storage_metrics import STORAGE_METRICS
from automonai.observability.study_metrics import STUDY_METRICS
from automonai.observability.training_metrics import TRAINING_METRICS

Schema = dict[str, Any]

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
TYPE_WORDS = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}
SECTIONS = {
    "split": spec.SplitSpec,
    "search": spec.SearchSpec,
    "budget": spec.BudgetSpec,
    "training": spec.TrainingSpec,
    "execution": spec.ExecutionSpec,
    "refit": spec.RefitSpec,
}
SECTION_TYPES = {section.__name__ for section in SECTIONS.values()}
NOTICE = "<!-- Written by scripts/reference.py; change the code, then run it again. -->\n"

SPEC_INTRODUCTION = """\
One YAML file describes a study. `automonai init DATASET` writes one with comments, fitted to dataset, machine and
budget; only `name`, `dataset` and one limit in `budget` are required. Unknown keys are errors. On the command line
`--set section.field=value` replaces a value. A study that has begun accepts changes of `budget`, `execution` and
`refit`.
"""
HYPERPARAMETERS = """\
`search.space` maps each of these names to one fixed value or to one of

- `{type: integer, low: 2, high: 6}` or `{type: real, low: 0.5, high: 3.0}`, both with `log: true` on request,
- `{type: ordinal, values: [8, 16, 32]}`: values with an order,
- `{type: categorical, values: [2d, 3d]}`: values without one.

A space that is given replaces the whole default space; a hyperparameter that it does not name keeps the default below,
or what `search.standard` says. The same names stand in the file that `automonai train --configuration` takes.
"""
CLI_INTRODUCTION = """\
Exit codes: 0 done; 1 it ran but did not come out well (a study that failed, a training that diverged); 2 something in
the user's hands is wrong, and the message says what and where; 130 Ctrl-C; 143 SIGTERM. Results go to standard output,
errors to standard error.
"""
EVENTS_INTRODUCTION = """\
A study's folder holds its journal: `journal/00000000.json` and so on, one event each, in order, never changed.
Everything that `status`, `runs` and `report` say follows from it, and a search that is started again goes on from it.
"""
METRICS_INTRODUCTION = """\
What Prometheus finds; [monitoring.md](../monitoring.md) says how. Every sample has the label `study`; those of a
training also `rung` (epochs of its budget, `refit`, or `ensemble` for the ensemble's work) and, but for the ensemble's,
`trial`. On one machine the samples of workers have `worker`, their process; on a cluster their pod's labels tell them
apart. No hyperparameter, run id or path is a label.

What has no unit is a number of things. A histogram has the series `_bucket`, `_count` and `_sum`, a summary the last
two.
"""
METRICS_OF = {
    "The study": (STUDY_METRICS, "By the controller. Counters are computed from the journal: a restart changes none."),
    "A training": (TRAINING_METRICS, "By the worker while it has a run. Each run begins anew at 0."),
    "Its GPU": (GPU_METRICS, "By the worker, on a GPU. What NVML does not tell, as of parts of a card, is left out."),
    "The store": (STORAGE_METRICS, "By controller and workers, each its own requests since it began; S3 only."),
}


def pages() -> dict[str, str]:
    """Return file name to content of every generated page."""
    return {"spec.md": spec_page(), "cli.md": cli_page(), "events.md": events_page(), "metrics.md": metrics_page()}


def spec_page() -> str:
    """Return the page of the spec, each section a table, and of the hyperparameters that its space may name."""
    parts = [NOTICE, "# The spec\n", SPEC_INTRODUCTION, _section("Top level", spec.StudySpec)]
    parts += [_section(f"`{name}`", section) for name, section in SECTIONS.items()]
    parts.append(f"## Hyperparameters\n\n{HYPERPARAMETERS}\n{_table(Configuration, _searched())}")
    return "\n".join(parts)


def cli_page() -> str:
    """Return the help of the command and of every verb."""
    parts = [NOTICE, "# The command line\n", CLI_INTRODUCTION, f"```text\n{help_text(())}```\n"]
    parts += [f"## {verb}\n\n```text\n{help_text((verb,))}```\n" for verb in cli.commands]
    return "\n".join(parts)


def events_page() -> str:
    """Return the page of the journal's events."""
    parts = [NOTICE, "# The journal's events\n", EVENTS_INTRODUCTION]
    for event in get_args(get_args(events.Event)[0]):
        parts.append(_section(f"`{event.model_fields['kind'].default}`", event))
    return "\n".join(parts)


def metrics_page() -> str:
    """Return the page of the metrics."""
    parts = [NOTICE, "# Metrics\n", METRICS_INTRODUCTION]
    for title, (definitions, words) in METRICS_OF.items():
        parts.append(f"## {title}\n\n{words}\n\n{_metrics_table(definitions)}")
    return "\n".join(parts)


def _metrics_table(definitions: Sequence[Definition]) -> str:
    rows = ["| metric | type | unit | labels | meaning |\n", "| --- | --- | --- | --- | --- |\n"]
    for definition in definitions:
        labels = ", ".join(f"`{label}`" for label in definition.labels)
        cells = (f"`{definition.name}`", definition.kind, definition.unit, labels, definition.help)
        rows.append(f"| {' | '.join(cells)} |\n")
    return "".join(rows)


def help_text(verbs: tuple[str, ...]) -> str:
    """Return what `automonai VERB --help` prints on a terminal of 100 columns."""
    answer = CliRunner().invoke(cli, [*verbs, "--help"], prog_name="automonai", terminal_width=100)
    return answer.output


def _section(name: str, model: type[BaseModel]) -> str:
    return f"## {name}\n\n{_summary(model)}\n\n{_table(model)}"


def _summary(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().split("\n\n")[0]


def _table(model: type[BaseModel], more: Mapping[str, str] | None = None) -> str:
    """Return a table of the model's fields, with the column `searched by default` if there is `more`."""
    schema = model.model_json_schema()
    heading = ("field", "type", "default", *(("searched by default",) if more else ()), "meaning")
    rows = [heading, tuple("---" for _ in heading)]
    for name, field in schema["properties"].items():
        if name == "kind":
            continue
        definitions = schema.get("$defs", {})
        default = _default_words(field) if name not in schema.get("required", ()) else "required"
        added = (more.get(name, "no"),) if more else ()
        rows.append((f"`{name}`", _type_words(field, definitions), default, *added, meaning(field, definitions)))
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def meaning(field: Schema, definitions: Schema) -> str:
    """Return a field's line, or its type's where it has none of its own."""
    referred = definitions.get(field.get("$ref", "").rpartition("/")[2], {})
    words = " ".join((field.get("description") or referred.get("description", "")).split("\n\n")[0].split())
    return words.replace("None:", "null:")


def _searched() -> dict[str, str]:
    ranges = {}
    for name, entry in spec.DEFAULT_SPACE.items():
        if isinstance(entry, spec.IntegerRange | spec.RealRange):
            ranges[name] = f"{entry.low} to {entry.high}"
        else:
            ranges[name] = ", ".join(f"`{value}`" for value in entry.values)
    return ranges


def _type_words(schema: Schema, definitions: Schema) -> str:
    """Return a JSON schema's type in plain words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if "enum" in definitions[name]:
            return _type_words(definitions[name], definitions)
        return "section" if name in SECTION_TYPES else name
    if "IntegerRange" in json.dumps(schema):
        return "mapping of hyperparameters, see below"
    if "anyOf" in schema or "oneOf" in schema:
        choices = schema.get("anyOf") or schema["oneOf"]
        return " or ".join(dict.fromkeys(_type_words(choice, definitions) for choice in choices))
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        items = schema.get("items") or schema["prefixItems"][0]
        count = f"{len(schema['prefixItems'])} " if "prefixItems" in schema else "list of "
        return f"{count}{_type_words(items, definitions)}{'s' if 'prefixItems' in schema else ''}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"mapping to {_type_words(schema['additionalProperties'], definitions)}"
    return TYPE_WORDS.get(schema.get("type", ""), "anything") + _limit_words(schema)


def _limit_words(schema: Schema) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return ",".join(f" {sign} {schema[key]}" for key, sign in signs.items() if key in schema)


def _default_words(schema: Schema) -> str:
    if "default" not in schema or schema["default"] == {}:
        return "see below" if "IntegerRange" in json.dumps(schema) else "empty"
    default = schema["default"]
    if isinstance(default, dict):
        return "see below"
    if isinstance(default, str):
        return f"`{default}`" if default else "empty"
    return f"{default:.4g}" if isinstance(default, float) else json.dumps(default)


def main() -> None:
    """Write every page."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in pages().items():
        (FOLDER / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()

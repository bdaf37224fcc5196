"""Write docs/reference from the code: the spec, the command line, results, the journal's events, the metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import click
from click.testing import CliRunner
from pydantic import BaseModel

from automonai import spec
from automonai.cli import cli
from automonai.domain import events
from automonai.domain.configuration import Configuration
from automonai.domain.records import Record
from automonai.domain.run import FailureReason, Origin, Purpose, RunState
from automonai.observability.definitions import Definition
from automonai.observability.gpu import GPU_METRICS
from automonai.observability.storage_metrics import STORAGE_METRICS
from automonai.observability.study_metrics import STUDY_METRICS
from automonai.observability.training_metrics import TRAINING_METRICS
from automonai.report import Summary

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
SECTIONS: dict[str, type[BaseModel]] = {
    "split": spec.SplitSpec,
    "search": spec.SearchSpec,
    "budget": spec.BudgetSpec,
    "training": spec.TrainingSpec,
    "execution": spec.ExecutionSpec,
    "refit": spec.RefitSpec,
}
SECTION_TYPES = {section.__name__ for section in SECTIONS.values()}
ON_THE_SPECS_PAGE = {"StudySpec": "[the spec](spec.md)", "Configuration": "[hyperparameters](spec.md#hyperparameters)"}
NOTICE = "<!-- Written by scripts/reference.py; change the code, then run it again. -->\n"

SPEC_INTRODUCTION = """\
One YAML file describes a study: [an example](../../examples/study.yaml). `automonai init DATASET` writes one with
comments, fitted to dataset, machine and budget; only `name`, `dataset` and one limit in `budget` are required. Unknown
keys are errors. On the command line `--set section.field=value` replaces a value. A study that has begun, and is not
over, accepts changes of `execution`, of `refit` and of the limits of `budget`: all of it but `min_epochs`, `max_epochs`
and `eta`. With another of these, another `dataset`, `split`, `search` or `training`, it is refused.
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
the user's hands is wrong, and the message says what and where; 75 the store or the cluster did not answer, and the same
command goes on later; 130 Ctrl-C; 143 SIGTERM. Results go to standard output, errors to standard error.
"""
EVENTS_INTRODUCTION = """\
A study's folder holds its journal: `journal/00000001.json` and so on, in order, never changed, each
`{"version": 1, "events": [...]}`. Every event has its `kind`, by which it is listed here. Everything that `status`,
`runs` and `report` say follows from the journal, and a search that is started again goes on from it.
"""
EVENTS_RECORDS = """\
What the events hold. A run's folder has its Result as `result.json` too, and the EnsembleResult is
`ensemble/ensemble.json`.
"""
RESULTS_INTRODUCTION = """\
What AutoMONAI writes for programs, beside [the journal](events.md), as JSON. `null` says that something has no value,
or none yet. JSON's keys are texts, so a label value that is one stands in quotes.
"""
REPORT_WORDS = """\
Beside `report.html` in the study's folder. `automonai status STUDY --json` prints the same at any time, `importance`
being null.
"""
RUNS_WORDS = """\
`automonai runs STUDY --json` prints a list of these, in the order in which the runs were queued. A run that is not over
has null for what is known at its end only.
"""
EVALUATION_WORDS = """\
What `automonai evaluate --output FILE.json` writes. `without_prediction` is missing if every label has its prediction.
"""
CSV_WORDS = """\
A row for each case and label value, then one for each label value's mean, with `mean` as its `case`. The columns are
`case`, `label`, `dice`, `hd95_mm` and `surface_dice`. What is null in JSON is empty here, and what `undefined` and
`without_prediction` tell is there only.
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


class RunRow(Record):
    """A row of `runs --json`: `api.runs` makes plain values, which the tests hold against this."""

    id: str
    """The run's: the name of its folder below `runs/`."""
    trial: int
    """Number of the trial."""
    configuration: Configuration
    budget_epochs: int
    """Epochs that the trial has trained once this run is over, those of lower rungs included."""
    fold: int
    """Held out of its training."""
    purpose: Purpose
    state: RunState
    loss: float | None
    """What the search minimises; null also when FAILED."""
    seconds: float | None
    """Wall-clock time of the run."""
    peak_memory_bytes: int | None
    """Peak of the device memory on a GPU, of the process's resident memory on a CPU."""
    origin: Origin
    reason: FailureReason | None
    """Why it is FAILED."""
    message: str
    """What went wrong, in words; empty if nothing did."""


def spec_page() -> str:
    """Return the page of the spec, each section a table, and of the hyperparameters that its space may name."""
    parts = [NOTICE, "# The spec\n", SPEC_INTRODUCTION, _spec_section("Top level", spec.StudySpec)]
    parts += [_spec_section(f"`{name}`", section) for name, section in SECTIONS.items()]
    schema = Configuration.model_json_schema()
    columns = {"default": _defaults(schema), "searched by default": _searched()}
    parts.append(f"## Hyperparameters\n\n{HYPERPARAMETERS}\n{_table(schema, schema['$defs'], columns)}")
    return "\n".join(parts)


def cli_page() -> str:
    """Return the help of the command and of every verb."""
    parts = [NOTICE, "# The command line\n", CLI_INTRODUCTION, f"```text\n{help_text(())}```\n"]
    parts += [f"## {' '.join(verb)}\n\n```text\n{help_text(verb)}```\n" for verb in verbs(cli)]
    return "\n".join(parts)


def verbs(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every verb that is not hidden, a group's before those of its own verbs."""
    for name, command in group.commands.items():
        if not command.hidden:
            yield (*path, name)
            if isinstance(command, click.Group):
                yield from verbs(command, (*path, name))


def events_page() -> str:
    """Return the page of the journal's events."""
    definitions = events.event_adapter.json_schema()["$defs"]
    schemas = [definitions[event.__name__] for event in get_args(get_args(events.Event)[0])]
    parts = [NOTICE, "# The journal's events\n", EVENTS_INTRODUCTION]
    parts += [_section(f"## `{schema['properties']['kind']['const']}`", schema, definitions) for schema in schemas]
    parts += [f"## Records\n\n{EVENTS_RECORDS}", *_record_sections(schemas, definitions)]
    return "\n".join(parts)


def results_page() -> str:
    """Return the page of what is written for programs."""
    from automonai.learning.scoring import Evaluation  # loads PyTorch, which no other page needs

    parts = [NOTICE, "# Results for programs\n", RESULTS_INTRODUCTION]
    parts += _format_sections("`report.json`", REPORT_WORDS, Summary)
    parts += _format_sections("`runs --json`", RUNS_WORDS, RunRow)
    parts += _format_sections("`evaluate --output FILE.json`", EVALUATION_WORDS, Evaluation)
    parts.append(f"## `evaluate --output FILE.csv`\n\n{CSV_WORDS}")
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


def _spec_section(title: str, model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    return _section(f"## {title}", schema, schema.get("$defs", {}), {"default": _defaults(schema)})


def _format_sections(title: str, words: str, model: type[BaseModel]) -> list[str]:
    """Return the sections of a format: its own table, and one for each record that it holds."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    return [f"## {title}\n\n{words}\n{_table(schema, definitions)}", *_record_sections([schema], definitions)]


def _record_sections(schemas: Sequence[Schema], definitions: Schema) -> list[str]:
    """Return a section for each record that the schemas hold, and that these hold, once, nearest first."""
    found: dict[str, Schema] = {}
    waiting = list(schemas)
    while waiting:
        for name in re.findall(r"#/\$defs/(\w+)", json.dumps(waiting.pop(0)["properties"])):
            is_record = "properties" in definitions[name] and name not in ON_THE_SPECS_PAGE
            if is_record and name not in found:
                found[name] = definitions[name]
                waiting.append(definitions[name])
    return [_section(f"### {name}", schema, definitions) for name, schema in found.items()]


def _section(
    heading: str, schema: Schema, definitions: Schema, columns: Mapping[str, Mapping[str, str]] | None = None
) -> str:
    return f"{heading}\n\n{_first_paragraph(schema)}\n\n{_table(schema, definitions, columns)}"


def _table(schema: Schema, definitions: Schema, columns: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """Return a table of a record's fields.

    Args:
        schema: The record's.
        definitions: By name, what it refers to.
        columns: Heading to field to words, of columns between type and meaning.
    """
    columns = columns or {}
    rows = [("field", "type", *columns, "meaning"), ("---", "---", *("---" for _ in columns), "---")]
    for name, field in schema["properties"].items():
        if name != "kind":
            added = (column[name] for column in columns.values())
            rows.append((f"`{name}`", _type_words(field, definitions), *added, meaning(field, definitions)))
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def meaning(field: Schema, definitions: Schema) -> str:
    """Return a field's line, or its type's where it has none of its own."""
    return _first_paragraph(field) or _first_paragraph(definitions.get(field.get("$ref", "").rpartition("/")[2], {}))


def _first_paragraph(schema: Schema) -> str:
    """Return what a schema says of itself, in JSON's words."""
    words = " ".join(schema.get("description", "").split("\n\n")[0].split())
    return re.sub(r"\bNone\b", "null", words)


def _defaults(schema: Schema) -> dict[str, str]:
    required = schema.get("required", ())
    return {
        name: "required" if name in required else _default_words(field) for name, field in schema["properties"].items()
    }


def _searched() -> dict[str, str]:
    ranges = dict.fromkeys(Configuration.model_fields, "no")
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
        return "section" if name in SECTION_TYPES else ON_THE_SPECS_PAGE.get(name, f"[{name}](#{name.lower()})")
    if "IntegerRange" in json.dumps(schema):
        return "mapping of hyperparameters, see below"
    if "anyOf" in schema or "oneOf" in schema:
        choices = schema.get("anyOf") or schema["oneOf"]
        return " or ".join(dict.fromkeys(_type_words(choice, definitions) for choice in choices))
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        items = schema.get("items") or schema["prefixItems"][0]
        if "prefixItems" not in schema:
            return f"list of {_type_words(items, definitions)}"
        word = TYPE_WORDS[items["type"]]
        return f"{len(schema['prefixItems'])} {word}s{_limit_words(items)}"
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


PAGES = {
    "spec.md": spec_page,
    "cli.md": cli_page,
    "results.md": results_page,
    "events.md": events_page,
    "metrics.md": metrics_page,
}


def main() -> None:
    """Write every page."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

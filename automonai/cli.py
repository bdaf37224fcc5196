"""The command line: each verb is one call into the API, loaded when the verb runs so that `--help` answers at once.

Exit codes: 0 done, 1 it did not come out well, 2 something in the user's hands is wrong, 75 the store or the cluster is
away, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path
from time import time
from typing import Any, TextIO

import click

from automonai import cluster_cli
from automonai.errors import (
    AutoMonaiError,
    ClusterError,
    DatasetError,
    StopRequestedError,
    StoreUnavailableError,
    UserError,
)

FAILED, USER_ERROR, INTERRUPTED, TERMINATED = 1, 2, 130, 143


class _FolderHere(click.Path):
    """A folder on this machine."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """Refuse what lies on S3: a Path of it would be a folder named s3:."""
        from automonai.storage.opening import is_remote

        if is_remote(value):
            self.fail(f"'{value}' is not a folder on this machine", parameter, context)
        return super().convert(value, parameter, context)


_FOLDER = _FolderHere(file_okay=False, path_type=Path)
_LOCATION = click.Path(file_okay=False)  # text: a Path would make s3:/bucket of s3://bucket
_FILE = click.Path(dir_okay=False, path_type=Path)
_ANY = click.Path(path_type=Path)

_EXAMPLES = """\b
From a dataset to predictions:
  automonai check DATASET
  automonai init DATASET --budget 1h > study.yaml
  automonai search study.yaml
  automonai predict STUDY IMAGES... --output DIR
"""


def _parse_shape(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, int, int]:
    parts = re.split(r"[,x ]+", text.strip().lower())
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"'{text}' is not a shape; write three whole numbers such as 48,56,40")
    x, y, z = (int(part) for part in parts)
    return x, y, z


def _parse_evaluation_file(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() not in (".json", ".csv"):
        raise click.BadParameter(f"'{path}' must end in .json or .csv")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    try:
        code = cli.main(args=arguments, prog_name="automonai", standalone_mode=False)
    except click.ClickException as error:
        if _is_logged_as_json():
            _log_errors([error.format_message()])
        else:
            error.show()
        return error.exit_code
    except click.Abort:
        click.echo("automonai: interrupted", err=True)
        return INTERRUPTED
    except UserError as error:
        _tell(error)
        return USER_ERROR
    except (StoreUnavailableError, ClusterError) as error:
        _tell(error)
        return error.exit_code
    except StopRequestedError as error:
        _tell(error)
        return TERMINATED
    except (AutoMonaiError, OSError) as error:
        _tell(error)
        return FAILED
    return code if isinstance(code, int) else 0


def _tell(error: Exception) -> None:
    problems: tuple[str, ...] = ()
    last = str(error)
    if isinstance(error, DatasetError) and len(error.problems) > 1:
        problems, last = error.problems, f"{len(error.problems)} problems, listed above"
    if _is_logged_as_json():
        _log_errors([*problems, last])
        return
    for problem in problems:
        click.echo(problem, err=True)
    click.echo(f"automonai: error: {last}", err=True)


def _is_logged_as_json() -> bool:
    return os.environ.get("AUTOMONAI_LOG_FORMAT") == "json"


def _log_errors(lines: list[str]) -> None:
    """Log why the command failed."""
    import logging

    from automonai.observability import logs

    logs.set_up()  # a wrong call ends before its verb has done so
    for line in lines:
        logging.getLogger(__name__).error("%s", line)


@click.group(epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="automonai", message="%(package)s %(version)s")
def cli() -> None:
    """Find the best U-Net pipeline for a medical segmentation dataset within a compute budget.

    DATASET is a folder in the layout of the Medical Segmentation Decathlon or of nnU-Net; STUDY is what a search has
    made: <store>/<name> of its spec. Both may lie on S3: s3://BUCKET/...
    """
    from automonai.observability import logs

    logs.set_up()


@cli.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--cases", type=click.IntRange(min=1), default=24, show_default=True, help="Number of labelled cases.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The same seed, the same voxels."
)
@click.option(
    "--shape",
    metavar="X,Y,Z",
    callback=_parse_shape,
    default="48,56,40",
    show_default=True,
    help="Voxels of the largest case.",
)
@click.option("--channels", type=click.IntRange(min=1), default=1, show_default=True, help="Contrasts of each image.")
def phantom(folder: Path, *, cases: int, seed: int, shape: tuple[int, int, int], channels: int) -> None:
    """Write a small synthetic dataset to try things out with."""
    from automonai import api

    api.phantom(folder, cases=cases, seed=seed, shape=shape, channels=channels)
    here = shlex.quote(str(folder))
    click.echo(f"{folder}: {cases} cases written; next: automonai init {here} --budget 5m > study.yaml")


@cli.command()
@click.argument("dataset", type=_LOCATION)
def check(dataset: str) -> None:
    """Name every fault of every case at once; exit code 2 if there is one."""
    from automonai import api, terminal

    checked = api.check(dataset)
    for line in terminal.dataset_lines(checked):
        click.echo(line)


@cli.command()
@click.argument("dataset", type=_LOCATION)
@click.option(
    "--budget", metavar="LIMIT", help="A time (20m, 1h), '30 epochs' or '3 iterations'; default: 5 iterations."
)
@click.option("--name", help="Of the study; default: the dataset's.")
def init(dataset: str, *, budget: str | None, name: str | None) -> None:
    """Print a commented spec, fitted to dataset, machine and budget.

    It checks the dataset and times the standard configuration on this machine, which takes a while.
    """
    from automonai import api

    click.echo("checking the dataset and timing the standard configuration on this machine ...", err=True)
    click.echo(api.init(dataset, budget=budget, name=name), nl=False)


@cli.group()
def data() -> None:
    """Datasets on S3."""


@data.command()
@click.argument("folder", metavar="DATASET", type=_FOLDER)
@click.argument("location", metavar="s3://BUCKET/PREFIX")
def push(folder: Path, *, location: str) -> None:
    """Copy a dataset to S3; started again, it sends only what is not there yet."""
    from automonai import api
    from automonai.storage.opening import is_remote

    if not is_remote(location):
        raise UserError(f"{location} is no place in a bucket; write s3://BUCKET/datasets/NAME")

    def tell(name: str, done: int, total: int) -> None:
        click.echo(f"\r{done} of {total} files", nl=False, err=True)

    is_told = _is_terminal(sys.stderr)
    pushed = api.push_data(folder, location, on_file=tell if is_told else None)
    if is_told:
        click.echo(err=True)
    click.echo(
        f"{location}: {pushed.files} files, {pushed.uploaded} of them sent now"
        f" ({pushed.bytes_uploaded / 2**20:.1f} MiB); write it as 'dataset' in a spec"
    )


@cli.command()
@click.argument("spec", type=_FILE)
@click.option("--set", "overrides", metavar="FIELD=VALUE", multiple=True, help="Replace a setting, e.g. search.seed=8.")
@click.option(
    "--metrics-port",
    metavar="PORT",
    type=click.IntRange(1, 65535),
    help="Show metrics to Prometheus there meanwhile; 9109 is customary.",
)
def search(spec: Path, *, overrides: tuple[str, ...], metrics_port: int | None) -> int:
    """Start the study of a spec, or go on where it was left; Ctrl-C is safe.

    The same spec names the same study. As long as they still decide anything, execution, refit and the limits of budget
    (all of it but min_epochs, max_epochs and eta) may be changed; dataset, split, search and training may not.
    """
    from automonai import api, terminal
    from automonai.spec import load_spec
    from automonai.storage.opening import join_location
    from automonai.watching import watching

    settings = load_spec(spec, overrides)
    click.echo("checking the dataset ...", err=True)
    try:
        with watching(is_terminal=_is_terminal(sys.stdout), write=_write_if_read) as watch:
            summary = api.search(settings, watch=watch, metrics_port=metrics_port)
    except KeyboardInterrupt:
        click.echo(f"interrupted; nothing is lost, go on with: {_resume(spec, overrides, metrics_port)}", err=True)
        return INTERRUPTED
    if summary.succeeded is None:
        click.echo(f"stopped; nothing is lost, go on with: {_resume(spec, overrides, metrics_port)}", err=True)
        return TERMINATED
    for line in terminal.summary_lines(summary, location=join_location(settings.store, settings.name)):
        _write_if_read(line)
    return 0 if summary.succeeded else FAILED


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is a terminal; one that was closed is None."""
    return stream is not None and stream.isatty()


def _write_if_read(line: str) -> None:
    """Write a line to standard output, until nobody takes it: a search does not end with who reads of it."""
    try:
        click.echo(line)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _resume(spec: Path, overrides: tuple[str, ...], metrics_port: int | None) -> str:
    sets = (part for override in overrides for part in ("--set", override))
    port = () if metrics_port is None else ("--metrics-port", str(metrics_port))
    return shlex.join(["automonai", "search", str(spec), *sets, *port])


@cli.command()
@click.argument("study", type=_LOCATION)
@click.option("--json", "as_json", is_flag=True, help="Print everything that is known as JSON.")
@click.option("--watch", "is_watched", is_flag=True, help="Go on showing it until it is over; Ctrl-C ends the watch.")
def status(study: str, *, as_json: bool, is_watched: bool) -> int:
    """Show where a study stands; it may be running."""
    from automonai import api, terminal
    from automonai.report import summarise

    if is_watched and as_json:
        raise click.UsageError("--watch and --json exclude each other; call 'status --json' again and again instead")
    if is_watched:
        return _watch(study)
    loaded, data, _ = api.load_study(study)
    summary = summarise(loaded, data)
    if as_json:
        click.echo(summary.model_dump_json(indent=2))
        return 0
    click.echo(terminal.rendered(terminal.study_table(loaded, now=loaded.last_event_at)))
    if ago := terminal.last_event_words(loaded, time()):
        click.echo(f"as of    the last event, {ago}; 'automonai status {shlex.quote(study)} --watch' counts on")
    for line in terminal.summary_lines(summary, location=study):
        click.echo(line)
    return 0


def _watch(study: str) -> int:
    """Show a study until it is over; the exit code is that of its search, so that a script may wait for it."""
    from automonai import terminal
    from automonai.watching import follow, watching

    try:
        with watching(is_terminal=_is_terminal(sys.stdout), write=click.echo, is_late=True) as watch:
            summary = follow(study, watch=watch)
    except KeyboardInterrupt:
        click.echo("no longer watching; the study was left as it is", err=True)
        return INTERRUPTED
    for line in terminal.summary_lines(summary, location=study):
        click.echo(line)
    return 0 if summary.succeeded else FAILED


@cli.command()
@click.argument("study", type=_LOCATION)
def report(study: str) -> None:
    """Write a study's report anew, whatever it has reached, and print where it lies."""
    from automonai import api

    click.echo(api.report(study))


@cli.command()
@click.argument("study", type=_LOCATION)
@click.option("--json", "as_json", is_flag=True, help="Print a list of runs with their whole configurations as JSON.")
def runs(study: str, *, as_json: bool) -> None:
    """List every run of a study."""
    from automonai import api, terminal

    rows = api.runs(study)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        click.echo(terminal.rendered(terminal.runs_table(rows)))


@cli.command()
@click.argument("dataset", type=_LOCATION)
@click.option("--configuration", metavar="FILE", type=_FILE, required=True, help="YAML or JSON of hyperparameters.")
@click.option("--epochs", type=click.IntRange(min=1), required=True, help="One epoch: a patch of each training case.")
@click.option("--output", metavar="DIR", type=_LOCATION, required=True, help="For the checkpoint; predict takes it.")
@click.option("--fold", type=click.IntRange(min=0), default=0, show_default=True, help="Held out and scored; of four.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of weights and augmentation.")
def train(dataset: str, *, configuration: Path, epochs: int, output: str, fold: int, seed: int) -> int:
    """Train one configuration, without a search."""
    from automonai import api, terminal

    interrupts = []

    def tell() -> None:
        interrupts.append(True)
        click.echo("saving the state; press Ctrl-C again to leave without", err=True)

    try:
        result = api.train(
            dataset,
            configuration=configuration,
            epochs=epochs,
            output=output,
            fold=fold,
            seed=seed,
            on_interrupt=tell,
        )
    except StopRequestedError as error:
        if not interrupts:
            raise
        click.echo(f"interrupted; {error}, and the same command goes on", err=True)
        return INTERRUPTED
    click.echo(terminal.result_line(result))
    return 0 if result.loss is not None else FAILED


@cli.command()
@click.argument("study", type=_LOCATION)
@click.argument("images", nargs=-1, required=True, type=_ANY)
@click.option("--output", metavar="DIR", type=_FOLDER, required=True, help="A label map per case, under its name.")
def predict(study: str, images: tuple[Path, ...], *, output: Path) -> None:
    """Segment images (files or folders) by a study's ensemble.

    In a study on nnU-Net data, or of several channels, files CASE_0000, CASE_0001 are the channels of CASE. Label maps
    have their image's orientation, shape and affine.
    """
    from automonai import api

    written = api.predict(study, list(images), output=output)
    click.echo(f"{len(written)} label maps in {output}")


@cli.command()
@click.option("--predictions", metavar="DIR", type=_FOLDER, required=True, help="Label maps to score.")
@click.option("--labels", metavar="DIR", type=_FOLDER, required=True, help="The truth, under the same names.")
@click.option("--tolerance-mm", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Of surface Dice.")
@click.option(
    "--output",
    metavar="FILE",
    type=_FILE,
    callback=_parse_evaluation_file,
    help="Write every case's figures: FILE.json or FILE.csv.",
)
def evaluate(*, predictions: Path, labels: Path, tolerance_mm: float, output: Path | None) -> None:
    """Score label maps: Dice, 95 % Hausdorff distance and surface Dice, by the Decathlon's definitions."""
    from automonai import api, terminal
    from automonai.storage.local import refuse_unwritable

    if output is not None:
        refuse_unwritable(output.parent)
    evaluation = api.evaluate(predictions, labels, tolerance_mm=tolerance_mm)
    click.echo(terminal.rendered(terminal.evaluation_table(evaluation)))
    if output is not None:
        from automonai.learning.scoring import write_evaluation

        write_evaluation(evaluation, output)


for _command in (cluster_cli.step, cluster_cli.stop, cluster_cli.logs, cluster_cli.workflow):
    cli.add_command(_command)


if __name__ == "__main__":
    sys.exit(main())

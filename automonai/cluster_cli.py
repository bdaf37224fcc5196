"""The verbs of a cluster: what a workflow's steps run, and what a user asks of a workflow."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from automonai.errors import AutoMonaiError

if TYPE_CHECKING:
    from automonai.execution.cluster_api import ClusterApi
    from automonai.execution.jobs import JsonObject
    from automonai.parameters import StudyParameters
    from automonai.spec import StudySpec

logger = logging.getLogger(__name__)

_LOCATION = "s3://BUCKET/PREFIX"
_TEMPLATE = "automonai-study"
_FORM = ("dataset", "name", "budget", "sampler", "parallel-runs", "gpus-per-run", "spec")

TERMINATION_LOG = Path("/dev/termination-log")
"""A container's own: Kubernetes takes its last message from it, and Argo's UI shows that as the step's."""
MESSAGE_BYTES = 4000
"""Kubernetes keeps 4096, the last ones; the first problem matters most."""


class _StepGroup(click.Group):
    """Commands whose error becomes the last message of their pod; its log has Argo's own lines around it."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except (AutoMonaiError, OSError, click.ClickException) as error:
            from automonai.observability.logs import redacted

            text = error.format_message() if isinstance(error, click.ClickException) else str(error)
            if TERMINATION_LOG.exists():
                TERMINATION_LOG.write_bytes(redacted(text).encode()[:MESSAGE_BYTES])
            raise


@click.group(cls=_StepGroup, hidden=True)
def step() -> None:
    """Run one step of a workflow; the chart's templates call these."""
    from automonai.execution.jobs import GPUS_VARIABLE, NO_GPUS
    from automonai.observability import logs

    logs.set_up(level=logging.INFO)
    if os.environ.get(GPUS_VARIABLE) == "0":  # before torch looks for any
        os.environ.update(NO_GPUS)


def _name_process(study: str) -> None:
    """Let all log lines name the study, that of an error included; no text: it is not known."""
    from automonai.observability import logs

    logs.name_process(study=study)


def _study_form(command: Callable[..., object]) -> Callable[..., object]:
    """Give a command the parameters of the study's form; empty text means that nothing was said."""
    for name in reversed(_FORM):
        command = click.option(f"--{name}", default="", help=f"The workflow's parameter {name}.")(command)
    return command


def _parameters(form: dict[str, str]) -> StudyParameters:
    from automonai.parameters import StudyParameters

    return StudyParameters.model_validate(form)


@step.command("check")
@_study_form
def check_step(**form: str) -> None:
    """Check parameters and dataset, and write the study's first data."""
    from automonai import cluster_steps

    _name_process(form["name"])
    spec = cluster_steps.check(_parameters(form))
    logger.info("the parameters and dataset %s are in order", spec.dataset)


@step.command("search")
@_study_form
def search_step(**form: str) -> int:
    """Be the study's controller until its search has ended."""
    from automonai import cluster_steps
    from automonai.watching import LogWatch

    _name_process(form["name"])
    return cluster_steps.search(_parameters(form), watch=LogWatch())


@step.command("refit")
@_study_form
def refit_step(**form: str) -> int:
    """Be the study's controller from the end of its search until it is over."""
    from automonai import cluster_steps
    from automonai.watching import LogWatch

    _name_process(form["name"])
    return cluster_steps.refit(_parameters(form), watch=LogWatch())


@step.command("report")
@_study_form
@click.option("--output", type=click.Path(path_type=Path), default=Path("/tmp/report.html"), show_default=True)  # noqa: S108
def report_step(output: Path, **form: str) -> None:
    """Write the report into the study and into a file for Argo's UI."""
    from automonai import cluster_steps

    _name_process(form["name"])
    logger.info("report written to %s", cluster_steps.report(_parameters(form), output=output))


@step.command("finish")
def finish_step() -> None:
    """Delete the Jobs of this workflow that still run."""
    from automonai import cluster_steps

    logger.info("%d Jobs deleted", cluster_steps.finish())


@step.command("janitor")
@click.option("--namespace", envvar="AUTOMONAI_NAMESPACE", required=True)
def janitor_step(namespace: str) -> None:
    """Delete Jobs whose workflow is over or gone."""
    from automonai import cluster_steps

    logger.info("%d Jobs deleted", cluster_steps.delete_orphans(namespace))


@step.command("predict")
@click.option("--study", required=True)
@click.option("--images", required=True)
@click.option("--output", required=True)
def predict_step(study: str, images: str, output: str) -> None:
    """Segment the images of one location into another."""
    from automonai import cluster_steps

    _name_process(study.rstrip("/").rpartition("/")[2])
    logger.info("%s: %d label maps", output, cluster_steps.predict(study, images, output))


@step.command("train")
@click.option("--dataset", required=True)
@click.option("--output", required=True)
@click.option("--epochs", type=click.IntRange(min=1), required=True)
@click.option("--configuration", default="{}", help="YAML or JSON.")
@click.option("--fold", type=click.IntRange(min=0), default=0)
@click.option("--seed", type=click.IntRange(min=0), default=0)
def train_step(*, dataset: str, output: str, epochs: int, configuration: str, fold: int, seed: int) -> int:
    """Train one configuration."""
    from automonai import api, terminal
    from automonai.documents import parse_yaml
    from automonai.parameters import parse_configuration

    where = "parameter configuration"
    chosen = parse_configuration(parse_yaml(configuration, where=where), where=where)
    result = api.train(dataset, configuration=chosen, epochs=epochs, output=output, fold=fold, seed=seed)
    logger.info("%s", terminal.result_line(result))
    return 0 if result.loss is not None else 1


_in_namespace = click.option(
    "--namespace",
    "-n",
    envvar="AUTOMONAI_NAMESPACE",
    default="automonai",
    show_default=True,
    help="Where the chart is installed; $AUTOMONAI_NAMESPACE says it too.",
)


@click.command()
@click.argument("study", metavar=_LOCATION)
@_in_namespace
def stop(study: str, *, namespace: str) -> None:
    """End the workflow that runs a study; its results stay, and submitting it again goes on."""
    from automonai import cluster_studies

    click.echo(f"asked to end: {', '.join(cluster_studies.stop(study, namespace=namespace))}")


@click.command()
@click.argument("study")
@click.argument("run")
@_in_namespace
def logs(study: str, run: str, *, namespace: str) -> None:
    """Print the log of a run; 'automonai runs STUDY' lists the runs."""
    from automonai import cluster_studies

    click.echo(cluster_studies.logs(study, run, namespace=namespace), nl=False)


@click.group()
def workflow() -> None:
    """Argo workflows of studies."""


@workflow.command()
@click.argument("spec", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--set", "overrides", metavar="FIELD=VALUE", multiple=True, help="Replace a setting, e.g. search.seed=8.")
@click.option("--instance-id", default="", help="Of the Argo that is to run it, if it has one; 'submit' looks itself.")
def render(spec: Path, *, overrides: tuple[str, ...], instance_id: str) -> None:
    """Print the Workflow that 'submit' would create."""
    import yaml

    from automonai.spec import load_spec

    manifest = _manifest(load_spec(spec, overrides), instance_id=instance_id)
    click.echo(yaml.safe_dump(manifest, sort_keys=False), nl=False)


@workflow.command()
@click.argument("spec", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--set", "overrides", metavar="FIELD=VALUE", multiple=True, help="Replace a setting, e.g. search.seed=8.")
@_in_namespace
def submit(spec: Path, *, overrides: tuple[str, ...], namespace: str) -> None:
    """Start a study on the cluster that KUBECONFIG names."""
    from automonai.execution.cluster_api import connect
    from automonai.spec import load_spec

    study, api = load_spec(spec, overrides), connect(namespace)
    created = api.create_workflow(_manifest(study, instance_id=_instance_id(api)))
    click.echo(f"{created.metadata.name} started in namespace {namespace}; watch it in the Argo UI")


def _instance_id(api: ClusterApi) -> str:
    """Return the id of the Argo that the namespace's template is for; empty: it has none."""
    from automonai.errors import UserError

    template = api.find_workflow_template(_TEMPLATE)
    if template is None:
        raise UserError(
            f"namespace {api.namespace} has no workflow template {_TEMPLATE}: --namespace names where the chart is"
        )
    return template.instance_id


def _manifest(spec: StudySpec, *, instance_id: str) -> JsonObject:
    """Return the Workflow of a spec."""
    from automonai.documents import dump_yaml
    from automonai.errors import UserError
    from automonai.parameters import refuse_local_dataset

    try:
        from pipelines import study_workflow
    except ImportError as error:
        raise UserError("making a workflow needs more packages: pip install '.[cluster]' in the clone") from error
    refuse_local_dataset(spec)
    # What it leaves out is the chart's to say.
    text = dump_yaml(spec.model_dump(mode="json", exclude_unset=True))
    manifest: JsonObject = study_workflow(name=spec.name, spec=text, instance_id=instance_id).to_dict()
    return manifest

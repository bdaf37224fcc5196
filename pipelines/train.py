"""The workflow that trains one configuration, without a search."""

from __future__ import annotations

from hera.workflows import Parameter, Steps, WorkflowTemplate

from pipelines import release
from pipelines.pods import options, retry_after_disruption, step, template
from pipelines.study import gpu_parameter

TRAIN = "automonai-train"

_DESCRIPTION = "Trains one configuration, without a search; automonai-predict takes its output as it takes a study's."


def train_template() -> WorkflowTemplate:
    """Return the WorkflowTemplate `automonai-train`: one pod of the trainer's, which goes on after an eviction."""
    parameters = [
        Parameter(name="dataset", description="Where it lies, for example s3://automonai/datasets/hippocampus."),
        Parameter(name="output", description="Where the training goes, for example s3://automonai/trainings/first."),
        Parameter(name="epochs", value="100", description="One epoch is a patch of each training case."),
        Parameter(
            name="configuration",
            value="{}",
            description="Hyperparameters as YAML or JSON; what it does not name keeps the standard's value.",
        ),
        Parameter(name="fold", value="0", enum=["0", "1", "2", "3"], description="Held out and scored."),
        Parameter(name="seed", value="0", description="Of weights, order and augmentation."),
    ]
    gpus = gpu_parameter("GPUs of the pod: several share the patches of every batch. 0: CPU only.")
    workflow = template(TRAIN, description=_DESCRIPTION, parameters=[*parameters, gpus])
    workflow.entrypoint = "main"
    with workflow:
        train = step(
            "train",
            options(parameters),
            image=release.TRAINER_IMAGE,
            retry=retry_after_disruption(),
            patch=release.TRIAL_PATCH,
            gpus=f"{{{{workflow.parameters.{gpus.name}}}}}",
        )
        with Steps(name="main"):
            train(name="train")
    return workflow

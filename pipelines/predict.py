"""The workflow that segments images by a study's ensemble."""

from __future__ import annotations

from hera.workflows import Parameter, Steps, WorkflowTemplate

from pipelines import release
from pipelines.pods import options, retry_after_disruption, step, template
from pipelines.study import gpu_parameter

PREDICT = "automonai-predict"

_DESCRIPTION = "Segments images by the ensemble of a study or of a single training."


def predict_template() -> WorkflowTemplate:
    """Return the WorkflowTemplate `automonai-predict`: one pod of the trainer's."""
    parameters = [
        Parameter(name="study", description="Where it lies, for example s3://automonai/studies/hippocampus."),
        Parameter(name="images", description="Folder of images, for example s3://automonai/datasets/new/images."),
        Parameter(name="output", description="Folder for the label maps, for example s3://automonai/predictions/new."),
    ]
    gpus = gpu_parameter("GPUs of the pod: a prediction uses one. 0: CPU only.")
    workflow = template(PREDICT, description=_DESCRIPTION, parameters=[*parameters, gpus])
    workflow.entrypoint = "main"
    with workflow:
        predict = step(
            "predict",
            options(parameters),
            image=release.TRAINER_IMAGE,
            retry=retry_after_disruption(),
            patch=release.TRIAL_PATCH,
            gpus=f"{{{{workflow.parameters.{gpus.name}}}}}",
        )
        with Steps(name="main"):
            predict(name="predict")
    return workflow

"""Argo workflows by Hera, the only package that imports it: pure functions that return templates and workflows."""

from __future__ import annotations

from pipelines.cron import nightly_study
from pipelines.predict import predict_template
from pipelines.study import study_template, study_workflow
from pipelines.train import train_template

__all__ = ["nightly_study", "predict_template", "study_template", "study_workflow", "train_template"]

"""What a Helm release decides about a template: marks that stand for its values, and that Argo never sees.

Helm must not render Argo's own `{{ }}`, so the chart reads a template as plain text and replaces every `'@@name@@'`,
quotes included, by that value as JSON. A mark is therefore always a whole scalar.
"""

from __future__ import annotations

CONTROLLER_IMAGE = "@@controllerImage@@"
TRAINER_IMAGE = "@@trainerImage@@"
RELEASE = "@@release@@"
"""The release's name: a label by which its network policies find the pods."""
CACHE = "@@cacheLabel@@"
"""The claim of a cache that only one node at a time can have; empty: the cache is none such."""
STEP_ACCOUNT = "@@stepAccount@@"
"""May report its own step's result to Argo."""
CONTROLLER_ACCOUNT = "@@controllerAccount@@"
"""May also create and delete Jobs."""
SETTINGS = "@@settings@@"
"""ConfigMap of environment variables, none of them secret."""
POD_SECURITY = "@@podSecurityContext@@"
"""Whom a workflow's pods run as, and what they may not."""
STORE_SECRET = "@@storeSecret@@"  # noqa: S105 - the mark of a Secret's name
"""Secret of the store's keys; it may be missing where the pods' identity opens the store."""
JOB_TEMPLATE = "@@jobTemplate@@"
"""ConfigMap of the settings of a run's Job."""
ARTIFACTS = "@@artifactRepositories@@"
"""ConfigMap of Argo's artifact repository: the same bucket."""
GPU_COUNT = "@@gpuCount@@"
"""Default of GPUs per run."""
PARALLEL_RUNS = "@@parallelRuns@@"
"""Default of runs at once."""
METRICS_PORT = "@@metricsPort@@"
"""Where the controller shows its metrics; empty: nowhere."""
METRICS_SCRAPED = "@@metricsScraped@@"
"""Whether a Prometheus without its operator is to scrape the controller: true or false."""
KEEP_SECONDS = "@@workflowKeepSeconds@@"
"""How long an ended Workflow stays."""
STEP_PATCH = "@@stepPodPatch@@"
CHECK_PATCH = "@@checkPodPatch@@"
"""Patch of a step's pod: Argo's own containers, resources, cache, node selector and the like."""
TRIAL_PATCH = "@@trialPodPatch@@"
"""The same for pods that train or predict themselves, GPUs included."""

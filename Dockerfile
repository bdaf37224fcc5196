# Two images: controller (no torch) and trainer (on a PyTorch image). scripts/images builds both.
# The packages lie in /opt/automonai/packages, beside whatever Python the base image has, so any base will do.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim
# 2.13.0-cuda12.6-cudnn9-runtime: the version of constraints.txt, Python 3.12, GPUs from Volta to Hopper.
ARG TORCH_IMAGE=docker.io/pytorch/pytorch@sha256:6acf597eeb8e376a96580dde4952f37cc017fef732bb40bfc73f28f25e3f64b4


# A compiler, for netifaces, which hpbandster needs and which comes as source only; it stays in this stage.
FROM ${PYTHON_IMAGE} AS controller-packages
USER root
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY images/build.txt images/controller.txt images/
RUN python -m venv tools \
    && tools/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r images/build.txt \
    && tools/bin/python -m pip install --no-cache-dir --no-compile --no-deps --require-hashes --no-build-isolation \
        --target /opt/automonai/packages -r images/controller.txt
COPY images/slim.py images/warm.py images/automonai images/
RUN python images/slim.py /opt/automonai/packages && rm -rf /opt/automonai/packages/bin \
    && install -D -m 755 images/automonai /opt/automonai/bin/automonai
COPY pyproject.toml README.md LICENSE ./
COPY automonai automonai
RUN tools/bin/python -m pip install --no-cache-dir --no-compile --no-deps --no-build-isolation \
        --target /opt/automonai/packages . \
    && rm -rf /opt/automonai/packages/bin build \
    && cd / && PYTHONPATH=/opt/automonai/packages MPLCONFIGDIR=/tmp python /build/images/warm.py /opt/automonai/packages \
        --without torch --without monai \
        automonai.cli automonai.api automonai.cluster_cli automonai.cluster_steps automonai.terminal automonai.watching \
        pythonjsonlogger.json automonai.storage.s3 automonai.storage.datasets automonai.execution.kubernetes automonai.search.bohb \
        automonai.imaging.checking automonai.imaging.fingerprinting \
        automonai.report.writing automonai.report.figures automonai.report.importance \
        kubernetes.client.api.authorization_v1_api kubernetes.client.api.custom_objects_api kubernetes.config \
        prometheus_client scipy.stats


FROM ${PYTHON_IMAGE} AS controller
COPY --from=controller-packages /opt/automonai /opt/automonai
ENV PATH=/opt/automonai/bin:${PATH} \
    PYTHONPATH=/opt/automonai/packages \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=automonai
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["automonai"]
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="automonai-controller" \
      org.opencontainers.image.description="The controller of AutoMONAI's studies on a cluster" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0"


# Everything here comes as wheels: no compiler at all.
FROM ${TORCH_IMAGE} AS trainer-packages
USER root
WORKDIR /build
COPY images/build.txt images/trainer.txt images/
RUN python -m pip install --no-cache-dir --no-deps --require-hashes --target tools -r images/build.txt \
    && python -m pip install --no-cache-dir --no-compile --no-deps --require-hashes --only-binary :all: \
        --target /opt/automonai/packages -r images/trainer.txt
COPY images/slim.py images/warm.py images/automonai images/
RUN python images/slim.py /opt/automonai/packages && rm -rf /opt/automonai/packages/bin \
    && install -D -m 755 images/automonai /opt/automonai/bin/automonai
COPY pyproject.toml README.md LICENSE ./
COPY automonai automonai
RUN PYTHONPATH=/build/tools python -m pip install --no-cache-dir --no-compile --no-deps --no-build-isolation \
        --target /opt/automonai/packages . \
    && rm -rf /opt/automonai/packages/bin build \
    && cd / && PYTHONPATH=/opt/automonai/packages MPLCONFIGDIR=/tmp python /build/images/warm.py /opt/automonai/packages \
        torch monai automonai.cli automonai.cluster_cli automonai.cluster_steps automonai.api automonai.terminal automonai.worker automonai.preparing \
        automonai.imaging.checking automonai.learning.training automonai.learning.ensembling \
        pythonjsonlogger.json automonai.learning.predicting automonai.storage.s3 automonai.storage.datasets


FROM ${TORCH_IMAGE} AS trainer
COPY --from=trainer-packages /opt/automonai /opt/automonai
ENV PATH=/opt/automonai/bin:${PATH} \
    PYTHONPATH=/opt/automonai/packages \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=automonai
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["automonai"]
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="automonai-trainer" \
      org.opencontainers.image.description="Trains, selects and predicts for AutoMONAI's studies on a cluster" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0"

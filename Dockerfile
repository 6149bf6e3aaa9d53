# syntax=docker/dockerfile:1

ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# Where torch comes from: the CPU build by default, for CUDA say
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

# Its version follows the base image.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
RUN python -m venv /opt/manylora
ENV PATH=/opt/manylora/bin:$PATH

# Dependencies first, so that a change of our code does not fetch them again. Every version is the lock
# file's; of torch only the version is, because its build differs by device.
COPY requirements.lock ./
RUN torch="$(sed -nE 's/^torch==([0-9.]+).*/\1/p' requirements.lock)" \
    && test -n "${torch}" \
    && grep -vE '^(torch==|--|-e )' requirements.lock > rest.lock \
    && pip install --index-url "${TORCH_INDEX}" "torch==${torch}" \
    && pip install --requirement rest.lock

# The package manylora holds links to the two folders beside it.
COPY pyproject.toml README.md LICENSE ./
COPY adapters ./adapters
COPY server ./server
COPY manylora ./manylora
RUN pip install --no-deps . && pip check

# The CPU kernels for every processor this image may start on: the image itself has no compiler.
RUN manylora build-kernels --target all


FROM python:${PYTHON_VERSION}-slim-bookworm

LABEL org.opencontainers.image.title="manylora" \
      org.opencontainers.image.description="Hundreds of LoRA adapters in one batch on one base model"

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# On CUDA, Triton compiles its launchers as they are first needed.
# hadolint ignore=DL3008
RUN case "${TORCH_INDEX}" in */cpu) ;; *) \
        apt-get update \
        && apt-get install --yes --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/* ;; \
    esac \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin manylora \
    && install -d -o manylora -g manylora /data /adapters

COPY --from=build /opt/manylora /opt/manylora
COPY --chown=root:root examples/adapters /opt/manylora/share/adapters

# Models and adapter revisions live in /data; /adapters is where load requests may read.
ENV PATH=/opt/manylora/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/data/huggingface \
    XDG_CACHE_HOME=/data/cache \
    MANYLORA_DATA_DIR=/data \
    MANYLORA_ADAPTER_ROOT=/adapters \
    MANYLORA_HOST=0.0.0.0 \
    MANYLORA_PORT=8000

USER 10001
WORKDIR /data
VOLUME ["/data"]
EXPOSE 8000

# Ready means the model is loaded and probed and the engine runs; the first start also fetches the model.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"MANYLORA_PORT\"]}/ready', timeout=4)"]

ENTRYPOINT ["manylora"]
CMD ["serve"]

# jepa_lm for the CPU; for NVIDIA GPUs build with `--build-arg BUILD=cu130` and run with `--gpus all`.
#
#   docker build -t jepa_lm .
#   docker run --rm -v "$PWD/runs:/runs" jepa_lm jepa-train experiment=demo
#
# /runs is the working directory: it gets logs/, and the cache of prepared data.
ARG PYTHON=3.13
FROM python:${PYTHON}-slim
ARG TORCH=2.13.0
ARG BUILD=cpu
# g++ compiles the loss (`compile=true`).
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir "torch==${TORCH}" --index-url "https://download.pytorch.org/whl/${BUILD}"
WORKDIR /source
COPY pyproject.toml README.md LICENSE MANIFEST.in ./
COPY conf conf
COPY hydra_plugins hydra_plugins
COPY jepa_lm jepa_lm
RUN pip install --no-cache-dir ".[wandb,tensorboard,sweep]"
WORKDIR /runs
ENV JEPA_LM_CACHE=/runs/cache
CMD ["jepa-train", "experiment=demo"]

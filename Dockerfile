# wsi-dino in a container. Two targets:
#   docker build --target cpu  -t wsi-dino:cpu  .
#   docker build --target cuda -t wsi-dino:cuda .     (run it with --gpus all, or `apptainer exec --nv`)
# It was written where no engine to build it was at hand. tests/test_container.py holds it to pyproject.toml.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS source
# OpenCV asks for these two, which a slim image has not.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy PYTHONUNBUFFERED=1
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY wsi_dino wsi_dino
COPY cli cli
COPY configs configs
# Results belong to whoever runs it, so it is not root: `docker run --user $(id -u):$(id -g)` for yours.
RUN useradd --create-home --uid 1000 dino && mkdir /data && chown dino /data

FROM source AS cpu
RUN uv pip install --system --no-cache --torch-backend=cpu ".[radiology,segmentation,transformers,openclip,slurm,ray,s3]"
USER dino
WORKDIR /data
ENTRYPOINT ["wsi-dino"]

FROM source AS cuda
# torch's own wheels for Linux bring CUDA with them; only the driver is the host's.
RUN uv pip install --system --no-cache ".[radiology,segmentation,transformers,openclip,slurm,ray,s3]"
USER dino
WORKDIR /data
ENTRYPOINT ["wsi-dino"]

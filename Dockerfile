# The images: `pipeline` and `pipeline-torch` run steps, `serving` and `serving-gpu` answer. `make images` builds them.
#
# BASE is any glibc Linux with Python 3.11, 3.12 or 3.13 and its venv module; both stages of an image stand on it, and nothing is
# added to it but two folders. Everything is pinned by requirements/*.lock; no compiler and no package cache is left. The root
# file system may be read-only: a service writes to /var/lib/esteira and /tmp, a step to its outputs and /tmp.
ARG BASE=python:3.11-slim

# ---- what is installed, one lock a stage

FROM ${BASE} AS builder
# Every file gets this time, not that of the build or of the commit, so that equal locks give equal layers: 1980, the oldest
# that a zip file can say.
ENV SOURCE_DATE_EPOCH=315532800
WORKDIR /build
COPY requirements/install.sh requirements/pipeline.lock requirements/

FROM builder AS pipeline-packages
RUN --mount=type=secret,id=index --mount=type=secret,id=ca --mount=type=cache,target=/cache \
    sh requirements/install.sh requirements/pipeline.lock /opt/venv

FROM builder AS torch-packages
COPY requirements/torch.lock requirements/
# The wheel without CUDA: one that requirements/images.sh found beside us, else from the index that uv knows for it.
RUN --mount=type=secret,id=index --mount=type=secret,id=ca --mount=type=cache,target=/cache \
    --mount=type=bind,source=build/wheels,target=/wheels \
    if ls /wheels/torch-* >/dev/null 2>&1; then set -- --find-links /wheels; else set -- --torch-backend cpu; fi; \
    sh requirements/install.sh requirements/torch.lock /opt/torch --target /opt/torch "$@"

FROM builder AS serving-packages
COPY requirements/serving.lock requirements/
RUN --mount=type=secret,id=index --mount=type=secret,id=ca --mount=type=cache,target=/cache \
    sh requirements/install.sh requirements/serving.lock /opt/venv

FROM builder AS serving-gpu-packages
COPY requirements/serving-gpu.lock requirements/
RUN --mount=type=secret,id=index --mount=type=secret,id=ca --mount=type=cache,target=/cache \
    sh requirements/install.sh requirements/serving-gpu.lock /opt/venv \
 && cd /opt/venv && ln -s lib/python3.*/site-packages/nvidia nvidia \
 && touch --no-dereference --date="@$SOURCE_DATE_EPOCH" /opt/venv /opt/venv/nvidia

# ---- our own code, compiled, and the one folder that may be written to

FROM builder AS code
COPY esteira /opt/esteira/esteira
COPY families /opt/esteira/families
COPY serving /opt/esteira/serving
COPY requirements/serving.lock /opt/esteira/requirements/
RUN mkdir /state \
 && PYTHONHASHSEED=0 python3 -m compileall -q --invalidation-mode unchecked-hash /opt/esteira \
 && chmod -R u=rwX,go=rX /opt/esteira \
 && find /opt/esteira /state -exec touch --date="@$SOURCE_DATE_EPOCH" {} +

FROM code AS pipeline-code
COPY components /opt/esteira/components
COPY pipelines /opt/esteira/pipelines
COPY params.yaml /opt/esteira/
RUN PYTHONHASHSEED=0 python3 -m compileall -q --invalidation-mode unchecked-hash /opt/esteira \
 && chmod -R u=rwX,go=rX /opt/esteira \
 && find /opt/esteira -exec touch --date="@$SOURCE_DATE_EPOCH" {} +

# ---- what every image shares; the user has a number and no name, so that a cluster can check that it is not root

FROM ${BASE} AS runtime
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/esteira \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    LOGNAME=esteira \
    ESTEIRA_HOME=/var/lib/esteira \
    BENTOML_HOME=/var/lib/esteira/bentoml \
    BENTOML_DO_NOT_TRACK=true \
    OTEL_SDK_DISABLED=true \
    OMP_WAIT_POLICY=passive
COPY --from=code --chown=10001:10001 /state /var/lib/esteira
WORKDIR /opt/esteira

FROM runtime AS pipeline
ENV GX_ANALYTICS_ENABLED=false MLFLOW_DISABLE_TELEMETRY=true DVC_NO_ANALYTICS=true DO_NOT_TRACK=1 \
    GIT_PYTHON_REFRESH=quiet MPLBACKEND=Agg
COPY --from=pipeline-packages /opt/venv /opt/venv
COPY --from=pipeline-code /opt/esteira /opt/esteira
ARG VERSION=unknown
ARG REVISION=unknown
ENV ESTEIRA_CODE_REVISION=${REVISION}
LABEL org.opencontainers.image.title=esteira-pipeline \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION}
USER 10001:10001
CMD ["python", "-m", "esteira.cli", "--help"]

FROM pipeline AS pipeline-torch
COPY --from=torch-packages /opt/torch /opt/torch
ENV PYTHONPATH=/opt/esteira:/opt/torch
LABEL org.opencontainers.image.title=esteira-pipeline-torch

FROM runtime AS serving-runtime
EXPOSE 8080
VOLUME ["/var/lib/esteira"]
# manifests/base/deployment.yaml says the same; tests/test_images.py compares.
CMD ["sh", "-c", "exec python -m bentoml serve serving.service:Esteira --host 0.0.0.0 --port \"${ESTEIRA_PORT:-8080}\""]
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=5 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + (os.environ.get('ESTEIRA_PORT') or '8080') + '/livez', timeout=9)"]

FROM serving-runtime AS serving-gpu
COPY --from=serving-gpu-packages /opt/venv /opt/venv
# ONNX Runtime does not look for CUDA and cuDNN in packages by itself.
ENV LD_LIBRARY_PATH=/opt/venv/nvidia/cu13/lib:/opt/venv/nvidia/cudnn/lib
COPY --from=code /opt/esteira /opt/esteira
ARG VERSION=unknown
ARG REVISION=unknown
ENV ESTEIRA_CODE_REVISION=${REVISION}
LABEL org.opencontainers.image.title=esteira-serving-gpu \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION}
USER 10001:10001

# Last, so that a build without a target gives the image that most want.
FROM serving-runtime AS serving
COPY --from=serving-packages /opt/venv /opt/venv
COPY --from=code /opt/esteira /opt/esteira
ARG VERSION=unknown
ARG REVISION=unknown
ENV ESTEIRA_CODE_REVISION=${REVISION}
LABEL org.opencontainers.image.title=esteira-serving \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION}
USER 10001:10001

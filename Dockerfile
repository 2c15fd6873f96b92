# syntax=docker/dockerfile:1
#
# `batchcap serve` and all other commands of batchcap, as a user without rights. Not built by CI: no test reaches a registry
# of images. tests/serving/test_container.py lints it and checks what it names.
#
#   docker build --target cpu -t batchcap .
#   docker build --target gpu --build-arg MODEL=runs/m1 -t batchcap:gpu .      # needs NVIDIA's container toolkit to run
#   docker run --rm -p 127.0.0.1:8012:8012 batchcap
#   docker run --rm -v /photos:/photos:ro -v captions:/data --shm-size 2g batchcap index /photos

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY batchcap batchcap
COPY model_training model_training
COPY sql sql
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim AS base
# The folder of a bundle, below the folder of this file.
ARG MODEL=batchcap/models/default
ENV PYTHONUNBUFFERED=1 \
    TF_CPP_MIN_LOG_LEVEL=2 \
    BATCHCAP_MODEL=/model \
    BATCHCAP_STORE=/data
RUN useradd --system --uid 10001 --create-home batchcap \
    && install --directory --owner batchcap /data
COPY ${MODEL} /model
COPY constraints.txt /
COPY --from=wheel /wheels /wheels
VOLUME /data
EXPOSE 8012
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=90s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8012/readyz', timeout=4)"]
ENTRYPOINT ["batchcap"]
CMD ["serve", "--host", "0.0.0.0"]

FROM base AS gpu
RUN pip install --no-cache-dir --constraint /constraints.txt \
    "$(echo /wheels/*.whl)[serve,fast,heif,postgres]" "tensorflow[and-cuda]" \
    && rm -r /wheels
ENV TF_FORCE_GPU_ALLOW_GROWTH=true
USER 10001

# The last one is built without --target.
FROM base AS cpu
RUN pip install --no-cache-dir --constraint /constraints.txt "$(echo /wheels/*.whl)[serve,fast,heif,openvino,postgres]" \
    && rm -r /wheels
USER 10001

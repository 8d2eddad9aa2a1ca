# The server in a container, as compose.yaml runs it. torch as the package index has it serves CPU and CUDA; for another
# build of it, name its index: docker build --build-arg PIP_EXTRA_INDEX_URL=...
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# pip reads these by itself.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 \
    PIP_CONSTRAINT=/opt/replica-detection/constraints.txt \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    LOGNAME=replica \
    NUMBA_CACHE_DIR=/tmp/numba \
    MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /opt/replica-detection
COPY constraints.txt requirements-server-bare.txt requirements-server-lean.txt ./
RUN pip install --no-deps -r requirements-server-bare.txt \
    && pip install -r requirements-server-lean.txt
COPY setup.py pyproject.toml README.md ./
COPY ReplicaDetection ReplicaDetection
COPY MonaiLabelApp MonaiLabelApp
RUN pip install .

WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=10); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["replica-detection", "serve", "--studies", "/studies", "--training", "/training", "--data", "/data"]
CMD ["--host", "0.0.0.0", "--api-key-file", "/run/secrets/keys"]

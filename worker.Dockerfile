# One image for the whole fleet: `evalpipe api | worker | beat | migrate`. It holds no secret and no setting but paths;
# everything else comes from EVALPIPE_* variables (docs/operating.md).
#
#   docker build --file worker.Dockerfile --tag evalpipe .
#   docker run --rm evalpipe doctor

ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/evalpipe
# First what changes seldom: the lock names every package with its hash.
COPY requirements.lock ./
RUN /opt/evalpipe/bin/pip install --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY evalpipe ./evalpipe
COPY migrations ./migrations
COPY scorecards ./scorecards
RUN python -m pip wheel --no-deps --wheel-dir /dist . \
    && /opt/evalpipe/bin/pip install --no-deps /dist/evalpipe-*.whl \
    && /opt/evalpipe/bin/pip check

FROM python:${PYTHON}-slim
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/evalpipe --create-home evalpipe
COPY --from=build /opt/evalpipe /opt/evalpipe
# Those that ship; mount your own over them.
COPY scorecards /scorecards
ENV PATH=/opt/evalpipe/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    EVALPIPE_HOME=/var/lib/evalpipe \
    EVALPIPE_SCORECARDS=/scorecards
WORKDIR /var/lib/evalpipe
USER 10001:10001
EXPOSE 8300
# Celery ends warm on TERM: what is under way is finished or given back. Leave it two minutes.
STOPSIGNAL SIGTERM
# For the API, which is what this image runs unless told otherwise; docker-compose.yml turns it off for the others.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8300/readyz', timeout=4)"]
ENTRYPOINT ["evalpipe"]
CMD ["api", "--host", "0.0.0.0"]

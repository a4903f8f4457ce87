# One image for the whole fleet: `evalpipe api | worker | beat | migrate`. It holds no secret and no setting but paths;
# everything else comes from EVALPIPE_* variables (docs/operating.md).
#
#   docker build --file worker.Dockerfile --tag evalpipe .
#   docker run --rm evalpipe doctor

ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /src
# uv takes from the lock what the fleet needs, and leaves the developers' tools; it checks every hash.
RUN pip install --no-cache-dir --disable-pip-version-check uv==0.13.9 \
    && uv venv /opt/evalpipe
ENV VIRTUAL_ENV=/opt/evalpipe UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
# First what changes seldom.
COPY requirements.lock pyproject.toml ./
RUN uv pip install --constraint requirements.lock --requirement pyproject.toml --extra worker --extra api
COPY README.md LICENSE ./
COPY evalpipe ./evalpipe
COPY migrations ./migrations
COPY scorecards ./scorecards
RUN uv build --wheel --build-constraint requirements.lock --out-dir /dist \
    && uv pip install --no-deps /dist/*.whl \
    && uv pip check

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

"""The API as a whole: ``make_api(Settings.from_env())``, to be served by uvicorn (``evalpipe api``)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Security
from fastapi.responses import JSONResponse

from evalpipe import __version__
from evalpipe.api import (
    alertmanager,
    alerts,
    baselines,
    canaries,
    control,
    health,
    labels,
    metrics,
    otlp,
    pages,
    problems,
    read,
    records,
    rollouts,
)
from evalpipe.api.access import KeyGuard, bearer
from evalpipe.api.health import Probes
from evalpipe.api.taps import Taps
from evalpipe.settings import Settings
from evalpipe.wiring import Wiring

DESCRIPTION = """
What evalpipe knows, for dashboards, deployers and people: scores, their series, the ledger, decisions, alerts. And the
way in for applications without the hook: OpenTelemetry's traces, plain records, feedback.

* **Keys.** Send `Authorization: Bearer KEY` with a key of `EVALPIPE_API_KEYS`. Only `/healthz`, `/readyz` and the
  forms of the pages, `/label`, `/rollouts` and `/alerts`, need none.
  A key of `EVALPIPE_API_INTAKE_KEYS` opens POST `/v1/traces`, `/v1/records`, `/v1/feedback` and `/v1/alertmanager`,
  nothing else; one of `EVALPIPE_API_LABEL_KEYS` opens GET `/v1/labels/criteria` and `/v1/labels/next`, POST
  `/v1/labels`, nothing else; one of `EVALPIPE_API_GATE_KEYS`, for deployers, opens GET `/v1/canaries/{name}/verdict`,
  POST `/v1/flagger/...`, GET `/v1/flags/{service}`.
* **Times** are UTC in ISO 8601. `since` and `until` also take how long ago: `15m`, `24h`, `7d`.
* **Unknown is null**, never 0. A `status` other than `scored` has no value: an error says nothing about the record.
* **Errors** are `{"error": {"what", "where", "value", "advice"}}`. A parameter that is not known is an error.
* **Epochs.** Scores of one criterion may be compared within one `epoch`: one definition, one judge.

Numbers never come as NaN or infinity. New fields may appear at any time: ignore what you do not know.
"""


def make_api(settings: Settings) -> FastAPI:
    """The application; it opens no connection before the first request.

    Raises:
        ConfigError: the database's URL cannot be used.
    """
    wiring, probes = Wiring(settings), Probes(settings)
    taps = Taps(settings, wiring.queue)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await to_thread.run_sync(taps.close)
        probes.close()
        wiring.close()

    # The interactive pages load scripts from elsewhere, and the document is behind the key like the rest.
    app = FastAPI(
        title="evalpipe",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.wiring = wiring
    app.state.probes = probes
    app.state.taps = taps
    app.state.intake = CapacityLimiter(4)
    app.state.metrics = metrics.make_probe(probes)
    problems.add_to(app)
    app.add_middleware(problems.LargeBodies)
    for router in (health.router, metrics.router, read.router, control.router, otlp.router, records.router):
        app.include_router(router)
    app.include_router(labels.router)
    app.include_router(alertmanager.router)
    app.include_router(rollouts.router)
    app.include_router(canaries.router)
    app.include_router(baselines.router)
    app.include_router(alerts.router)
    app.include_router(pages.router)

    @app.get("/openapi.json", include_in_schema=False, dependencies=[Security(bearer)])
    def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    app.add_middleware(
        KeyGuard,
        keys=settings.api_keys,
        intake_keys=settings.api_intake_keys,
        label_keys=settings.api_label_keys,
        gate_keys=settings.api_gate_keys,
    )
    return app

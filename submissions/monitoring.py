"""What a monitor asks: /metrics for Prometheus, and /readyz for whoever sends visitors here."""

from __future__ import annotations

import hmac
import shutil
import time
from collections.abc import Iterator
from ipaddress import ip_address

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram
from prometheus_client import generate_latest as as_text
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..benchmark.errors import AccessError, StorageError
from ..leaderboard import db, queue
from .request_logs import route_of
from .service import Site

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0)
"""Bounds of the histogram: from a page that is kept to a chunk on a slow line."""


class Measures:
    """The numbers of one application, in a registry of its own."""

    def __init__(self, site: Site) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tomoprobe_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "tomoprobe_request_seconds",
            "Time until a request was answered whole.",
            ("method", "route"),
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.received = Counter(
            "tomoprobe_received_bytes", "Bytes of bodies received.", registry=self.registry
        )
        self.registry.register(_Stored(site))


class _Stored(Collector):
    """What the database and the disk hold, asked anew for each answer."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See prometheus_client."""
        up = GaugeMetricFamily("tomoprobe_database_up", "1: the database answers.")
        try:
            depths, workers = queue.depths(self._site.engine), queue.workers(self._site.engine)
        except StorageError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        jobs = GaugeMetricFamily(
            "tomoprobe_jobs", "Units of work by kind and state.", labels=["kind", "state"]
        )
        for (kind, state), count in sorted(depths.items()):
            jobs.add_metric([kind, state], count)
        yield jobs
        yield GaugeMetricFamily(
            "tomoprobe_workers", "Workers seen in the last minutes.", value=len(workers)
        )
        folder = self._site.store.folder
        if folder.is_dir():
            yield GaugeMetricFamily(
                "tomoprobe_store_free_bytes",
                "Free space where uploads are.",
                value=shutil.disk_usage(folder).free,
            )


class Measured:
    """An ASGI wrapper that counts."""

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self._app = app
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def counted() -> Message:
            message = await receive()
            self._measures.received.inc(len(message.get("body", b"")))
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, counted, noted)
        finally:
            # labels that visitors cannot make up: each value is kept for ever
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = route_of(scope)
            self._measures.requests.labels(method, route, str(status)).inc()
            self._measures.seconds.labels(method, route).observe(time.perf_counter() - began)


_METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS")


def router(site: Site, measures: Measures) -> APIRouter:
    """The routes for monitors."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/metrics")
    def metrics(request: Request) -> Response:
        _check_monitor(site, request)
        return Response(as_text(measures.registry), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/readyz")
    def readyz() -> Response:
        found = readiness(site)
        ready = all(found.values())
        return JSONResponse(
            {"ready": ready, **found},
            200 if ready else 503,
            headers={"Cache-Control": "no-store"},
        )

    return routes


def readiness(site: Site) -> dict[str, bool]:
    """Whether visitors can be served: database there, its tables of this release, disk writable."""
    found = {"database": False, "schema": False, "store": False}
    try:
        found["schema"] = db.revision(site.engine) == db.newest()
        found["database"] = True
    except StorageError:
        pass  # what is False says it
    try:
        site.store.check_writable()
        found["store"] = True
    except StorageError:
        pass
    return found


def _check_monitor(site: Site, request: Request) -> None:
    """See that the numbers are asked for by who may know them.

    Raises:
        AccessError: by somebody else.
    """
    secret = site.configuration.metrics_token
    if secret:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), secret.encode()):
            raise AccessError("/metrics needs the bearer token of TOMOPROBE_METRICS_TOKEN.")
        return
    forwarded = "x-forwarded-for" in request.headers or "forwarded" in request.headers
    if forwarded or not _is_this_machine(request.client.host if request.client else ""):
        raise AccessError(
            "/metrics answers this machine only, unless TOMOPROBE_METRICS_TOKEN is set.", 403
        )


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False

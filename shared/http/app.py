"""The FastAPI application that every service starts from."""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CollectorRegistry
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.auth import Principal, ServiceTokens, bearer_token
from shared.authentication import Authenticates
from shared.errors import AppError, FieldInvalidError, UnauthorizedError, UnavailableError
from shared.http.docs import install_docs
from shared.http.edge import BODY_TIMEOUT_SECONDS, Edge
from shared.http.json_body import decode_json
from shared.http.problems import PROBLEM_SCHEMA, install_problem_handlers, problems
from shared.metrics import HttpMetrics, metrics_response

Check = Callable[[], Awaitable[None]]
Wrapper = Callable[[ASGIApp], ASGIApp]
CHECK_TIMEOUT_SECONDS: Final = 0.5

_bearer = HTTPBearer(auto_error=False, description="The `access_token` that `POST /users/login` answers.")


class StrictRoute(APIRoute):
    """A route whose JSON body is decoded by `decode_json`: exact numbers, clear refusals."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handle_strictly(request: Request) -> Response:
            decoded = _DecodedRequest(request.scope, request.receive)
            await decoded.decode()
            return await handle(decoded)

        return handle_strictly


class _DecodedRequest(Request):
    _value: Any = None

    async def decode(self) -> None:
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise AppError("content_type_unsupported", 415, "Send the body as application/json.")
        self._value = decode_json(await self.body())
        # FastAPI has pydantic read any object's attributes: to it a Decimal would be a model without fields.
        if not isinstance(self._value, dict):
            raise FieldInvalidError("body", "object_expected", "Must be an object.")

    async def json(self) -> Any:
        return self._value


def strict_router(tag: str) -> APIRouter:
    """A router for a service's public or internal operations."""
    return APIRouter(route_class=StrictRoute, tags=[tag])


def _as_it_is(app: ASGIApp) -> ASGIApp:
    return app


class _Edged(FastAPI):
    """Behind the edge before anything else: what is refused or answered there costs nothing of FastAPI's stack."""

    front: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.front(scope, receive, send)

    async def behind_the_edge(self, scope: Scope, receive: Receive, send: Send) -> None:
        """FastAPI's own way with a request."""
        await super().__call__(scope, receive, send)


def create_api(
    *,
    title: str,
    description: str,
    version: str,
    registry: CollectorRegistry,
    health: APIRouter,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    trust_deadline: bool = True,
    own_document: bool = True,
    body_timeout_seconds: float = BODY_TIMEOUT_SECONDS,
    headers: Mapping[str, str] | None = None,
    tokens: ServiceTokens | None = None,
    inner: Wrapper = _as_it_is,
    outer: Wrapper = _as_it_is,
) -> FastAPI:
    """A FastAPI application with limits, problem documents, metrics and `health`.

    `trust_deadline` takes the caller's deadline over; without `own_document` somebody else serves `/openapi.json`.
    `headers` go with every answer that does not have them. `tokens` are wanted where it matters from which address
    somebody has changed something. `inner` wraps the application within the edge, `outer` the edge itself.
    """
    app = _Edged(
        title=title,
        description=description,
        version=version,
        lifespan=lifespan,
        openapi_url="/openapi.json" if own_document else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    install_problem_handlers(app)
    app.front = outer(
        Edge(
            inner(app.behind_the_edge),
            metrics=HttpMetrics(registry),
            trust_deadline=trust_deadline,
            body_timeout_seconds=body_timeout_seconds,
            headers=headers,
            tokens=tokens,
        )
    )
    app.include_router(health)
    install_docs(app)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return metrics_response(registry)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=title, version=version, description=description, routes=app.routes)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas["Problem"] = copy.deepcopy(PROBLEM_SCHEMA)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


class BatchRoute:
    """`POST` of batches from other services, answered right behind the edge.

    FastAPI's own work for a call would be a good part of what a batch costs. Use it as `inner` of `create_api`.
    """

    def __init__(self, path: str, tokens: ServiceTokens, handle: Callable[[Request], Awaitable[Response]]) -> None:
        self.path = path  # how metrics call it
        self._tokens = tokens
        self._handle = handle

    def __call__(self, app: ASGIApp) -> ASGIApp:
        """`app` with this route before it."""

        async def route(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] != self.path or scope["method"] != "POST":
                await app(scope, receive, send)
                return
            scope["route"] = self
            request = Request(scope, receive)
            self._tokens.verify(bearer_token(single_header(request, "authorization")))
            response = await self._handle(request)
            await response(scope, receive, send)

        return route


def user_of(authenticator: Authenticates) -> Any:
    """A dependency's type: the person whose access token came with the request."""

    async def authenticate(
        request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> Principal:
        return await authenticator.authenticate(single_header(request, "authorization"))

    return Depends(authenticate)


def service_of(tokens: ServiceTokens) -> Any:
    """A dependency that lets other services in, and nobody else."""

    async def authenticate(request: Request) -> str:
        return tokens.verify(bearer_token(single_header(request, "authorization")))

    return Depends(authenticate)


def single_header(request: Request, name: str) -> str:
    """The value of a header that came once; raises UnauthorizedError."""
    values = request.headers.getlist(name)
    if len(values) != 1:
        raise UnauthorizedError
    return values[0]


def health_router(checks: Mapping[str, Check], essential: frozenset[str]) -> APIRouter:
    """The health operations of a service.

    `checks` say whether a dependency answers (they raise when not); without one of the `essential` ones the service
    is down (503), without another it is degraded and works on (200).
    """
    router = APIRouter(tags=["health"])

    async def state(check: Check) -> str:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                await check()
        except Exception:  # noqa: BLE001 - a dependency may be out in any way; the answer is its state
            return "down"
        return "up"

    @router.get("/health", summary="This service and what it depends on", responses=problems())
    async def health() -> Response:
        states = await asyncio.gather(*map(state, checks.values()))
        found = dict(zip(checks, states, strict=True))
        down = {name for name, state in found.items() if state == "down"}
        status = "down" if down & essential else "degraded" if down else "ok"
        return JSONResponse({"status": status, "dependencies": found}, 503 if status == "down" else 200)

    @router.get("/health/live", include_in_schema=False)
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/health/ready", include_in_schema=False)
    async def ready() -> Response:
        if "down" in await asyncio.gather(*(state(checks[name]) for name in essential)):
            raise UnavailableError
        return JSONResponse({"status": "ok"})

    return router


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]+$",
        description="Repeat a call under the same key and it is done once.",
        examples=["rent-2026-11"],
    ),
]

"""The gateway's own operations: health of the platform, and its documentation."""

from fastapi import APIRouter, Response
from starlette.responses import RedirectResponse

from api_gateway.health import Health, PlatformHealth
from api_gateway.openapi import ApiDocument


def health_router(health: Health) -> APIRouter:
    """`/health` of the platform."""
    router = APIRouter(tags=["health"])

    @router.get(
        "/health",
        response_model=PlatformHealth,
        responses={503: {"model": PlatformHealth, "description": "A service is down."}},
    )
    async def platform_health(response: Response) -> PlatformHealth:
        """Every service and what it depends on."""
        found = await health.get()
        response.status_code = 503 if found.status == "down" else 200
        return found

    @router.get("/health/live", include_in_schema=False)
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/health/ready", include_in_schema=False)
    async def ready() -> dict[str, str]:
        return {"status": "ok"}  # the gateway keeps nothing: once it is up it can forward

    return router


def documentation_router(document: ApiDocument) -> APIRouter:
    """`/openapi.json` of all services, and the way to the page that shows it."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def root() -> Response:
        return RedirectResponse("/docs")

    @router.get("/openapi.json")
    async def openapi() -> Response:
        return Response(await document.get(), media_type="application/json")

    return router

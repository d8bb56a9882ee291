"""Errors as `application/problem+json` (RFC 9457), and their description for OpenAPI."""

import http
import json
import logging
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from shared.errors import AppError, FieldError, UnavailableError
from shared.http.context import current_context

MEDIA_TYPE: Final = "application/problem+json"

_log = logging.getLogger(__name__)

MAX_FIELD_ERRORS: Final = 20

_ORIGINS: Final = frozenset({"body", "query", "path", "header"})
_UNION_TAGS: Final = frozenset({"deposit", "withdrawal", "transfer", "payment"})
_MESSAGES: Final = {
    "uuid_parsing": "Must be a UUID.",
    "missing": "Is required.",
    "extra_forbidden": "Is unknown here.",
}
_HTTP_CODES: Final = {404: "route_not_found", 405: "method_not_allowed"}


# RFC 9110's names, which Python's table has from 3.13 on.
_TITLES: Final = {413: "Content Too Large", 422: "Unprocessable Content"}


def title_of(status: int) -> str:
    """The name of a status, the same on every Python."""
    return _TITLES.get(status) or http.HTTPStatus(status).phrase


def problem_body(error: AppError, instance: str, request_id: str | None = None) -> bytes:
    """The problem document of `error`; `instance` is the path of the request, by default the one in hand."""
    document: dict[str, Any] = {
        "type": f"urn:payment-system:error:{error.code}",
        "title": title_of(error.status),
        "status": error.status,
        "detail": error.detail,
        "instance": instance,
        "code": error.code,
        "request_id": request_id or current_context().trace.request_id,
    }
    if error.errors:
        document["errors"] = error.errors
    return json.dumps(document | error.details, separators=(",", ":")).encode()


def problem_response(error: AppError, scope: Mapping[str, Any]) -> Response:
    """`error` as a response to the request of this ASGI scope."""
    instance = scope.get("raw_path", b"/")[:200].decode("latin-1")
    return Response(problem_body(error, instance), error.status, headers=error.headers, media_type=MEDIA_TYPE)


def install_problem_handlers(app: FastAPI) -> None:
    """Render every error of `app` as a problem document."""

    async def on_app_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, AppError)  # noqa: S101 - the registration below says so
        return problem_response(error, request.scope)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - the registration below says so
        code = _HTTP_CODES.get(error.status_code, "request_refused")
        detail = title_of(error.status_code) + "."
        app_error = AppError(code, error.status_code, detail, headers=error.headers)
        return problem_response(app_error, request.scope)

    async def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - the registration below says so
        return problem_response(validation_problem(error.errors()), request.scope)

    async def on_unexpected(request: Request, error: Exception) -> Response:
        return problem_response(unexpected_error(), request.scope)  # the edge has it in the log

    async def on_timeout(request: Request, error: Exception) -> Response:
        cause = error.__cause__ or error
        _log.warning("dependency unavailable: %s: %s: %s", error, type(cause).__name__, cause)
        return problem_response(UnavailableError(), request.scope)

    app.add_exception_handler(AppError, on_app_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    # A pool that ran dry, a server that is gone or frozen: bounded waiting, then 503, never 500.
    app.add_exception_handler(TimeoutError, on_timeout)
    app.add_exception_handler(OSError, on_timeout)
    app.add_exception_handler(Exception, on_unexpected)


def unexpected_error() -> AppError:
    """500: a fault of ours, of which nothing is told."""
    return AppError("internal_error", 500, "Something went wrong on our side.")


def validation_problem(errors: Any) -> AppError:
    """The 422 for pydantic's `errors`, naming each field and never its value."""
    found = [_field_error(error) for error in list(errors)[:MAX_FIELD_ERRORS]]
    return AppError("validation_failed", 422, "Some fields are wrong; see `errors`.", errors=found)


def _field_error(error: Any) -> FieldError:
    code, context = str(error["type"]), error.get("ctx", {})
    if code in {"union_tag_invalid", "union_tag_not_found"}:
        # pydantic repeats the tag that was sent; the tags that would do are more useful.
        field = str(context["discriminator"]).strip("'")
        tags = context.get("expected_tags", "").replace("'", "")
        return FieldError(
            field=field, code="choice_invalid", message=f"Must be one of: {tags}." if tags else "Is required."
        )
    message = _MESSAGES.get(code, str(error["msg"]))
    return FieldError(field=_field(error["loc"]), code=code, message=message)


def _field(location: tuple[int | str, ...]) -> str:
    """`('body', 'deposit', 'amount')` is the field `amount`: where it came from and union tags are no names."""
    parts = [str(part) for part in location if part not in _ORIGINS]
    if len(parts) > 1 and parts[0] in _UNION_TAGS:
        parts = parts[1:]
    return ".".join(parts)[:100] or "body"


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` for these error statuses; 400, 422 and 503 come with every operation."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": title_of(status), "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in sorted({400, *statuses, 422, 503})
    }


PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "title": "Problem",
    "description": "RFC 9457 problem document.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "code": {"type": "string", "description": "Stable, for machines.", "examples": ["insufficient_funds"]},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "code", "message"],
                "properties": {name: {"type": "string"} for name in ("field", "code", "message")},
            },
        },
    },
}

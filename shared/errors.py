"""The one error that carries its own HTTP answer."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict


class FieldError(TypedDict):
    """One wrong field: where it is, a stable code for machines, a sentence for people."""

    field: str
    code: str
    message: str


class AppError(Exception):
    """An answer other than success.

    `code` is stable snake_case, `detail` a sentence that never repeats the caller's input, `details` are typed
    members of the problem document (RFC 9457), such as `available` and `required`.
    """

    def __init__(
        self,
        code: str,
        status: int,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        **details: Any,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status = status
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})
        self.details = details


class FieldInvalidError(AppError):
    """422: one named field is wrong."""

    def __init__(self, field: str, code: str, message: str) -> None:
        super().__init__(
            "validation_failed",
            422,
            "A field is wrong; see `errors`.",
            errors=[FieldError(field=field, code=code, message=message)],
        )


class NotFoundError(AppError):
    """404 for what does not exist and for what belongs to somebody else: the same answer."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}_not_found", 404, f"There is no such {what.replace('_', ' ')}.")


class UnauthorizedError(AppError):
    """401: no token, or one that does not count."""

    def __init__(self, detail: str = "A valid access token is required.") -> None:
        super().__init__("unauthorized", 401, detail, headers={"WWW-Authenticate": "Bearer"})


class ForbiddenError(AppError):
    """403: known, but not allowed."""

    def __init__(self, detail: str = "Your role does not allow this.") -> None:
        super().__init__("forbidden", 403, detail)


class OutcomeUnknownError(AppError):
    """503: the work may have been done; only a repeat under the same idempotency key is safe."""

    def __init__(self) -> None:
        super().__init__(
            "outcome_unknown",
            503,
            "It is not known whether this was done. Repeat it only under the same Idempotency-Key, or look first.",
            headers={"Retry-After": "1"},
        )


class UnavailableError(AppError):
    """503: a dependency is out; nothing was done and the call may be repeated."""

    def __init__(self, detail: str = "The service cannot answer at the moment; try again.") -> None:
        super().__init__("unavailable", 503, detail, headers={"Retry-After": "1"})

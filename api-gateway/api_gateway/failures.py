"""What a caller hears when a service gave no answer."""

from typing import Final

from api_gateway.connection import BrokenOffError, NotSentError
from shared.errors import AppError

# What goes wrong between the gateway and a service.
FAILURES: Final = (NotSentError, BrokenOffError, TimeoutError)

_RETRY: Final = {"Retry-After": "1"}


def problem_of(failure: Exception) -> AppError:
    """The answer to a request whose service failed so; it says whether anything can have been done."""
    if isinstance(failure, NotSentError):
        return AppError(
            "service_unavailable", 503, "The service cannot be reached; nothing was done.", headers=_RETRY
        )
    if isinstance(failure, TimeoutError):
        return AppError(
            "gateway_timeout", 504, "The service did not answer in time; the outcome is unknown.", headers=_RETRY
        )
    return broken_off()


def broken_off() -> AppError:
    """502: what came of the request is not known."""
    return AppError("bad_gateway", 502, "The service broke off; the outcome is unknown.", headers=_RETRY)

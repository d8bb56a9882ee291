"""What a caller hears when a service gave no answer."""

from typing import Final

from pyreqwest.exceptions import PoolTimeoutError, PyreqwestError, RequestError

from shared.errors import AppError

# What goes wrong between the gateway and a service.
FAILURES: Final = (PyreqwestError, OSError)  # a time-out of asyncio's is an OSError too

_RETRY: Final = {"Retry-After": "1"}
# reqwest's word for what happens before anything is sent. The classes of exceptions do not tell: a connection that is
# lost later is a ConnectError too, and an answer that does not come in time a ConnectTimeoutError.
_CONNECTING: Final = "client error (Connect)"


def problem_of(failure: Exception) -> AppError:
    """The answer to a request whose service failed so; it says whether anything can have been done."""
    if _was_not_sent(failure):
        return AppError(
            "service_unavailable", 503, "The service cannot be reached; nothing was done.", headers=_RETRY
        )
    if isinstance(failure, TimeoutError):
        return AppError(
            "gateway_timeout", 504, "The service did not answer in time; the outcome is unknown.", headers=_RETRY
        )
    return broken_off()


def _was_not_sent(failure: Exception) -> bool:
    if isinstance(failure, PoolTimeoutError):
        return True
    causes = failure.details["causes"] if isinstance(failure, RequestError) else None
    return any(cause["message"] == _CONNECTING for cause in causes or ())


def broken_off() -> AppError:
    """502: what came of the request is not known."""
    return AppError("bad_gateway", 502, "The service broke off; the outcome is unknown.", headers=_RETRY)

"""The least that forwards over the gateway's own connections: how much of a difference is the client's."""

import os
import sys
from pathlib import Path

from starlette.types import Receive, Scope, Send

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "api-gateway"))

from api_gateway.pool import Pool

MAX_CONNECTIONS = 512
SECONDS = 10.0

_pool = Pool({"behind": os.environ["BARE_FORWARD_URL"]}, MAX_CONNECTIONS)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Pass each request on with its token, and its answer back, unlooked at; there are no bodies to pass on."""
    if scope["type"] == "lifespan":
        await _live(receive, send)
        return
    headers = {name.decode(): value.decode() for name, value in scope["headers"] if name == b"authorization"}
    with await _pool.send(
        "behind", scope["method"], scope["raw_path"].decode(), headers, seconds=SECONDS
    ) as response:
        body = await response.read()
    answered = [(b"content-type", response.header(b"content-type")), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": response.status, "headers": answered})
    await send({"type": "http.response.body", "body": body})


async def _live(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    _pool.close()
    await send({"type": "lifespan.shutdown.complete"})

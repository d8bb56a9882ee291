"""The least that forwards: what the gateway's own work is measured against. Served like a service."""

import os

from pyreqwest.client import Client
from starlette.types import Receive, Scope, Send

from shared.http.client import plain_client

MAX_CONNECTIONS = 512
URL = os.environ["BARE_FORWARD_URL"]

_client: Client | None = None


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Pass each request on with its token, and its answer back, unlooked at; there are no bodies to pass on."""
    if scope["type"] == "lifespan":
        await _live(receive, send)
        return
    assert _client is not None  # made at the start
    headers = {name.decode(): value.decode() for name, value in scope["headers"] if name == b"authorization"}
    request = _client.request(scope["method"], URL + scope["raw_path"].decode()).headers(headers)
    response = await request.build().send()
    body = bytes(await response.bytes())
    length = str(len(body)).encode()
    answered = [(b"content-type", response.headers["content-type"].encode()), (b"content-length", length)]
    await send({"type": "http.response.start", "status": response.status, "headers": answered})
    await send({"type": "http.response.body", "body": body})


async def _live(receive: Receive, send: Send) -> None:
    global _client
    await receive()
    _client = plain_client(MAX_CONNECTIONS)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await _client.close()
    await send({"type": "lifespan.shutdown.complete"})

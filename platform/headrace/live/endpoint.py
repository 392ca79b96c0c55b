"""The endpoint: answers HTTP with what the champion thinks of an event that is about to happen.

`POST /predict` takes the row that the application is about to insert and gives the probability, or the number, that the
learner will give it, with the version, the log position of its weights and their age. A row that the contract refuses gets
422 with the reason that quarantine would show; until the first champion has caught up the rest gets 503. It computes and
stores nothing of its own: `headrace.live.request` judges, `headrace.live.follower` answers. It knows no users: put it behind
whatever guards the application.
"""

from __future__ import annotations

import html
import json
import logging
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool

from headrace import __version__
from headrace.definition.stream import Stream
from headrace.errors import ServerError
from headrace.events import LogColumn, micros
from headrace.live.follower import Follower
from headrace.live.request import RowReader

logger = logging.getLogger(__name__)

_GRACE = 5  # seconds that running requests get at the end
_RETRY = {"Retry-After": "1"}


def serve(
    dsn: str,
    definition: Callable[[], Stream],
    columns: Sequence[LogColumn],
    key: bytes,
    host: str,
    port: int,
    stop: Callable[[], bool],
) -> None:
    """Answer until `stop` says so.

    Parameters
    ----------
    dsn, definition, columns, key
        As `Follower` takes them.
    host, port
        Where to listen; port 0 takes a free one, which the log names.

    Raises
    ------
    ServerError
        When the port cannot be had.
    """
    with listen(host, port) as sock, ThreadPoolExecutor(1, "follower") as pool:
        follower = Follower(dsn, definition, columns, key)
        stream = definition()
        application = app(follower, RowReader(stream, columns), numbers=stream.loss.regression)
        config = uvicorn.Config(
            application, log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=_GRACE
        )
        server = uvicorn.Server(config)
        following = pool.submit(follower.run, lambda: stop() or server.should_exit)
        following.add_done_callback(lambda _: setattr(server, "should_exit", True))
        where = f"[{host}]" if ":" in host else host
        logger.info("stream %s at http://%s:%d/", follower.stream, where, sock.getsockname()[1])
        try:
            server.run(sockets=[sock])
        finally:
            server.should_exit = True
        following.result()  # whatever ended it


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises
    ------
    ServerError
        When the address is taken or not ours.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ServerError(
            f"cannot listen on {host} port {port}: {reason}; end what listens there, or choose another --host or --port"
        ) from error


def app(follower: Follower, reader: RowReader, *, numbers: bool = False) -> FastAPI:
    """The HTTP application; `numbers` where labels are some."""
    api = FastAPI(title=f"headrace: {follower.stream}", version=__version__, docs_url=None, redoc_url=None)
    body = {"required": True, "content": {"application/json": {"schema": reader.schema()}}}
    page = _page(follower.stream, reader, numbers)

    @api.post("/predict", openapi_extra={"requestBody": body}, responses={422: {}, 503: {}})
    async def predict(request: Request) -> JSONResponse:
        """What the learner will give this event."""
        return await run_in_threadpool(_predict, follower, reader, await request.body(), numbers)

    @api.get("/health", responses={503: {}})
    async def health() -> JSONResponse:
        """Who answers, and how far its weights are."""
        return _health(follower)

    @api.get("/", include_in_schema=False)
    async def root() -> HTMLResponse:
        return HTMLResponse(page)

    return api


def _predict(follower: Follower, reader: RowReader, body: bytes, numbers: bool) -> JSONResponse:
    row = reader.read(body, micros(datetime.now(UTC)))
    if isinstance(row, list):
        return JSONResponse({"detail": [asdict(violation) for violation in row]}, 422)
    answer = follower.answer(row)
    if answer is None:
        return JSONResponse({"detail": follower.message}, 503, _RETRY)
    document = asdict(answer)
    prediction = document.pop("prediction")
    return JSONResponse({"prediction" if numbers else "probability": prediction, **document})


def _health(follower: Follower) -> JSONResponse:
    serving = follower.serving
    seq = None if serving is None else serving.seq
    state = {
        "ok": serving is not None,
        "stream": follower.stream,
        "version": None if serving is None else serving.version,
        "seq": seq,
        "log_seq": follower.log_seq,
        "lag": None if seq is None else max(0, follower.log_seq - seq),
        "age_seconds": None if serving is None else serving.age(datetime.now(UTC)),
        "message": follower.message,
    }
    return JSONResponse(state) if serving is not None else JSONResponse(state, 503, _RETRY)


def _page(stream: str, reader: RowReader, numbers: bool) -> str:
    """One page for people, without anything from elsewhere."""
    placeholders: dict[str, object] = {"boolean": True, "integer": 1, "number": 1.5, "string": "...", "array": ["..."]}
    example = {name: placeholders[column["type"][0]] for name, column in reader.schema()["properties"].items()}
    call = f"curl -X POST http://HOST:PORT/predict -d '{json.dumps(example)}'"
    cells = [(html.escape(c.source), html.escape(c.type_name)) for c in reader.columns]
    rows = "".join(f"<tr><td><code>{name}</code></td><td>{type_name}</td></tr>" for name, type_name in cells)
    name = html.escape(stream)
    what, unit = ("prediction", "in the label's unit") if numbers else ("probability", "in logits")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>headrace: {name}</title>'
        '<body style="font-family: sans-serif; max-width: 50em; margin: 2em auto">'
        f"<h1>{name}</h1><p>Send an event's row as JSON; a field that is left out is NULL. The answer is its "
        f"{what}, how far one more label may move it {unit} (null for models that do not say), the version that gave "
        "it, the log position (seq) of the weights and their age in seconds.</p>"
        f'<pre style="white-space: pre-wrap">{html.escape(call)}</pre><table>{rows}</table>'
        '<p><a href="/health">health</a>, <a href="/openapi.json">OpenAPI</a></p></body></html>'
    )

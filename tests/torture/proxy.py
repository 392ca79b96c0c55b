"""A proxy before a Postgres server, to do to its connections what networks do: cut, refuse, slow, half open.

It listens on a TCP port of its own and leads to the server's unix socket. All its connections live in one event loop in a
thread; the methods may be called from any other. Bytes are delayed or held back, never changed or left out: a connection
that was silent for a while ends by being cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["to server", "to client"]
_PIECE = 1 << 16


@dataclass(eq=False)
class _Link:
    """One connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    silent: set[Direction] = field(default_factory=set)
    speak: asyncio.Event = field(default_factory=asyncio.Event)

    def cut(self) -> None:
        for writer in (self.client, self.server):
            writer.transport.abort()
        self.speak.set()


class Proxy:
    """Leads `127.0.0.1:port` to a unix socket.

    Parameters
    ----------
    path
        The server's socket.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._links: set[_Link] = set()
        self._refusing = False
        self._delay, self._rate = 0.0, float("inf")
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._accept, "127.0.0.1", 0), self._loop
        ).result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def dsn(self, database: str) -> str:
        """The URI of a database behind the proxy."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}?sslmode=disable&gssencmode=disable"

    def cut(self, *, refuse: bool = False) -> int:
        """End all connections; with `refuse`, take none until `heal`. Gives how many there were."""
        return self._do(lambda: self._cut(refuse))

    def slow(self, delay: float, bytes_per_second: float) -> None:
        """Let each piece of at most 64 kB wait, in both directions, until `heal`."""
        self._do(lambda: self._set(delay, bytes_per_second))

    def silence(self, direction: Direction) -> int:
        """Hold back what the present connections send in one direction; new ones work. Gives how many there are."""
        return self._do(lambda: self._silence(direction))

    def heal(self) -> None:
        """Be a good network again; connections that were silent are cut, since they cannot know what they missed."""
        self._do(self._heal)

    def close(self) -> None:
        """End everything."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        self._cut(True)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _do(self, what: Callable[[], int]) -> int:
        async def call() -> int:
            return what()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    def _cut(self, refuse: bool) -> int:
        self._refusing = refuse
        for link in self._links:
            link.cut()
        return len(self._links)

    def _set(self, delay: float, rate: float) -> int:
        self._delay, self._rate = delay, rate
        return len(self._links)

    def _silence(self, direction: Direction) -> int:
        for link in self._links:
            link.silent.add(direction)
            link.speak.clear()
        return len(self._links)

    def _heal(self) -> int:
        self._refusing = False
        self._set(0.0, float("inf"))
        silent = [link for link in self._links if link.silent]
        for link in silent:
            link.cut()
        return len(silent)

    async def _accept(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            if self._refusing:
                raise ConnectionRefusedError
            from_server, to_server = await asyncio.open_unix_connection(self._path)
        except OSError:
            to_client.transport.abort()
            return
        link = _Link(to_client, to_server)
        self._links.add(link)
        ways = (
            self._pump(link, "to server", from_client, to_server),
            self._pump(link, "to client", from_server, to_client),
        )
        await asyncio.gather(*ways, return_exceptions=True)
        self._links.discard(link)
        for writer in (to_client, to_server):
            writer.close()

    async def _pump(
        self, link: _Link, way: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE):
                if self._delay:
                    await asyncio.sleep(self._delay + len(piece) / self._rate)
                if way in link.silent:
                    await link.speak.wait()
                writer.write(piece)
                await writer.drain()
        if way not in link.silent:  # an end is news too
            writer.close()

"""A proxy between an S3 client and its server that does to requests what networks and servers do.

It speaks enough HTTP/1.1 to know where a message ends. The Host header passes unchanged, so that the
signature, which is of the proxy's address, stays valid on a server that checks it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Request:
    """What a client asks. path: with the query; headers: by lower-case name."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def is_list(self) -> bool:
        return self.method == "GET" and "list-type=2" in self.path

    def puts(self, folder: str) -> bool:
        """Whether it writes an object of this folder."""
        return self.method == "PUT" and f"/{folder}/" in self.path

    def gets(self, folder: str) -> bool:
        """Whether it reads an object of this folder."""
        return self.method == "GET" and not self.is_list and f"/{folder}/" in self.path


@dataclass(frozen=True)
class Answer:
    """The proxy answers itself; the server sees nothing."""

    status: int
    code: str

    def data(self, method: str) -> bytes:
        body = f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>{self.code}</Message></Error>"
        head = f"HTTP/1.1 {self.status} {self.code}\r\nContent-Type: application/xml\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        return (head if method == "HEAD" else head + body).encode()


class Network(Enum):
    """What becomes of the connection."""

    RESET_UPLOAD = "reset in the middle of the request's body; the server sees half of it"
    RESET_DOWNLOAD = "reset in the middle of the answer's body"
    LOST_ANSWER = "the server does it, and the connection is reset before it can say so"
    SILENCE = "the server does it, and its answer never comes"
    STALE = "the answer is the one that the same request had before"


SLOW_DOWN = Answer(503, "SlowDown")
INTERNAL_ERROR = Answer(500, "InternalError")
EXPIRED = Answer(400, "ExpiredToken")

Fault = Answer | Network
Rule = Callable[[Request], Fault | None]


def first(count: int, fault: Fault, wanted: Callable[[Request], bool]) -> Rule:
    """A rule: the first `count` wanted requests meet the fault."""
    left = iter(range(count))
    return lambda request: fault if wanted(request) and next(left, None) is not None else None


@dataclass
class Proxy:
    """A running proxy. rule: decides each request's fate; met: the faults that it decided, in order."""

    endpoint: str
    rule: Rule = lambda request: None
    met: list[tuple[Request, Fault]] = field(default_factory=list)
    _earlier: dict[str, bytes] = field(default_factory=dict)
    """The first answer to each listing."""

    def _fate(self, request: Request) -> Fault | None:
        fault = self.rule(request)
        if fault is not None:
            self.met.append((request, fault))
        return fault

    async def serve(self, host: str, port: int, reader: Any, writer: Any) -> None:
        """One client's connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._exchange(host, port, reader, writer):
                pass
        writer.close()

    async def _exchange(self, host: str, port: int, reader: Any, writer: Any) -> bool:
        """One request and its answer; whether another may follow."""
        head = await reader.readuntil(b"\r\n\r\n")
        start, headers = _parse(head)
        method, path, _ = start.split(" ")
        request = Request(method, path, headers)
        if "expect" in headers:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _body(reader, headers)
        fault = self._fate(request)
        if isinstance(fault, Answer):
            writer.write(fault.data(method))
            await writer.drain()
            return True
        if fault is Network.STALE and path in self._earlier:
            writer.write(self._earlier[path])
            await writer.drain()
            return True
        server, sink = await asyncio.open_connection(host, port, limit=2**26)
        try:
            if fault is Network.RESET_UPLOAD:
                sink.write(head + body[: len(body) // 2])
                await sink.drain()
                _reset(writer)
                return False
            sink.write(head + body)
            answer, whole = await _answer(server, method)
        finally:
            _reset(sink)
        if request.is_list:
            self._earlier.setdefault(path, answer)
        if fault is Network.SILENCE:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(reader.read(1), 60)  # until the client gives up
            return False
        if fault is Network.RESET_DOWNLOAD:
            end = answer.index(b"\r\n\r\n") + 4
            writer.write(answer[: end + (len(answer) - end) // 2])
            await writer.drain()
            await asyncio.sleep(0.05)  # so that it arrives before the reset
        if fault in (Network.LOST_ANSWER, Network.RESET_DOWNLOAD):
            _reset(writer)
            return False
        writer.write(answer)
        await writer.drain()
        return whole


async def _answer(server: Any, method: str) -> tuple[bytes, bool]:
    """A whole answer, and whether it says where it ends."""
    while True:
        head = await server.readuntil(b"\r\n\r\n")
        start, headers = _parse(head)
        status = int(start.split(" ")[1])
        if status >= 200:
            break
    if method == "HEAD" or status in (204, 304):
        return head, True
    if "content-length" not in headers and "transfer-encoding" not in headers:
        return head + await server.read(), False
    return head + await _body(server, headers), True


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    start, *lines = head.decode("latin-1").strip().split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return start, {name.lower(): value.strip() for name, _, value in pairs}


async def _body(reader: Any, headers: dict[str, str]) -> bytes:
    """A message's body as it was sent."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return bytes(await reader.readexactly(int(headers.get("content-length", "0"))))
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        body += line
        if not size:
            while True:
                trailer = await reader.readuntil(b"\r\n")
                body += trailer
                if trailer == b"\r\n":
                    return body
        body += await reader.readexactly(size + 2)


def _reset(writer: Any) -> None:
    """Close with a TCP reset, as a machine that is gone."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.contextmanager
def proxied(endpoint: str) -> Iterator[Proxy]:
    """A proxy before the server at this URL, in a thread of its own."""
    address = urlsplit(endpoint)
    loop, ready = asyncio.new_event_loop(), threading.Event()
    proxy = Proxy("")

    async def start() -> asyncio.Server:
        async def serve(reader: Any, writer: Any) -> None:
            await proxy.serve(str(address.hostname), int(address.port or 80), reader, writer)

        return await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**26)

    def run() -> None:
        asyncio.set_event_loop(loop)
        server = loop.run_until_complete(start())
        proxy.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=run, name="proxy")
    thread.start()
    ready.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()

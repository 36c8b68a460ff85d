"""As much of HTTP/1.1 as the test server needs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit


class Closed(Exception):
    """The connection is to be closed, and nothing more to be sent."""


@dataclass(frozen=True)
class Received:
    """A request as it came; header names are in lower case."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> object:
        """The parsed JSON; another body as text.

        Raises:
            ValueError: it says that it is JSON, and is not.
        """
        if self.raw and self.headers.get("content-type", "").startswith("application/json"):
            return json.loads(self.raw)
        return self.raw.decode("latin-1")


async def receive(reader: asyncio.StreamReader) -> Received:
    """
    Raises:
        Closed: the client has gone.
    """
    try:
        line, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = line.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
    except (asyncio.IncompleteReadError, ConnectionError):
        raise Closed from None
    url = urlsplit(target)
    return Received(method, url.path, parse_qs(url.query), headers, raw)


async def send(
    writer: asyncio.StreamWriter,
    status: int,
    body: dict | bytes,
    headers: Mapping[str, str] | None = None,
    half: bool = False,
) -> None:
    """Sends a response; with `half`, one that ends in the middle of its body.

    Raises:
        Closed: the response was a half one, or the client has gone.
    """
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {
        "Content-Type": "application/octet-stream" if isinstance(body, bytes) else "application/json",
        "Content-Length": len(data),
        **(headers or {}),
    }
    head = [f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}"]
    head += [f"{name}: {value}" for name, value in given.items()]
    writer.write("\r\n".join([*head, "", ""]).encode("latin-1") + (data[: len(data) // 2] if half else data))
    try:
        await writer.drain()
    except ConnectionError:
        raise Closed from None
    if half:
        raise Closed


async def linger(reader: asyncio.StreamReader, seconds: float) -> None:
    """Waits, but no longer than the client does."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not reader.at_eof() and reader.exception() is None:
        await asyncio.sleep(min(left, 0.02))


def multipart(received: Received) -> dict[str, tuple[str, bytes]]:
    """(file name, content) by field name."""
    fields = {}
    boundary = received.headers.get("content-type", "").partition("boundary=")[2].strip('"').encode()
    for part in received.raw.split(b"--" + boundary)[1:-1] if boundary else ():
        head, _, content = part.partition(b"\r\n\r\n")
        line = next(line for line in head.decode().split("\r\n") if line.lower().startswith("content-disposition"))
        given = dict(each.strip().split("=", 1) for each in line.split(";")[1:])
        fields[given["name"].strip('"')] = given.get("filename", "").strip('"'), content.removesuffix(b"\r\n")
    return fields

"""The proxy between the nodes and the registry: `python -m tests.testbed.proxy --listen … --upstream … --control …`.

It slows down, delays and withholds as it is told over its control interface, and keeps account of what each node
got. What it may do is in `proxy_state.py`, how to tell it in `proxy_client.py`.
"""

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from tests.testbed.http11 import BODYLESS, CHUNK, BadHead, Head, read_body, read_head
from tests.testbed.proxy_state import BLOB, Hold, Request, State

CONNECT_TIMEOUT = 10.0
PEER_CHECK = 0.2
"""Seconds until it is noticed that a node has gone whose bytes are held."""
DONE = (ConnectionError, asyncio.IncompleteReadError, TimeoutError, BadHead)
"""What ends a connection and nothing else."""
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and the head of its answer, and what follows from the two."""

    head: Head
    answer: Head
    request: Request
    """Its entry in the account, which grows with the answer."""
    reader: asyncio.StreamReader
    """Of the node's connection."""

    @property
    def node(self) -> str:
        return self.request.node

    @property
    def position(self) -> int:
        """Where in the blob the next byte of the answer belongs."""
        return self.offset + self.request.bytes

    @property
    def bodyless(self) -> bool:
        return self.request.method == "HEAD" or self.request.status in BODYLESS

    @property
    def keep(self) -> bool:
        """Whether the node can tell where the answer ends without the connection's end, and wants to go on."""
        sized = self.bodyless or bool(self.answer.get("content-length"))
        return sized and self.head.get("connection").lower() != "close"

    @property
    def blob(self) -> str:
        """The digest of the blob whose bytes the answer carries, "" when it carries none."""
        match = BLOB.match(self.request.path.partition("?")[0])
        carries = self.request.method == "GET" and self.request.status in (200, 206)
        return match["digest"] if match and carries else ""

    @property
    def offset(self) -> int:
        """Where in the blob the answer begins: "bytes 5-9/100" is 5."""
        if self.request.status != 206:
            return 0
        return int(self.answer.get("content-range").removeprefix("bytes ").partition("-")[0] or 0)


def _status(answer: Head) -> int:
    return int(answer.start.split(" ")[1])


class Proxy:
    """Relays requests to one upstream."""

    def __init__(self, state: State, upstream: tuple[str, int], nodes: Path) -> None:
        self.state = state
        self.upstream = upstream
        self.nodes = nodes

    def node_of(self, address: str) -> str:
        """The node with this address, or the address itself. Read anew each time: nodes come and go."""
        try:
            known = json.loads(self.nodes.read_text())["nodes"]
        except (OSError, ValueError, KeyError):
            known = {}
        return next((name for name, node in known.items() if node["ip"] == address), address)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a node; one connection to the registry per request."""
        node = self.node_of(writer.get_extra_info("peername")[0])
        while (head := await read_head(reader)) is not None:
            if not await self._relay(node, head, reader, writer):
                return

    async def _relay(
        self, node: str, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """One request and its answer; says whether the connection can be used on."""
        for pace in self.state.pace(node):
            await asyncio.sleep(pace.delay)
        up_reader, up_writer = await asyncio.wait_for(
            asyncio.open_connection(*self.upstream, limit=CHUNK), CONNECT_TIMEOUT
        )
        try:
            if head.get("expect"):
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            chunked = "chunked" in head.get("transfer-encoding").lower()
            up_writer.write(head.without("connection", "expect").with_header("Connection", "close").encode())
            async for piece in read_body(reader, head, until_close=False):
                up_writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
                await up_writer.drain()
            if chunked:
                up_writer.write(b"0\r\n\r\n")
            answer = await read_head(up_reader)
            if answer is None:
                raise BadHead("the registry closed without an answer")
            method, path = head.start.split(" ")[:2]
            exchange = Exchange(
                head, answer, Request(node, method, path, _status(answer), head.get("range")), reader
            )
            self.state.requests.append(exchange.request)
            onward = answer.without("connection", "transfer-encoding")
            writer.write(
                onward.with_header("Connection", "keep-alive" if exchange.keep else "close").encode()
            )
            await self._answer(exchange, up_reader, writer)
            return exchange.keep
        finally:
            up_writer.close()

    async def _answer(
        self, exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """The body, paced and held, on the account of its node and blob."""
        if exchange.blob:
            self.state.delivery(exchange.node, exchange.blob).requests += 1
        if not exchange.bodyless:
            async for piece in read_body(reader, exchange.answer, until_close=True):
                step = self.state.step(exchange.node)
                for start in range(0, len(piece), step):
                    await self._send(exchange, piece[start : start + step], writer)
        await writer.drain()

    async def _send(self, exchange: Exchange, data: bytes, writer: asyncio.StreamWriter) -> None:
        """Send the next bytes of an answer, not before they are due and none that are held."""
        while exchange.blob and (hold := self.state.held(exchange.node, exchange.blob)) is not None:
            free = hold.after - exchange.position
            if free >= len(data):
                break
            if free > 0:
                await self._paced(exchange, data[:free], writer)
                data = data[free:]
            await self._wait(hold, exchange)
        await self._paced(exchange, data, writer)

    async def _wait(self, hold: Hold, exchange: Exchange) -> None:
        """Until the hold is released. asyncio does not tell a writer that its peer has gone: the reader is asked."""
        hold.waiting += 1
        try:
            while not hold.released.is_set():
                if exchange.reader.at_eof() or exchange.reader.exception() is not None:
                    raise ConnectionResetError("the node went away while its bytes were held")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(hold.released.wait(), PEER_CHECK)
        finally:
            hold.waiting -= 1

    async def _paced(self, exchange: Exchange, data: bytes, writer: asyncio.StreamWriter) -> None:
        now = asyncio.get_running_loop().time()
        wait = max(pace.wait(len(data), now) for pace in self.state.pace(exchange.node))
        if wait > 0:
            await asyncio.sleep(wait)
        if exchange.blob:
            self.state.delivery(exchange.node, exchange.blob).add(exchange.position, len(data))
        exchange.request.bytes += len(data)
        writer.write(data)
        await writer.drain()


class Control:
    """The control interface: GET /state, and POST /pace, /hold, /release, /forget with JSON."""

    def __init__(self, state: State) -> None:
        self.state = state

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request per connection."""
        head = await read_head(reader)
        if head is None:
            return
        body = b"".join([piece async for piece in read_body(reader, head, until_close=False)])
        method, target, _ = head.start.split(" ", 2)
        try:
            status, answer = "200 OK", self.do(method, target, json.loads(body or b"{}"))
        except (KeyError, TypeError, ValueError) as error:
            status, answer = (
                "400 Bad Request",
                {"error": f"{method} {target}: {type(error).__name__} {error}"},
            )
        data = json.dumps(answer).encode()
        head = Head(f"HTTP/1.1 {status}", (("Content-Length", str(len(data))), ("Connection", "close")))
        writer.write(head.encode() + data)
        await writer.drain()

    def do(self, method: str, target: str, body: dict[str, object]) -> dict[str, object]:
        """Obey one order; KeyError or ValueError for one that is not understood."""
        match method, target:
            case "GET", "/state":
                return self.state.as_json()
            case "POST", "/pace":
                rate, delay = body.get("rate"), body.get("delay")
                self.state.set_pace(
                    str(body.get("node", "")),
                    None if rate is None else float(str(rate)),
                    None if delay is None else float(str(delay)),
                )
            case "POST", "/hold":
                self.state.hold(
                    str(body["digest"]), int(str(body.get("after", 0))), str(body.get("node", ""))
                )
            case "POST", "/release":
                count = self.state.release(str(body.get("digest", "")), str(body.get("node", "")))
                return {"released": count}
            case "POST", "/forget":
                self.state.forget()
            case _:
                raise ValueError("no such order")
        return {}


def closing(handler: Handler) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """A handler whose connection ends with it, and whose peer may vanish at any time."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except DONE as error:
            print(f"{writer.get_extra_info('peername')}: {type(error).__name__} {error}", file=sys.stderr)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    return serve


async def run(
    listen: tuple[str, int], control: tuple[str, int], upstream: tuple[str, int], nodes: Path
) -> None:
    """Serve until cancelled."""
    state = State()
    proxy = await asyncio.start_server(closing(Proxy(state, upstream, nodes).serve), *listen)
    orders = await asyncio.start_server(closing(Control(state).serve), *control)
    async with proxy, orders, asyncio.TaskGroup() as tasks:
        tasks.create_task(proxy.serve_forever())
        tasks.create_task(orders.serve_forever())


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    """Entry of `python -m tests.testbed.proxy`."""
    parser = argparse.ArgumentParser(prog="python -m tests.testbed.proxy", description=__doc__)
    for flag in ("--listen", "--control", "--upstream"):
        parser.add_argument(flag, type=_address, required=True, metavar="HOST:PORT")
    parser.add_argument(
        "--nodes", type=Path, required=True, help="cluster.json: names and addresses of nodes"
    )
    arguments = parser.parse_args()
    asyncio.run(run(arguments.listen, arguments.control, arguments.upstream, arguments.nodes))


if __name__ == "__main__":
    main()

"""A TCP proxy that can be told to misbehave: `python proxy.py`, commands on standard input, a JSON object a line.

    {"listen": 4001, "to": 1883, "name": "mqtt"}       once for each address, before "start"
    {"start": true}                                    answers {"ready": true} when all listen
    {"name": "mqtt", "mode": "delay", "delay_s": 0.2}  pass, delay or blackhole: for what comes from now on;
                                                       answers {"connections": 2, "held_bytes": 0}: bytes held
                                                       back since the last such command
    {"name": "mqtt", "cut": true}                      reset every connection; new ones work; answers {"cut": 2}

A process of its own, so that a busy harness does not slow the traffic, and it
ends when its standard input does, so it cannot outlive whoever started it. Own
code, because the kernel's netem is not compiled into many small machines'
kernels and Toxiproxy is a Go program that no Python package brings. Loopback
only. Blackhole keeps connections and forwards nothing, as a lost link does; cut
resets, as a killed peer does: clients fail differently, and both are wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import sys
from collections import defaultdict
from typing import Any

CHUNK_BYTES = 256 * 1024
QUEUED_CHUNKS = 64
HOST = "127.0.0.1"


class Link:
    """One upstream: where to listen, where to connect, and how it behaves now."""

    def __init__(self, name: str, listen: int, to: int) -> None:
        self.name, self.listen, self.to = name, listen, to
        self.delay_s = 0.0
        self.held_bytes = 0
        self.open = asyncio.Event()
        self.open.set()
        self._writers: set[asyncio.StreamWriter] = set()

    def behave(self, mode: str, delay_s: float) -> None:
        """Pass, delay or blackhole what comes from now on."""
        self.delay_s = delay_s if mode == "delay" else 0.0
        self.held_bytes = 0
        if mode == "blackhole":
            self.open.clear()
        else:
            self.open.set()

    @property
    def connections(self) -> int:
        """How many clients are connected to the upstream."""
        return len(self._writers) // 2

    def cut(self) -> int:
        """Reset every connection and return how many there were."""
        count = self.connections
        for writer in list(self._writers):
            raw = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        return count

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one client's connection."""
        self._writers.add(writer)
        out: asyncio.StreamWriter | None = None
        try:
            await self.open.wait()
            answer, out = await asyncio.open_connection(HOST, self.to, limit=CHUNK_BYTES)
            self._writers.add(out)
            for each in (writer, out):
                each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pumps = [asyncio.create_task(self._pump(reader, out)), asyncio.create_task(self._pump(answer, writer))]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
        except OSError:
            pass  # the upstream is dead: the client sees a closed connection, as it would without us
        finally:
            for each in filter(None, (writer, out)):
                self._writers.discard(each)
                each.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Move bytes one way, each chunk as late as the link says when it arrives."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED_CHUNKS)

        async def deliver() -> None:
            while True:
                due, chunk = await queue.get()
                if due > loop.time() or not self.open.is_set():
                    self.held_bytes += len(chunk)
                if due > loop.time():
                    await asyncio.sleep(due - loop.time())
                await self.open.wait()
                if not chunk:
                    return
                writer.write(chunk)
                await writer.drain()

        delivery = asyncio.create_task(deliver())
        try:
            with contextlib.suppress(OSError):
                while chunk := await reader.read(CHUNK_BYTES):
                    await queue.put((loop.time() + self.delay_s, chunk))
                await queue.put((loop.time() + self.delay_s, b""))
                await delivery
        finally:
            delivery.cancel()


async def main() -> None:
    """Obey standard input until it ends."""
    links: dict[str, list[Link]] = defaultdict(list)
    servers: list[asyncio.Server] = []
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        command: dict[str, Any] = json.loads(line)
        answer: dict[str, Any] = {}
        if "listen" in command:
            link = Link(command["name"], command["listen"], command["to"])
            links[link.name].append(link)
        elif "start" in command:
            every = [link for group in links.values() for link in group]
            servers = [await asyncio.start_server(link.serve, HOST, link.listen, limit=CHUNK_BYTES) for link in every]
            answer["ready"] = len(servers) == len(every)
        elif command.get("cut"):
            answer["cut"] = sum(link.cut() for link in links[command["name"]])
        else:
            group = links[command["name"]]
            answer = {"connections": sum(link.connections for link in group), "held_bytes": sum(link.held_bytes for link in group)}
            for link in group:
                link.behave(command["mode"], float(command.get("delay_s", 0.0)))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    # At once: connections that are still open would be wound up one by one, and complain that there is no loop any more.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())

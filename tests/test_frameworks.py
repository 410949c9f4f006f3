"""Connections of the frameworks that people use, each run for real: uvloop, aiohttp, Twisted, trio, anyio."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from importlib.util import find_spec

import pytest
from peers import call

import peercred
from peercred import messages


def own():
    return os.getpid(), os.geteuid(), os.getegid()


def needs(name):
    return pytest.mark.skipif(find_spec(name) is None, reason=f"needs {name}, of the group dev")


def ids(conn):
    cred = peercred.read(conn)
    return cred.pid, cred.uid, cred.gid


@needs("uvloop")
def test_uvloop(place):
    """uvloop's StreamWriter and transport, and the same once closed."""
    import uvloop

    async def main():
        async def serve(reader, writer):
            answers.extend([ids(writer), ids(writer.transport)])
            writer.close()
            await writer.wait_closed()

        answers = []
        async with await asyncio.start_unix_server(serve, str(place / "socket")):
            reader, writer = await asyncio.open_unix_connection(str(place / "socket"))
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            with pytest.raises(OSError, match="connected Unix socket"):
                peercred.read(writer)
        return answers

    def run():  # in a process of its own: libuv keeps descriptors until the process ends
        assert uvloop.new_event_loop().run_until_complete(main()) == [own(), own()]

    call(run)


@needs("aiohttp")
def test_aiohttp(place):
    """aiohttp's request.transport."""
    from aiohttp import ClientSession, UnixConnector, web

    async def main():
        async def handler(request):
            return web.json_response(ids(request.transport))

        application = web.Application()
        application.router.add_get("/", handler)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.UnixSite(runner, str(place / "socket")).start()
        connector = UnixConnector(str(place / "socket"))
        try:
            async with ClientSession(connector=connector) as session, session.get("http://localhost/") as response:
                return await response.json()
        finally:
            await runner.cleanup()

    assert asyncio.run(main()) == list(own())


@needs("twisted")
def test_twisted(place):
    """The transport of a Twisted protocol."""
    from twisted.internet import endpoints, protocol
    from twisted.internet.selectreactor import SelectReactor

    def run():  # in a process of its own: a reactor keeps descriptors until the process ends
        reactor = SelectReactor()
        answers = []

        class Server(protocol.Protocol):
            def connectionMade(self):  # noqa: N802
                answers.append(ids(self.transport))
                self.transport.loseConnection()

        class Client(protocol.Protocol):
            def connectionLost(self, reason):  # noqa: N802
                reactor.stop()

        def start():
            endpoints.UNIXServerEndpoint(reactor, str(place / "socket")).listen(protocol.Factory.forProtocol(Server))
            endpoints.connectProtocol(endpoints.UNIXClientEndpoint(reactor, str(place / "socket")), Client())

        reactor.callWhenRunning(start)
        reactor.run(installSignalHandlers=False)
        assert answers == [own()]

    call(run)


@needs("trio")
def test_trio(pair):
    """A trio socket, and the remedy for a trio stream."""
    import trio

    async def main():
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(pair[0].dup()))
        async with stream:
            with pytest.raises(TypeError, match=r"stream\.socket"):
                peercred.read(stream)
            return ids(stream.socket)

    assert trio.run(main) == own()


@needs("anyio")
@pytest.mark.parametrize("backend", ["asyncio", pytest.param("trio", marks=needs("trio"))])
def test_anyio(place, backend):
    """The raw socket of an anyio stream, and the remedy for the stream itself."""
    import anyio
    from anyio.abc import SocketAttribute

    async def main():
        async with (
            await anyio.create_unix_listener(place / "socket"),
            await anyio.connect_unix(place / "socket") as stream,
        ):
            with pytest.raises(TypeError, match=r"SocketAttribute\.raw_socket"):
                peercred.read(stream)
            return ids(stream.extra(SocketAttribute.raw_socket))

    assert anyio.run(main, backend=backend) == own()


def test_socketserver(place):
    """The standard library's own server: the request is a socket."""
    import socketserver
    import threading

    answers = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            answers.append(ids(self.request))

    with socketserver.UnixStreamServer(str(place / "socket"), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(place / "socket"))
            thread.join()
    assert answers == [own()]


def test_messages_with_asyncio(datagrams):
    """peercred.messages in asyncio: a socket that does not block, and loop.add_reader."""
    receiver, sender = datagrams
    receiver.setblocking(False)

    async def main():
        def readable():
            with contextlib.suppress(BlockingIOError):  # woken for nothing
                got.set_result(messages.receive(receiver, 4096))

        loop = asyncio.get_running_loop()
        got = loop.create_future()
        loop.add_reader(receiver, readable)
        try:
            readable()
            assert not got.done()
            messages.send(sender, b"x")
            return await got
        finally:
            loop.remove_reader(receiver)

    assert asyncio.run(main()).cred == peercred.Cred(*own())


@needs("trio")
def test_messages_with_trio(datagrams):
    """peercred.messages in trio: the standard library's socket, and trio.lowlevel.wait_readable."""
    import trio

    receiver, sender = datagrams
    receiver.setblocking(False)

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.lowlevel.wait_readable(receiver)
            assert messages.receive(receiver, 4096).cred == peercred.Cred(*own())
        with pytest.raises(TypeError, match=r"trio\.lowlevel\.wait_readable"):
            messages.receive(trio.socket.from_stdlib_socket(receiver), 4096)

    async def send():
        await trio.lowlevel.wait_writable(sender)
        messages.send(sender, b"x")

    trio.run(main)


@needs("anyio")
@pytest.mark.parametrize("backend", ["asyncio", pytest.param("trio", marks=needs("trio"))])
def test_messages_with_anyio(datagrams, backend):
    """peercred.messages in anyio: the standard library's socket, and anyio.wait_readable."""
    import anyio

    receiver, sender = datagrams
    receiver.setblocking(False)

    async def main():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await anyio.wait_readable(receiver)
            assert messages.receive(receiver, 4096).cred == peercred.Cred(*own())

    async def send():
        await anyio.wait_writable(sender)
        messages.send(sender, b"x")

    anyio.run(main, backend=backend)

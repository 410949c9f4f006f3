"""Connections of asyncio, uvloop, trio and anyio, and of the servers that are
built on event loops.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from peers import needs_root
from servers import (
    DEADLINE,
    SOCKET,
    UIDS,
    as_client,
    assert_names,
    handed,
    lines,
    needs,
    running,
    secure_lines,
    web,
    websocket,
)

import peercred

LOOPS = ["asyncio", pytest.param("uvloop", marks=needs("uvloop"))]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_streams(place, loop, tls):
    """A StreamWriter and its transport, with asyncio and uvloop, over
    TLS too.
    """
    context = "tls(server=True)" if tls else None
    program = f"""
        import {loop}

        async def serve(reader, writer):
            while line := await reader.readline():
                assert who(writer) == who(writer.transport)
                writer.write(who(writer).encode() + b"\\n")
            writer.close()

        async def main():
            async with await asyncio.start_unix_server(serve, "app.sock", ssl={context}) as server:
                await server.serve_forever()

        with asyncio.Runner(loop_factory={loop}.new_event_loop) as runner:
            runner.run(main())
    """
    with running(place, program):
        assert_names(place / SOCKET, secure_lines if tls else lines)


@pytest.mark.parametrize("loop", LOOPS)
def test_protocol(place, loop):
    """The transport that a protocol's connection_made is given."""
    program = f"""
        import {loop}

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport
                self.answer = who(transport).encode() + b"\\n"

            def data_received(self, data):
                self.transport.write(self.answer)

        async def main():
            server = await asyncio.get_running_loop().create_unix_server(Protocol, "app.sock")
            await server.serve_forever()

        with asyncio.Runner(loop_factory={loop}.new_event_loop) as runner:
            runner.run(main())
    """
    with running(place, program):
        assert_names(place / SOCKET, lines)


AIOHTTP = """
    from aiohttp import WSMsgType, web

    async def view(request):
        return web.Response(text=who(request))

    async def chat(request):
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            assert who(ws) == who(request)
            await ws.send_str(who(ws))
        return ws

    async def hold(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.Event().wait()

    app = web.Application()
    app.router.add_get("/hold", hold)
    app.router.add_get("/", view)
    app.router.add_get("/ws", chat)
    web.run_app(app, path="app.sock", print=None, handler_cancellation=True)
"""


@needs("aiohttp", "websockets")
@pytest.mark.parametrize("client", [web(), websocket], ids=["http", "websocket"])
def test_aiohttp(place, client):
    """aiohttp's request, and its WebSocketResponse."""
    handed("request")
    handed("ws")
    with running(place, AIOHTTP):
        assert_names(place / SOCKET, client)


@needs("aiohttp")
def test_aiohttp_client(place):
    """In aiohttp's client, a response leads to the server.

    It does so until its body has arrived.
    """
    from aiohttp import ClientSession, UnixConnector

    async def main():
        async with (
            ClientSession(connector=UnixConnector(str(place / SOCKET))) as session,
            session.get("http://localhost/hold") as response,
        ):
            return eval(f"peercred.read({handed('response.connection.transport')})", globals(), {"response": response})

    with running(place, AIOHTTP) as server:
        assert asyncio.run(asyncio.wait_for(main(), DEADLINE)).pid == server.pid


@needs("asyncssh")
@pytest.mark.parametrize("conn", ["process", "conn"])
def test_asyncssh(place, conn):
    """The process and the connection of an asyncssh server."""
    program = """
        import asyncssh

        class Server(asyncssh.SSHServer):
            def begin_auth(self, username):
                return False

        async def serve(process):
            conn = process.channel.get_connection()
            process.stdout.write(who(CONN))
            process.exit(0)

        async def main():
            server = socket.socket(socket.AF_UNIX)
            server.bind("app.sock")
            acceptor = await asyncssh.listen(
                sock=server, server_factory=Server, process_factory=serve,
                server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            )
            await acceptor.wait_closed()

        asyncio.run(main())
    """

    @contextlib.contextmanager
    def client(dial):
        import asyncssh

        async def enter():
            options = {"known_hosts": None, "config": None, "username": "x", "client_keys": None, "agent_path": None}
            return await asyncssh.connect(sock=dial(), **options)

        async def leave():
            connection.close()
            await connection.wait_closed()

        with asyncio.Runner() as runner:
            connection = runner.run(enter())
            yield lambda: runner.run(connection.run(check=True)).stdout
            runner.run(leave())

    with running(place, program, conn=conn):
        assert_names(place / SOCKET, client)


@needs("trio")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_trio(place, tls):
    """The socket of a trio stream, and of the stream below one with TLS."""
    program = f"""
        import contextlib, trio

        async def serve(stream):
            if {tls}:
                stream = trio.SSLStream(stream, tls(server=True), server_side=True)
            with contextlib.suppress(trio.BrokenResourceError):  # who connects and leaves, before TLS has begun
                async for chunk in stream:
                    await stream.send_all(who(CONN).encode() + b"\\n")

        async def main():
            server = trio.socket.socket(socket.AF_UNIX)
            await server.bind("app.sock")
            server.listen()
            await trio.serve_listeners(serve, [trio.SocketListener(server)])

        trio.run(main)
    """
    with running(place, program, conn="stream.transport_stream.socket" if tls else "stream.socket"):
        assert_names(place / SOCKET, secure_lines if tls else lines)


@needs("anyio")
@pytest.mark.parametrize("backend", ["asyncio", pytest.param("trio", marks=needs("trio"))])
def test_anyio(place, backend):
    """The raw socket of an anyio stream, on either backend."""
    program = f"""
        import anyio
        from anyio.abc import SocketAttribute

        async def serve(stream):
            async for chunk in stream:
                await stream.send(who(CONN).encode() + b"\\n")

        async def main():
            await (await anyio.create_unix_listener("app.sock")).serve(serve)

        anyio.run(main, backend="{backend}")
    """
    with running(place, program, conn="stream.extra(SocketAttribute.raw_socket)"):
        assert_names(place / SOCKET, lines)


@needs("trio", "anyio")
def test_streams_of_trio_and_anyio_are_not_connections(pair):
    """The streams themselves are a TypeError that leads to the README."""
    import anyio
    import trio

    async def of_trio():
        async with trio.SocketStream(trio.socket.from_stdlib_socket(pair[0].dup())) as stream:
            peercred.read(stream)

    async def of_anyio():
        async with await anyio.abc.SocketStream.from_socket(pair[0].dup()) as stream:
            peercred.read(stream)

    for run, main in ((trio.run, of_trio), (anyio.run, of_anyio)):
        with pytest.raises(TypeError, match=r"Where is the connection\?"):
            run(main)


@needs("twisted")
def test_twisted(place):
    """The transport of a Twisted protocol."""
    program = """
        from twisted.internet import protocol, reactor
        from twisted.protocols.basic import LineOnlyReceiver

        class Server(LineOnlyReceiver):
            delimiter = b"\\n"

            def lineReceived(self, line):
                self.sendLine(who(CONN).encode())

        reactor.listenUNIX("app.sock", protocol.Factory.forProtocol(Server))
        reactor.run()
    """
    with running(place, program, conn="self.transport"):
        assert_names(place / SOCKET, lines)


@needs("twisted")
def test_twisted_web(place):
    """The transport of a request in twisted.web."""
    program = """
        from twisted.internet import reactor
        from twisted.web import resource, server

        class Page(resource.Resource):
            isLeaf = True

            def render_GET(self, request):
                return who(CONN).encode()

        reactor.listenUNIX("app.sock", server.Site(Page()))
        reactor.run()
    """
    with running(place, program, conn="request.transport"):
        assert_names(place / SOCKET, web())


@needs("sanic")
@pytest.mark.parametrize("workers", [1, 2])
def test_sanic(place, workers):
    """The transport of Sanic's request, in one process and in workers."""
    program = f"""
        from sanic import Sanic, text

        app = Sanic("who")

        @app.get("/")
        async def view(request):
            return text(who(CONN))

        @app.after_server_start
        async def ready(app):
            open(f"ready.{{os.getpid()}}", "x").close()

        if __name__ == "__main__":
            app.run(unix="app.sock", workers={workers}, single_process={workers == 1}, motd=False)
    """

    def ready():  # until then, a socket that nobody accepts from, or of another worker, may have the name
        return len(list(place.glob("ready.*"))) == workers

    with running(place, program, conn="request.transport", ready=ready):
        assert_names(place / SOCKET, web())


WEBSOCKETS = {
    "asyncio": """
        from websockets.asyncio.server import unix_serve

        async def serve(ws):
            async for message in ws:
                await ws.send(who(CONN))

        async def main():
            async with unix_serve(serve, "app.sock"HOOK) as server:
                await server.serve_forever()

        asyncio.run(main())
    """,
    "threads": """
        from websockets.sync.server import unix_serve

        def serve(ws):
            for message in ws:
                ws.send(who(CONN))

        with unix_serve(serve, "app.sock"HOOK) as server:
            server.serve_forever()
    """,
}
WEBSOCKETS_CONN = [("asyncio", "ws.transport"), ("threads", "ws.socket")]


@needs("websockets")
@pytest.mark.parametrize(("kind", "conn"), WEBSOCKETS_CONN)
def test_websockets(place, kind, conn):
    """The connection of websockets, with asyncio and with threads."""
    with running(place, WEBSOCKETS[kind].replace("HOOK", ""), conn=conn):
        assert_names(place / SOCKET, websocket)


@needs("websockets")
@needs_root
@pytest.mark.parametrize(("kind", "conn"), WEBSOCKETS_CONN)
def test_websockets_refuses_in_process_request(place, kind, conn):
    """process_request answers 403 instead of opening the WebSocket."""
    hook = f"""
        allowed = peercred.AllowList(uids={{{UIDS[1]}}})

        def check(ws, request):
            try:
                allowed.require(CONN)
            except OSError:
                return ws.respond(403, "not you")
    """

    def client(dial):
        from websockets.exceptions import InvalidStatus

        try:
            with websocket(dial) as ask:
                return ask()
        except InvalidStatus as error:
            return error.response.status_code

    program = hook + WEBSOCKETS[kind].replace("HOOK", f", {handed('process_request')}=check")
    with running(place, program, conn=conn):
        assert as_client(place / SOCKET, client, UIDS[0]) == 403
        assert str(UIDS[1]) in as_client(place / SOCKET, client, UIDS[1]).split()


@needs("aiosmtpd")
def test_aiosmtpd(place):
    """The transport of the server that a hook of aiosmtpd is given."""
    program = """
        import threading
        from aiosmtpd.controller import UnixSocketController

        class Handler:
            async def handle_NOOP(self, server, session, envelope, arg):
                return "250 " + who(CONN)

        UnixSocketController(Handler(), "app.sock").start()
        threading.Event().wait()
    """

    @contextlib.contextmanager
    def client(dial):
        with dial() as sock, sock.makefile() as file:

            def ask():
                sock.send(b"NOOP\r\n")
                code, _, answer = file.readline().rstrip().partition(" ")
                assert code == "250"
                return answer

            assert file.readline().startswith("220 ")
            yield ask

    with running(place, program, conn="server.transport"):
        assert_names(place / SOCKET, client)


@needs("tornado", "websockets")
@pytest.mark.parametrize("client", [web(), websocket], ids=["http", "websocket"])
def test_tornado(place, client):
    """The socket of Tornado's request, and for a WebSocket in prepare()."""
    program = """
        from tornado.httpserver import HTTPServer
        from tornado.netutil import bind_unix_socket
        from tornado.web import Application, RequestHandler
        from tornado.websocket import WebSocketHandler

        class Page(RequestHandler):
            def get(self):
                self.write(who(CONN))

        class Chat(WebSocketHandler):
            def prepare(self):
                self.who = who(CONN)

            def on_message(self, message):
                self.write_message(self.who)

        async def main():
            server = HTTPServer(Application([("/", Page), ("/ws", Chat)]))
            server.add_socket(bind_unix_socket("app.sock", 0o666))
            await asyncio.Event().wait()

        asyncio.run(main())
    """
    handed("prepare()")
    with running(place, program, conn="self.request.connection.stream.socket"):
        assert_names(place / SOCKET, client)

"""Servers of the standard library, and of remote procedure calls, that show the
connection itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
from peers import Child, needs_root
from readme import README, example
from servers import (
    DEADLINE,
    PRELUDE,
    ROOT,
    SOCKET,
    UIDS,
    Dial,
    as_client,
    assert_names,
    handed,
    is_refused,
    lines,
    needs,
    running,
    secure_lines,
    web,
)


def test_socketserver(place):
    """A request of socketserver is the socket, in a thread of its own."""
    program = """
        import socketserver

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                for line in self.rfile:
                    self.wfile.write(who(CONN).encode() + b"\\n")

        socketserver.ThreadingUnixStreamServer("app.sock", Handler).serve_forever()
    """
    with running(place, program, conn="self.request"):
        assert_names(place / SOCKET, lines)


@needs_root
def test_socketserver_refuses_in_verify_request(place):
    """What verify_request refuses is closed before a handler is made."""
    program = f"""
        import socketserver
        allowed = peercred.AllowList(uids={{{UIDS[1]}}})

        class Server(socketserver.ThreadingUnixStreamServer):
            def verify_request(self, request, client_address):
                try:
                    allowed.require(request)
                except OSError:
                    return False
                return True

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                self.wfile.write(b"in")

        Server("app.sock", Handler).serve_forever()
    """
    handed("verify_request")
    with running(place, program):
        assert as_client(place / SOCKET, is_refused, UIDS[0])
        assert not as_client(place / SOCKET, is_refused, UIDS[1])


def test_http_server(place):
    """A handler of http.server has the socket.

    To write its log, it needs an address_string of its own.
    """
    program = """
        import http.server, socketserver

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def address_string(self):
                return who(CONN)

            def do_GET(self):
                body = self.address_string().encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        socketserver.ThreadingUnixStreamServer("app.sock", Handler).serve_forever()
    """
    handed("address_string")
    with running(place, program, conn="self.connection"):
        assert_names(place / SOCKET, web())


def test_multiprocessing(place):
    """What a multiprocessing Listener accepts is a connection."""
    program = """
        import threading
        from multiprocessing.connection import Listener

        def serve(connection):
            while connection.recv() == "who":
                connection.send(who(connection))

        with Listener("app.sock", "AF_UNIX") as listener:
            while True:
                threading.Thread(target=serve, args=[listener.accept()], daemon=True).start()
    """

    @contextlib.contextmanager
    def client(dial):
        from multiprocessing.connection import Connection

        sock = dial()
        sock.settimeout(None)
        with Connection(sock.detach()) as connection:
            yield lambda: (connection.send("who"), connection.recv())[1]

    with running(place, program):
        assert_names(place / SOCKET, client)


def test_ssl(place):
    """An SSLSocket is the connection below it."""
    program = """
        import threading

        def serve(conn):
            with tls(server=True).wrap_socket(conn, server_side=True) as secure, secure.makefile("rw") as file:
                for line in file:
                    print(who(secure), file=file, flush=True)

        with socket.socket(socket.AF_UNIX) as server:
            server.bind("app.sock")
            server.listen()
            while True:
                threading.Thread(target=serve, args=[server.accept()[0]], daemon=True).start()
    """
    with running(place, program):
        assert_names(place / SOCKET, secure_lines)


@pytest.fixture
def activated(place):
    """Starts a program as systemd or inetd would, and ends it.

    The socket is its descriptor 3 or 0.
    """

    @contextlib.contextmanager
    def start(sock, descriptor, body):
        program = f"import os; os.dup2({sock.fileno()}, {descriptor})\n{PRELUDE}{body}"
        process = subprocess.Popen([sys.executable, "-c", program], cwd=place, pass_fds=[sock.fileno()])
        try:
            yield
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()

    return start


@pytest.fixture
def listener(place):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(place / SOCKET))
        os.chmod(place / SOCKET, 0o666)
        sock.listen()
        yield sock


def test_systemd_socket(place, listener, activated):
    """Descriptor 3 is the listening socket, if the unit says Accept=no.

    What it accepts is the connection.
    """
    body = f"""
import threading
def serve(conn):
    for line in conn.makefile():
        conn.send(who(conn).encode() + b"\\n")
server = {handed("socket.socket(fileno=3)")}
while True:
    threading.Thread(target=serve, args=[server.accept()[0]], daemon=True).start()
"""
    with activated(listener, 3, body):
        assert_names(place / SOCKET, lines)


@pytest.mark.parametrize(
    ("descriptor", "conn"), [(3, "socket.socket(fileno=3)"), (0, "0")], ids=["systemd, Accept=yes", "inetd"]
)
def test_one_connection(place, listener, activated, descriptor, conn):
    """A program that is started for one connection has it as descriptor.

    It is 3 from systemd, and 0 from inetd.
    """

    def client(dial):
        with dial() as sock, sock.makefile() as file:
            return os.getpid(), file.read()

    listener.settimeout(DEADLINE)
    body = f"conn = {handed(conn)}; os.write({descriptor}, who(conn).encode())"
    with (
        Child(lambda: client(Dial(place / SOCKET, UIDS[0]))) as peer,
        listener.accept()[0] as accepted,
        activated(accepted, descriptor, body),
    ):
        accepted.close()
        pid, answer = peer.result()
        assert answer == f"{pid} {UIDS[0]} {UIDS[0] if ROOT else os.getegid()}"


@pytest.mark.skipif(shutil.which("nc") is None, reason="needs nc, of netcat-openbsd")
def test_nc(place):
    """README's first server, and the command to try it."""
    assert "`nc -U door.sock`" in README
    with running(place, example("server.accept()"), name="door.sock"):
        answer = subprocess.check_output(
            ["nc", "-U", "door.sock"], cwd=place, stdin=subprocess.DEVNULL, timeout=DEADLINE
        )
    assert answer == b"welcome, %d\n" % os.geteuid()


@needs("rpyc")
def test_rpyc(place):
    """The conn of an RPyC service's on_connect."""
    program = """
        import rpyc
        from rpyc.utils.server import ThreadedServer

        class Service(rpyc.Service):
            def on_connect(self, conn):
                self.conn = conn

            def exposed_who(self):
                return who(self.conn)

        ThreadedServer(Service, socket_path="app.sock").start()
    """

    @contextlib.contextmanager
    def client(dial):
        from rpyc.core.stream import SocketStream
        from rpyc.utils.factory import connect_stream

        with contextlib.closing(connect_stream(SocketStream(dial()))) as connection:
            yield lambda: str(connection.root.who())

    with running(place, program):
        assert_names(place / SOCKET, client)


PYRO = """
    import Pyro5.api
    from Pyro5.api import current_context

    @Pyro5.api.expose
    class Service:
        def who(self):
            return who(CONN)
"""


def pyro_proxy(dial):
    import Pyro5.api

    proxy = Pyro5.api.Proxy(f"PYRO:service@./u:{dial.path}")
    proxy._pyroTimeout = DEADLINE
    with dial.user():
        proxy._pyroBind()
    return proxy


@needs("Pyro5")
@pytest.mark.parametrize("kind", ["thread", "multiplex"])
def test_pyro5(place, kind):
    """Pyro5's current_context.client, in a method that is called."""
    program = f"""{PYRO}
    Pyro5.config.SERVERTYPE = "{kind}"
    daemon = Pyro5.api.Daemon(unixsocket="app.sock")
    daemon.register(Service, "service")
    daemon.requestLoop()
    """

    @contextlib.contextmanager
    def client(dial):
        with pyro_proxy(dial) as proxy:
            yield proxy.who

    with running(place, program, conn="current_context.client"):
        assert_names(place / SOCKET, client)


@needs("Pyro5")
@needs_root
def test_pyro5_refuses_in_validate_handshake(place):
    """What validateHandshake raises ends the connection.

    Nothing can be called before.
    """
    program = f"""{PYRO}
    allowed = peercred.AllowList(uids={{{UIDS[1]}}})

    class Daemon(Pyro5.api.Daemon):
        def validateHandshake(self, conn, data):
            allowed.require(conn)
            return super().validateHandshake(conn, data)

    daemon = Daemon(unixsocket="app.sock")
    daemon.register(Service, "service")
    daemon.requestLoop()
    """

    def client(dial):
        import Pyro5.errors

        try:
            with pyro_proxy(dial) as proxy:
                return proxy.who()
        except Pyro5.errors.CommunicationError as error:
            return str(error)

    handed("validateHandshake")
    with running(place, program, conn="current_context.client"):
        assert "not on the allow-list" in as_client(place / SOCKET, client, UIDS[0])
        assert str(UIDS[1]) in as_client(place / SOCKET, client, UIDS[1]).split()


@needs("jsonrpcserver")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jsonrpcserver")
def test_jsonrpcserver(place):
    """jsonrpcserver hands its context= to the method, in any server."""
    program = """
        import socketserver
        from jsonrpcserver import Success, dispatch, method

        @method
        def ask(conn):
            return Success(who(conn))

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                for line in self.rfile:
                    self.wfile.write(dispatch(line.decode(), context=self.request).encode() + b"\\n")

        socketserver.ThreadingUnixStreamServer("app.sock", Handler).serve_forever()
    """

    @contextlib.contextmanager
    def client(dial):
        with dial() as sock, sock.makefile("rw") as file:

            def ask():
                print(json.dumps({"jsonrpc": "2.0", "method": "ask", "id": 1}), file=file, flush=True)
                return json.loads(file.readline())["result"]

            yield ask

    handed("context=")
    with running(place, program):
        assert_names(place / SOCKET, client)


@needs("varlink")
def test_varlink(place):
    """varlink hands its connection to a method with a parameter _request."""
    program = """
        import varlink
        service = varlink.Service(vendor="tests", product="tests", version="1", url="", interface_dir=".")

        @service.interface("org.example.who")
        class Who:
            def Who(self, _request=None):
                return {"who": who(CONN)}

        class Handler(varlink.RequestHandler):
            service = service

        varlink.ThreadingServer("unix:app.sock", Handler).serve_forever()
    """

    @contextlib.contextmanager
    def client(dial):
        with dial() as sock, sock.makefile("rb") as file:

            def ask():
                sock.sendall(b'{"method": "org.example.who.Who"}\0')
                reply = b""
                while not reply.endswith(b"\0"):
                    reply += file.read(1)
                return json.loads(reply[:-1])["parameters"]["who"]

            yield ask

    (place / "org.example.who.varlink").write_text("interface org.example.who\nmethod Who() -> (who: string)\n")
    with running(place, program, conn="_request"):
        assert_names(place / SOCKET, client)


@needs("thrift")
@needs_root
def test_thrift_refuses_in_accept(place):
    """A TServerSocket's accept() returns nothing for who is not on the list.

    The handle of its TSocket is the socket.
    """
    program = f"""
        from thrift.protocol.TBinaryProtocol import TBinaryProtocolFactory
        from thrift.server.TServer import TThreadedServer
        from thrift.transport.TSocket import TServerSocket
        from thrift.transport.TTransport import TBufferedTransportFactory
        allowed = peercred.AllowList(uids={{{UIDS[1]}}})

        class ServerSocket(TServerSocket):
            def accept(self):
                client = super().accept()
                try:
                    allowed.require(client.handle)
                except OSError:
                    client.close()
                    return None
                return client

        class Processor:
            def process(self, iprot, oprot):
                oprot.writeString(iprot.readString() + " is in")
                oprot.trans.flush()

        server = ServerSocket(unix_socket="app.sock")
        TThreadedServer(Processor(), server, TBufferedTransportFactory(), TBinaryProtocolFactory()).serve()
    """

    def client(dial):
        word = len(b"who").to_bytes(4, "big") + b"who"
        with dial() as sock:
            sock.sendall(word)
            return sock.recv(100)[4:]

    handed("TServerSocket.accept")
    with running(place, program):
        assert as_client(place / SOCKET, is_refused, UIDS[0])
        assert as_client(place / SOCKET, client, UIDS[1]) == b"who is in"

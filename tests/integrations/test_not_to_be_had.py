"""Where README says that there is no connection to pass: what the program sees,
or lets in, instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest
from peers import needs_root
from servers import (
    DEADLINE,
    SOCKET,
    UIDS,
    accepts,
    as_client,
    end,
    handed,
    needs,
    running,
    wait_until,
    web,
)


@needs("gunicorn")
@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
def test_behind_nginx_the_peer_is_nginx(place):
    """A client of a proxy is told who the proxy is."""
    program = """
        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [who(environ["gunicorn.socket"]).encode()]
    """
    config = f"""
        daemon off; master_process off; pid nginx.pid; error_log stderr;
        events {{}}
        http {{
            access_log off;
            client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
            server {{ listen unix:{place}/front.sock; location / {{ proxy_pass http://unix:{place}/{SOCKET}; }} }}
        }}
    """
    (place / "nginx.conf").write_text(config)

    def ask(dial):
        with web()(dial) as ask:
            return os.getpid(), ask()

    with running(place, program, "-m", "gunicorn", "--bind", f"unix:{SOCKET}", "app:app"):
        command = ["nginx", "-e", "stderr", "-p", place, "-c", "nginx.conf"]
        nginx = subprocess.Popen(command, umask=0, start_new_session=True)
        try:
            wait_until(nginx, lambda: accepts(place / "front.sock"))
            pid, answer = as_client(place / "front.sock", ask)
        finally:
            end(nginx)
    assert answer == f"{nginx.pid} {os.geteuid()} {os.getegid()}"
    assert pid != nginx.pid


@needs("grpc")
@needs_root
def test_local_credentials_of_grpcio_prove_no_user(place):
    """grpcio's local credentials let another user into root's server."""
    program = """
        from concurrent import futures
        import grpc

        def answer(request, context):
            return f"{context.peer()} {context.peer_identities()}".encode()

        handlers = {"Who": grpc.unary_unary_rpc_method_handler(answer)}
        server = grpc.server(futures.ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Service", handlers)])
        credentials = grpc.local_server_credentials(grpc.LocalConnectionType.UDS)
        server.add_secure_port("unix:app.sock", credentials)
        server.start()
        server.wait_for_termination()
    """

    def client(dial):
        import grpc

        credentials = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
        with grpc.secure_channel(f"unix:{dial.path}", credentials) as channel, dial.user():
            return channel.unary_unary("/Service/Who")(b"", timeout=DEADLINE).decode()

    handed("local_server_credentials")
    with running(place, program):
        assert [as_client(place / SOCKET, client, uid) for uid in UIDS] == ["unix: [b'local']"] * 2


@needs("zmq")
@needs_root
def test_filter_of_pyzmq(place):
    """pyzmq closes the connection of who is not in IPC_FILTER_UID."""
    program = f"""
        import zmq

        with zmq.Context() as context, context.socket(zmq.REP) as sock:
            sock.set(zmq.IPC_FILTER_UID, {UIDS[1]})
            sock.bind("ipc://app.sock")
            while True:
                sock.send(sock.recv())
    """

    def client(dial):
        """Which comes first, the answer or the end of the connection."""
        import zmq
        from zmq.utils.monitor import recv_monitor_message

        with (
            zmq.Context() as context,
            context.socket(zmq.REQ) as sock,
            sock.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor,
            dial.user(),
        ):
            sock.linger = 0
            sock.connect(f"ipc://{dial.path}")
            sock.send(b"in")
            poller = zmq.Poller()
            poller.register(sock, zmq.POLLIN)
            poller.register(monitor, zmq.POLLIN)
            ready = dict(poller.poll(DEADLINE * 1000))
            answer = sock.recv() if sock in ready else recv_monitor_message(monitor)["event"].name
            sock.disable_monitor()
            return answer

    handed("IPC_FILTER_UID")
    with running(place, program):
        assert as_client(place / SOCKET, client, UIDS[0]) == "DISCONNECTED"
        assert as_client(place / SOCKET, client, UIDS[1]) == b"in"


@needs("zmq")
@needs_root
def test_srcfd_of_pyzmq_is_a_race(place):
    """A message's SRCFD is only a number.

    Once its sender has left, it is closed, or the next one's connection.
    """
    program = """
        import zmq
        from zmq.utils.monitor import recv_monitor_message

        with zmq.Context() as context, context.socket(zmq.PULL) as sock:
            with sock.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED) as monitor:
                sock.bind("ipc://app.sock")
                wanted = ["HANDSHAKE_SUCCEEDED", "DISCONNECTED", "HANDSHAKE_SUCCEEDED"]
                while wanted:
                    if recv_monitor_message(monitor)["event"].name == wanted[0]:
                        del wanted[0]
                message = sock.recv(copy=False)
                try:
                    uid = peercred.read(message.get(zmq.SRCFD)).uid
                except OSError:
                    uid = "nobody"
                with open("answer", "w") as file:
                    file.write(f"{message.bytes.decode()} {uid}\\n")
    """

    def answer():
        return (place / "answer").read_text() if (place / "answer").exists() else ""

    def send(dial):
        import zmq

        with zmq.Context() as context, context.socket(zmq.PUSH) as sock, dial.user():
            sock.connect(f"ipc://{dial.path}")
            sock.send(str(dial.uid).encode())
            if dial.uid == UIDS[1]:
                sock.linger = 0
                while not answer().endswith("\n"):  # it has as long as every client has
                    time.sleep(0.01)

    with running(place, program):
        as_client(place / SOCKET, send, UIDS[0])
        as_client(place / SOCKET, send, UIDS[1])
    assert answer() in (f"{UIDS[0]} nobody\n", f"{UIDS[0]} {UIDS[1]}\n")

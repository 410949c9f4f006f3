"""What may be passed as a connection, and how everything else is refused."""

from __future__ import annotations

import asyncio
import enum
import errno
import multiprocessing
import os
import re
import socket
from unittest.mock import MagicMock

import pytest
from peers import Holder, Transport
from questions import FUNCTIONS

import peercred


def test_whatever_leads_to_a_descriptor(pair):
    """A descriptor, and whatever leads to it, are the same peer."""
    sock = pair[0]
    number = enum.IntEnum("Number", {"SOCKET": sock.fileno()})
    with sock.makefile() as file:
        for conn in (sock, sock.fileno(), number.SOCKET, file, Holder(sock.fileno()), Transport(sock)):
            assert peercred.read(conn).pid == os.getpid()


def test_multiprocessing_connection():
    """A multiprocessing Pipe is a socketpair."""
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        assert peercred.read(ours).uid == os.geteuid()


def test_asyncio(place):
    """A StreamWriter and transports are connections until they are closed."""

    async def main():
        answers = []

        async def serve(reader, writer):
            answers.extend([peercred.read(writer), peercred.read(writer.transport)])
            writer.close()
            await writer.wait_closed()

        class Client(asyncio.Protocol):
            def connection_made(self, transport):
                answers.append(peercred.read(transport))

            def connection_lost(self, error):
                lost.set_result(error)

        lost = asyncio.get_running_loop().create_future()
        path = str(place / "socket")
        async with await asyncio.start_unix_server(serve, path):
            transport, _ = await asyncio.get_running_loop().create_unix_connection(Client, path)
            await lost
        await asyncio.sleep(0)
        with pytest.raises(OSError, match="Unix socket") as caught:
            peercred.read(transport)
        assert caught.value.errno == errno.EBADF
        return answers

    assert asyncio.run(main()) == [peercred.Cred(os.getpid(), os.geteuid(), os.getegid())] * 3


@pytest.mark.parametrize("conn", [None, True, False, "3", b"3", 3.0, [3], object(), socket.socket, Holder])
def test_other_types_are_refused(conn):
    """Each function refuses anything else by a TypeError."""
    for function in FUNCTIONS:
        with pytest.raises(TypeError):
            function(conn)


def test_type_error_names_the_remedy():
    """The TypeError says what to pass, and which section to read."""
    from readme import section  # or this test is skipped

    async def stream_reader():
        return asyncio.StreamReader()

    scope = {"type": "http", "client": None, "server": ("app.sock", None)}
    environ = {"wsgi.version": (1, 0), "REMOTE_ADDR": ""}
    for conn in (scope, environ, asyncio.run(stream_reader()), None):
        with pytest.raises(TypeError) as caught:
            peercred.read(conn)
        message = str(caught.value)
        assert message.startswith(f"{type(conn).__name__!r} object is not a connection: pass a socket")
        assert section(re.search("'([^']*)' in peercred's README", message)[1])


def test_transport_without_a_socket_is_not_open():
    """A transport without a socket is refused as a closed socket is.

    A pipe has one, and uvloop when it has closed.
    """
    with pytest.raises(OSError, match="must be a Unix socket") as caught:
        peercred.read(Transport(None))
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("answer", [3, "socket", object()])
def test_transport_with_something_else_is_refused(answer):
    """What get_extra_info() gives must be a socket, or it is a TypeError."""
    with pytest.raises(TypeError, match="'Transport' object is not a connection: pass a socket"):
        peercred.read(Transport(answer))


@pytest.mark.parametrize("answer", [None, True, "3", 3.0, b"", object()])
def test_fileno_that_is_no_int_is_refused(answer):
    """A fileno() that returns no int is a TypeError."""
    with pytest.raises(TypeError, match=r"the descriptor of 'Holder' object is .*, not an int"):
        peercred.read(Holder(answer))
    with pytest.raises(TypeError, match="not an int"):
        peercred.read(Transport(Holder(answer)))


@pytest.mark.parametrize("error", [OSError(errno.EIO, "no"), ValueError("closed")])
def test_failure_of_fileno_comes_out(error):
    """What fileno() raises is raised unchanged."""
    with pytest.raises(type(error)) as caught:
        peercred.read(Holder(error))
    assert caught.value is error


class ClosedWrapper:
    """Wraps a socket. As in many libraries, close() sets _sock to None."""

    _sock = None

    def fileno(self):
        return self._sock.fileno()


class ClosedTransport:
    """The same with asyncio's method."""

    _sock = None

    def get_extra_info(self, name, default=None):
        return self._sock.fileno()


@pytest.mark.parametrize("conn", [ClosedWrapper(), ClosedTransport(), Transport(ClosedWrapper())])
def test_closed_wrapper_is_refused_as_a_closed_socket(conn):
    """A closed wrapper is an OSError, though its methods raise
    AttributeError.
    """
    with pytest.raises(OSError, match=r"is it closed\? \('NoneType' object has no attribute 'fileno'\)") as caught:
        peercred.read(conn)
    assert caught.value.errno == errno.EBADF
    assert isinstance(caught.value.__cause__, AttributeError)


def test_pretended_int_is_no_descriptor():
    """A mock that calls itself an int is not taken for the descriptor 1."""
    with pytest.raises(TypeError):
        peercred.read(MagicMock(spec=int))


@pytest.mark.parametrize("number", [-2, -(2**31), -(2**31) - 1, 2**31, 2**32, 2**64, -(2**64), 10**30])
def test_numbers_that_no_descriptor_has_are_refused(number, pair):
    """No number is cut down to 32 bits, such as 2^32 + a good descriptor."""
    for conn in (number, Holder(number), 2**32 + pair[0].fileno(), 2**64 + pair[0].fileno()):
        with pytest.raises(ValueError, match=r"no file descriptor has the number -?\d+: pass a socket"):
            peercred.read(conn)


@pytest.mark.parametrize("number", [2**31 - 1, 1_000_000])
def test_numbers_that_are_not_open_are_the_kernels_affair(number):
    """The highest possible descriptor reaches the kernel: EBADF."""
    with pytest.raises(OSError, match=str(number)) as caught:
        peercred.read(number)
    assert caught.value.errno == errno.EBADF

"""How typed code uses peercred: checked by mypy --strict, in .ci/run."""

from __future__ import annotations

import asyncio
import socket

import peercred
from peercred import messages


def of_a_socket(conn: socket.socket) -> peercred.Cred:
    return peercred.read(conn)


def of_a_descriptor(fd: int) -> int:
    return peercred.read(fd).uid


def of_a_writer(writer: asyncio.StreamWriter) -> int | None:
    return peercred.read(writer).pid


def of_a_transport(transport: asyncio.Transport) -> tuple[int, int]:
    cred = peercred.read(transport)
    return cred.uid, cred.gid


def everything(conn: socket.socket) -> tuple[tuple[int, ...], bytes, int, int]:
    return peercred.read_groups(conn), peercred.read_label(conn), peercred.open_pidfd(conn), peercred.open_proc(conn)


def of_each_message(sock: socket.socket) -> tuple[bytes, int | None]:
    messages.enable(sock, pidfd=True)
    messages.send(sock, [b"a", bytearray(b"b")], cred=peercred.Cred(None, 0, 0))
    with messages.receive(sock, 100, socket.MSG_PEEK) as message:
        pidfd: int | None = message.detach_pidfd()
        fds: tuple[int, ...] = message.detach_fds() or message.fds
        messages.send(sock, b"", fds=[*fds, sock], address="/nowhere")
    return message.data, pidfd if message.cred is None else message.cred.pid


def by_name(conn: peercred.Connection, message: messages.Message) -> bool:
    allowed = peercred.AllowList(uids={0, "alice"}, gids=range(5))
    return allowed.require(conn).uid in allowed.uids or allowed.permits(message.cred, [1])


def narrowed(allowed: peercred.AllowList, message: messages.Message) -> int | None:
    return message.cred.uid if allowed.permits(message.cred) else None


def refused(conn: socket.socket) -> int | None:
    try:
        peercred.AllowList().require(conn)
    except peercred.NotAllowedError as error:
        return error.cred.pid
    except peercred.NoPeerError as error:
        return error.errno
    except (peercred.UnsupportedError, OSError):
        raise
    return None


def wrong(conn: socket.socket) -> None:
    """What a type checker must refuse: it complains of an ignore too many."""
    peercred.read(None)  # type: ignore[arg-type]
    peercred.read("3")  # type: ignore[arg-type]
    peercred.AllowList(uids={None})  # type: ignore[arg-type]
    peercred.AllowList().permits("alice")  # type: ignore[arg-type]
    messages.send(conn, b"", fds=["3"])  # type: ignore[list-item]
    peercred.read(conn).uid = 0  # type: ignore[misc]
    messages.send(conn, "text")  # type: ignore[arg-type]
    messages.receive(3, 100)  # type: ignore[arg-type]

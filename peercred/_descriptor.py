"""What may be passed as a connection: anything that holds a socket, reduced to its descriptor."""

TYPE_CHECKING = False  # for type checkers it is true; at run time, nothing here imports typing
if TYPE_CHECKING:
    from typing import Any, Protocol, TypeAlias

    class HasFileno(Protocol):
        def fileno(self) -> int: ...

    class HasExtraInfo(Protocol):
        def get_extra_info(self, name: str, /) -> Any: ...

    Connection: TypeAlias = int | HasFileno | HasExtraInfo
else:
    Connection = object

_INT_MAX = 2**31 - 1


def descriptor(conn: Connection) -> int:
    """The descriptor of a connection, whichever library it comes from.

    Args:
        conn: An int descriptor; an object with `fileno()`; or one with asyncio's `get_extra_info("socket")`.

    Raises:
        TypeError: It is none of these (a bool is not), or its `fileno()` returns no int.
        ValueError: An int that no descriptor can be. -1 passes, to be refused by the kernel (EBADF): it is
            what `fileno()` says of a closed socket.
    """
    # The plain cases first, and conn is taken apart only when they fail: nearly every call ends here.
    if type(conn) is int:
        fd = conn
    else:
        try:
            fd = conn.fileno()  # type: ignore[union-attr]
        except AttributeError:
            if hasattr(conn, "fileno"):
                raise  # not a missing method: conn's own failure
            fd = _unwrap(conn)
        if type(fd) is not int:
            raise TypeError(f"fileno() of {type(conn).__name__!r} object returned {fd!r}, not an int: pass a socket")
    if not -1 <= fd <= _INT_MAX:
        raise ValueError(f"no file descriptor has the number {fd}: pass a socket, or its fileno()")
    return fd


def _unwrap(conn: Connection) -> int:
    if isinstance(conn, int) and not isinstance(conn, bool):
        return int(conn)
    if hasattr(conn, "get_extra_info"):
        socket = conn.get_extra_info("socket")
        if socket is None:  # a uvloop transport that is closed, or a pipe's: no descriptor, for the kernel to refuse
            return -1
        if hasattr(socket, "fileno"):
            return socket.fileno()  # type: ignore[no-any-return]
    raise TypeError(
        f"{type(conn).__name__!r} object is not a connection: pass a socket, its int descriptor, or an asyncio "
        "transport or StreamWriter (of a trio stream, stream.socket; of an anyio stream, "
        "stream.extra(SocketAttribute.raw_socket))"
    )

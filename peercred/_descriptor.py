"""What may be passed as a connection, and how to get its descriptor."""

from __future__ import annotations

from errno import EBADF

from ._cred import as_int

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol, TypeAlias
else:  # importing typing would take as long as the rest of the package
    Protocol = object


class HasFileno(Protocol):
    """A socket, or anything else with `fileno()`."""

    def fileno(self) -> int: ...


class HasExtraInfo(Protocol):
    """An asyncio transport or StreamWriter, or anything that acts like it."""

    def get_extra_info(self, name: str, /) -> object: ...


# For annotations only.
Connection: TypeAlias = int | HasFileno | HasExtraInfo

_FD_MAX = 2**31 - 1


def descriptor(conn: Connection) -> int:
    """The descriptor of a connection, whichever library it comes from.

    What `fileno()` or `get_extra_info()` raises passes through, except an
    AttributeError, which some closed wrappers raise: that is EBADF. So is -1,
    which a closed socket's `fileno()` returns: the kernel refuses it.
    """
    # Try the plain cases first: isinstance() and hasattr() would take a fifth
    # of the whole call.
    if type(conn) is int:
        fd = conn
    else:
        holder: Any = conn
        try:
            found = holder.fileno()
        except AttributeError as error:
            found = _unwrap(holder, error)
        number = as_int(found)
        if number is None:
            raise TypeError(f"the descriptor of {type(conn).__name__!r} object is {found!r}, not an int: pass a socket")
        fd = number
    if not -1 <= fd <= _FD_MAX:
        raise ValueError(f"no file descriptor has the number {fd}: pass a socket, or its fileno()")
    return fd


def _unwrap(conn: Any, error: AttributeError) -> Any:
    if (number := as_int(conn)) is not None:
        return number
    try:
        if hasattr(conn, "fileno"):
            raise error  # the method exists, so the error is its own
        get_extra_info = getattr(conn, "get_extra_info", None)
        if get_extra_info is not None:
            socket = get_extra_info("socket")
            if socket is None:  # uvloop's transports say so once closed, and pipes always
                return -1
            if hasattr(socket, "fileno"):
                return socket.fileno()
    except AttributeError as own:
        raise OSError(EBADF, f"{type(conn).__name__!r} object has no descriptor: is it closed? ({own})") from own
    raise TypeError(
        f"{type(conn).__name__!r} object is not a connection: pass a socket, its int descriptor, or an asyncio "
        "transport or StreamWriter. An ASGI scope, a Request, a WSGI environ and a StreamReader hold no connection. "
        "See 'Where is the connection?' in peercred's README"
    )

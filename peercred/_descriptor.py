"""What may be passed as a connection, and the descriptor that is in it."""

from __future__ import annotations

from errno import EBADF

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol, TypeAlias
else:  # importing typing would cost as much as the rest of the package

    class _ByMethods(type):
        def __instancecheck__(cls, instance):
            return all(hasattr(instance, name) for name in vars(cls) if not name.startswith("_"))

    class Protocol(metaclass=_ByMethods):
        """As typing.Protocol: an instance is what has the methods."""


class HasFileno(Protocol):
    """A socket, or whatever else has a `fileno()`."""

    def fileno(self) -> int: ...


class HasExtraInfo(Protocol):
    """An asyncio transport or StreamWriter, or whatever else has its method."""

    def get_extra_info(self, name: str, /) -> object: ...


Connection: TypeAlias = int | HasFileno | HasExtraInfo

_FD_MAX = 2**31 - 1


def descriptor(conn: Connection) -> int:
    """The descriptor of a connection, whichever library it comes from.

    Args:
        conn: An int descriptor; an object with `fileno()`; or an object with
            asyncio's `get_extra_info("socket")`.

    Raises:
        OSError: EBADF: its `fileno()` or `get_extra_info()` ended in an
            AttributeError, as that of a closed wrapper may. Whatever else they
            raise comes out unchanged.
        TypeError: It is none of these (a bool is not), or its `fileno()`
            returned no int.
        ValueError: The number is one that no descriptor can have. -1 passes
            and is refused by the kernel (EBADF), because that is the `fileno()`
            of a closed socket.
    """
    # Nearly every call ends in the plain cases. Only what fails there is taken
    # apart: isinstance() and hasattr() would be a fifth of the whole call.
    if type(conn) is int:
        fd = conn
    else:
        holder: Any = conn
        try:
            fd = holder.fileno()
        except AttributeError as error:
            fd = _unwrap(holder, error)
        if type(fd) is not int:
            raise TypeError(f"fileno() of {type(conn).__name__!r} object returned {fd!r}, not an int: pass a socket")
    if not -1 <= fd <= _FD_MAX:
        raise ValueError(f"no file descriptor has the number {fd}: pass a socket, or its fileno()")
    return fd


def _unwrap(conn: Any, error: AttributeError) -> Any:
    if issubclass(type(conn), int) and not isinstance(conn, bool):
        return int.__index__(conn)
    try:
        if hasattr(conn, "fileno"):
            raise error  # not a missing method, but the method's own failure
        get_extra_info = getattr(conn, "get_extra_info", None)
        if get_extra_info is not None:
            socket = get_extra_info("socket")
            if socket is None:  # a closed transport of uvloop's, or a pipe's: the kernel shall refuse
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

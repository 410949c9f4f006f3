"""Who is at the other end of a Unix domain socket?

    peercred.read(conn)         # Cred(pid=2002, uid=1000, gid=1000)
    peercred.read_groups(conn)  # (4, 27, 1000)
    peercred.read_label(conn)   # b"system_u:system_r:init_t:s0"
    peercred.open_pidfd(conn)   # 7
    peercred.open_proc(conn)    # 8

    allowed = peercred.AllowList(uids={0, "alice"}, gids={"docker"})
    allowed.require(conn)       # a Cred, or NotAllowedError

Each function asks the Linux kernel what it recorded when the connection
was made. `help(peercred.read)` says what an answer proves, and what it
does not prove.

To learn who sent a *message*, import `peercred.messages`.

Every failure is an exception, never a default value. If the kernel
refuses, it is an OSError, so `except OSError` means "refuse". On platforms
other than Linux, every call raises UnsupportedError.
"""

from ._allow import AllowList
from ._cred import Cred
from ._descriptor import Connection
from ._errors import NoPeerError, NotAllowedError, UnsupportedError
from ._read import open_pidfd, open_proc, read, read_groups, read_label

__all__ = [
    "AllowList",
    "Connection",
    "Cred",
    "NoPeerError",
    "NotAllowedError",
    "UnsupportedError",
    "open_pidfd",
    "open_proc",
    "read",
    "read_groups",
    "read_label",
]

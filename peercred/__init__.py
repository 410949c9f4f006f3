"""Who is at the other end of a Unix domain socket? Ask the Linux kernel.

    peercred.read(conn)         # Cred(pid=2002, uid=1000, gid=1000)
    peercred.read_groups(conn)  # (4, 27, 1000)
    peercred.read_label(conn)   # b"system_u:system_r:init_t:s0"
    peercred.open_pidfd(conn)   # 7

    allowed = peercred.AllowList(uids={0, "alice"}, gids={"docker"})
    allowed.require(conn)       # a Cred, or PermissionError

An answer is what the kernel recorded when the peer connected: the effective ids
of the process that called connect(2), or of the one that called listen(2), if
it is you who connected. `help(peercred.read)` tells what that proves and what
it does not.

Who sends a *message* is another question: `from peercred import messages`,
which is imported by itself.

Every failure is an exception, never a default value. Whatever the kernel
refuses is an OSError, so `except OSError` means "refuse". On a platform other
than Linux the package imports, and each call raises UnsupportedError.
"""

from ._allow import AllowList
from ._cred import Cred
from ._descriptor import Connection
from ._errors import NoPeerError, UnsupportedError
from ._read import open_pidfd, read, read_groups, read_label

__all__ = [
    "AllowList",
    "Connection",
    "Cred",
    "NoPeerError",
    "UnsupportedError",
    "open_pidfd",
    "read",
    "read_groups",
    "read_label",
]

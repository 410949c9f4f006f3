"""Who is at the other end of a Unix domain socket? The Linux kernel knows, and this asks it.

    peercred.read(conn)         # Cred(pid=2002, uid=1000, gid=1000)
    peercred.read_groups(conn)  # (4, 27, 1000)
    peercred.read_label(conn)   # b"system_u:system_r:init_t:s0"
    peercred.open_pidfd(conn)   # 7

    allowed = peercred.AllowList(uids={0, 1000}, gids={27})
    allowed.require(conn)       # a Cred, or PermissionError

An answer is what the kernel took down about the process that *connected* (or, seen from the client, that called
listen), at that moment: its effective ids. It does not say who holds the socket now, or that the process still lives.

Every failure is an exception, never a default value, and whatever the kernel refuses is an OSError, so that
`except OSError` means "refuse". On any platform but Linux the package imports, and each call raises UnsupportedError.
"""

from ._allow import AllowList
from ._cred import Cred
from ._errors import NoPeerError, UnsupportedError
from ._read import open_pidfd, read, read_groups, read_label

__all__ = [
    "AllowList",
    "Cred",
    "NoPeerError",
    "UnsupportedError",
    "open_pidfd",
    "read",
    "read_groups",
    "read_label",
]

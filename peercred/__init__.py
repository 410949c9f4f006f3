"""Who is at the other end of a Unix domain socket? The Linux kernel knows, and this asks it.

    cred = peercred.read(conn)  # Cred(pid=2002, uid=1000, gid=1000)

An answer is what the kernel took down about the process that *connected* (or, seen from the client, that called
listen), at that moment: its effective ids. It does not say who holds the socket now, or that the process still lives.

Every failure is an exception, never a default value, and those of the kernel's are OSErrors, so that
`except OSError` means "refuse". On any platform but Linux the package imports, and each call raises UnsupportedError.
"""

from ._cred import Cred
from ._errors import NoPeerError, UnsupportedError
from ._read import read

__all__ = ["Cred", "NoPeerError", "UnsupportedError", "read"]

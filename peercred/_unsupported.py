"""The back end on other platforms: every function raises UnsupportedError.

Each front chooses its back end by `sys.platform`, and never by
`except ImportError`: on Linux, a broken build must be an error.
"""

from __future__ import annotations

import sys
from errno import ENOTSUP

from ._errors import UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def _refuse(*_: object) -> NoReturn:
    raise UnsupportedError(ENOTSUP, f"peercred needs Linux, and this platform is {sys.platform!r}")


read = read_groups = read_label = open_pidfd = open_proc = _refuse
overflow_ids = read_with_groups = Owner = _refuse
enable = receive = send = _refuse

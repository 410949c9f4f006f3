"""Chooses the back end of `messages`, which `import peercred` must not load."""

import sys

if sys.platform == "linux":
    from . import _linux_messages as kernel
else:
    from . import _unsupported as kernel

__all__ = ["kernel"]

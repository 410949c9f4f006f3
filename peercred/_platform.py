"""Chooses the back end of `_read` and `_allow`."""

import sys

# Never by `except ImportError`: on Linux, a broken build must be an error.
if sys.platform == "linux":
    from . import _linux as kernel
else:
    from . import _unsupported as kernel

__all__ = ["kernel"]

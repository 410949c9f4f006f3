"""The one place that chooses the back end."""

import sys

# By name, never by `except ImportError`: on Linux a broken build must be loud.
if sys.platform == "linux":
    from . import _linux as kernel
else:
    from . import _unsupported as kernel

__all__ = ["kernel"]

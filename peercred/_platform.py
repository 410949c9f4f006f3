"""The one place that chooses the back end."""

import sys

# Never by `except ImportError`: on Linux, a broken build must be an error.
if sys.platform == "linux":
    from . import _linux as kernel
else:
    from . import _unsupported as kernel

__all__ = ["kernel"]

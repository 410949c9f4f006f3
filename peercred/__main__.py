"""The command `peercred`: which process is behind this socket?"""

import signal
import sys


def main() -> int:
    """Run the command, and return its exit code."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    if sys.platform == "linux":
        from ._command import main

        return main()
    sys.exit(f"peercred: this needs Linux, and the platform is {sys.platform!r}")


if __name__ == "__main__":
    sys.exit(main())

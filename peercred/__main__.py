"""The command `peercred`: which process is behind this socket?"""

import signal
import sys


def main() -> int:
    """Run the command, and return its exit code."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    from ._command import main

    return main()


if __name__ == "__main__":
    sys.exit(main())

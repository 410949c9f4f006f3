"""The command `peercred`: which process is behind this socket?"""

import signal
import sys

import peercred


def main() -> int:
    """Run the command, and return its exit code."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    if sys.platform == "linux":
        from ._command import main

        status = main()
    else:
        try:
            status = peercred.read(-1).uid  # always raises, and the error says why
        except peercred.UnsupportedError as error:
            sys.exit(f"peercred: {error.strerror}")
    return status


if __name__ == "__main__":
    sys.exit(main())

"""The command `peercred`: which process is behind this socket?"""

import sys

import peercred

if sys.platform == "linux":
    from ._command import main
else:

    def main() -> int:
        """Ask nevertheless: the error says why there is no answer."""
        try:
            return peercred.read(-1).uid
        except peercred.UnsupportedError as error:
            sys.exit(f"peercred: {error.strerror}")


if __name__ == "__main__":
    sys.exit(main())

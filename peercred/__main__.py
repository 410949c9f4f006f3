"""`python -m peercred`: a child process connects over a private socket, and what read() says of it is printed."""

import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from peercred import read

CHILD = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"


def main() -> int:
    with TemporaryDirectory() as private, socket.socket(socket.AF_UNIX) as server:
        path = str(Path(private, "socket"))
        server.bind(path)
        server.listen()
        server.settimeout(30)
        with subprocess.Popen([sys.executable, "-c", CHILD, path]) as child, server.accept()[0] as conn:
            print(f"Process {child.pid} has connected, and read() says: {read(conn)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

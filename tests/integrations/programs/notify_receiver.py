"""The receiving end of sd_notify(3): prints what this user's services tell it.

Start it, and tell it something:

    NOTIFY_SOCKET=$PWD/notify.sock python notify_receiver.py
    NOTIFY_SOCKET=$PWD/notify.sock systemd-notify --ready --status=serving

The file keeps other users out. If you open it to them, the list decides whose
messages count. Root may claim any sender, so trust it.
"""

import os
import pathlib
import socket

from peercred import AllowList, messages

allowed = AllowList(uids={os.geteuid()})  # of each sender, its real uid
path = os.environ["NOTIFY_SOCKET"]
pathlib.Path(path).unlink(missing_ok=True)  # left by an earlier run
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    os.fchmod(sock.fileno(), 0o600)  # bind() gives the file this mode
    messages.enable(sock)  # before bind(): messages that are queued before it have no sender
    sock.bind(path)
    while True:
        # A service that sends BARRIER=1 attaches a pipe, and waits until it is
        # closed: at the end of `with`, when all that came before is printed.
        with messages.receive(sock, 4096, max_fds=1) as message:
            cred = message.cred
            if not allowed.permits(cred):  # never true for a cred of None
                print(f"refused: {cred}", flush=True)
            elif message.flags & socket.MSG_TRUNC:
                print(f"too long: {cred}", flush=True)
            else:
                for line in message.data.splitlines():
                    if line != b"BARRIER=1":
                        print(f"uid {cred.uid}, pid {cred.pid}: {line.decode(errors='backslashreplace')!r}", flush=True)

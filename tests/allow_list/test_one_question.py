"""require() asks about one socket, whatever takes its number meanwhile.

A preloaded library puts another socket there between two of its questions, at a
moment that no test could otherwise hit.
"""

from __future__ import annotations

import errno
import re

import pytest
from peers import SO_PEERGROUPS, needs_root

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* Before or after SO_PEERGROUPS is asked for, put the socket at the descriptor SWAP in the place of the one at CONN. */
int getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    int (*real)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");
    const char *swap = option == atoi(getenv("SO_PEERGROUPS")) ? getenv("SWAP") : NULL;
    int after = swap && getenv("AFTER"), result;

    if (swap && !after)
        dup2(atoi(swap), atoi(getenv("CONN")));
    result = real(fd, level, option, value, length);
    if (after)
        dup2(atoi(swap), atoi(getenv("CONN")));
    return result;
}
"""

PROGRAM = """
import os, socket
import peercred

def connection(uid, groups):
    if os.fork() == 0:
        os.setgroups(groups)
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        socket.socket(socket.AF_UNIX).connect(server.getsockname())
        os._exit(0)
    os.wait()
    return server.accept()[0]

server = socket.socket(socket.AF_UNIX)
server.bind("")
server.listen()
member, stranger = connection(1001, [4]), connection(1002, [5])
first, second = eval(os.environ["ORDER"])
os.environ.update(SWAP=str(second.fileno()), CONN=str(first.fileno()))
number = first.fileno()
try:
    print(peercred.AllowList(gids={4}).require(first))
except OSError as error:
    print(type(error).__name__, error.errno, error.strerror)
print(os.path.samestat(os.fstat(number), os.fstat(second.fileno())))
"""


@needs_root
@pytest.mark.parametrize(
    ("first", "second"),
    [("member", "stranger"), ("member", "server"), ("stranger", "member"), ("stranger", "server")],
)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_socket_that_changes_during_the_call(preloaded, first, second, moment):
    """The member is let in and the stranger is not, whoever is there by then.

    Their own ids and groups decide.
    """
    env = {"ORDER": f"{first}, {second}", "SO_PEERGROUPS": SO_PEERGROUPS}
    if moment == "after":
        env["AFTER"] = 1
    answer, swapped = preloaded(SHIM, PROGRAM, **env).splitlines()
    assert swapped == "True"
    if first == "member":
        assert re.fullmatch(r"Cred\(pid=\d+, uid=1001, gid=1001\)", answer)
    else:
        assert answer.startswith(f"NotAllowedError {errno.EACCES} ")
        assert "uid 1002" in answer

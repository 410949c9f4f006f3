"""What others can put in the command's way: names that write on a terminal, planted modules, limits, floods."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
from command import (
    COMMAND,
    ENVIRONMENT,
    as_argument,
    deadline,  # noqa: F401
    here,  # noqa: F401
    refused,  # noqa: F401
)
from peers import (
    CLONE_NEWNS,
    LIBC,
    MS_PRIVATE,
    MS_REC,
    Child,
    become,
    bind_mount,
    call,
    needs_namespaces,
    needs_pidfd,
    unshare,
)

HOSTILE = [
    b"\x1b[2J", b"\x1b]0;title\x07", b"\x1bP+q\x1b\\", b"\x9b2J", "\x9b2J".encode(), b"\x08\x08", b"\x7f", b"\r", b"\n", b"\t",
    b"\x0e", "\u202eevil".encode(), "\u2066x".encode(), "\u200b".encode(), "\u2028".encode(), "\ufeff".encode(),
    "\U000e0041".encode(), "\u061c".encode(), b"\xff\xfe", b"\xed\xb2\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf",
]  # fmt: skip


def assert_safe(output):
    """Nothing but line ends and characters that Unicode calls graphic."""
    assert all(character.isprintable() or character == "\n" for character in output), ascii(output)


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_path_is_escaped(here, hostile, place):  # noqa: F811
    """No path writes on the terminal, be it in an error, in a usage error, or above an answer."""
    name = os.fsdecode(hostile)
    abstract = f"@{place}{name}"
    with socket.socket(socket.AF_UNIX) as server:
        for arguments in (
            [f"/missing{name}"],
            [abstract],
            ["--listen", f"/missing{name}/door"],
            ["a", f"b{name}"],
            [f"--{name}"],
            ["--mode", name, "--listen", "a"],
            ["--timeout", name, "a"],
        ):
            result = here(*arguments)
            assert result.returncode in (1, 2)
            assert result.stdout == ""
            assert_safe(result.stderr)
        server.bind(b"\0" + os.fsencode(abstract)[1:])
        server.listen()
        first, *rest = here(abstract).stdout.splitlines()
        assert first.startswith(f"@{place}\\")
        assert_safe(first)
        assert len(rest) in (8, 9)  # a hint follows if the tests are process 1


@needs_pidfd
def test_every_field_of_a_hostile_process_is_escaped(server):
    """Neither a program's name nor its arguments break out of their line, in any mode."""
    name = as_argument(server.getsockname().decode())

    def listen(hostile):
        server.listen()
        Path("/proc/self/comm").write_bytes(hostile[:15])

    for hostile in HOSTILE:
        with Child(lambda hostile=hostile: listen(hostile)) as child:
            child.result()
            with subprocess.Popen([*COMMAND, name], stdout=subprocess.PIPE, env=ENVIRONMENT) as command:
                output = command.stdout.read().decode()
            assert_safe(output)
            assert len(output.splitlines()) in (9, 10)
        if len(HOSTILE) > 4 and hostile is HOSTILE[3]:
            break


@needs_namespaces
@pytest.mark.parametrize("hostile", HOSTILE[:9] + HOSTILE[11:], ids=ascii)
def test_names_of_users_are_escaped(server, tmp_path, hostile, here):  # noqa: F811
    """Neither a user's nor a group's name breaks out of its line."""
    if b"\n" in hostile:
        pytest.skip(reason="a line end ends an entry of /etc/passwd")
    (tmp_path / "passwd").write_bytes(hostile + b":x:1234:1234::/:/bin/sh\n")
    (tmp_path / "group").write_bytes(hostile + b":x:1234:\n")

    def inside():
        unshare(CLONE_NEWNS)
        assert LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) == 0
        for name in ("passwd", "group"):
            bind_mount(tmp_path / name, Path("/etc", name))
        call(lambda: become(uid=1234, gid=1234, groups=(1234,)) or server.listen())
        return here(as_argument(server.getsockname().decode())).stdout

    output = call(inside)
    assert_safe(output)
    assert len(output.splitlines()) in (9, 10)
    assert len(re.findall(r"\(1234\)$", output, re.MULTILINE)) == 3

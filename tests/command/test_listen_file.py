"""`peercred --listen PATH`: how it makes, guards and removes its file."""

from __future__ import annotations

import os
import socket
import stat

import pytest
from command import (
    ENVIRONMENT,
    leave_dead_socket,
    listening,
    proc_file,
    started,
    terminate,
    wait_until,
    wait_until_asleep,
)
from peers import needs_root


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o177])
@pytest.mark.parametrize(
    ("arguments", "mode"),
    [
        ([], 0o600),
        (["--mode", "666"], 0o666),
        (["--mode", "0750"], 0o750),
        pytest.param(["--mode", "0"], 0, marks=needs_root),  # nobody else can connect
    ],
)
def test_mode(door, arguments, mode, umask):
    """The file has the mode of --mode, or else 0600, whatever the umask is."""
    previous = os.umask(umask)
    try:
        with listening(door, *arguments) as command:
            assert stat.S_IMODE(os.lstat(door).st_mode) == mode
            assert stat.S_ISSOCK(os.lstat(door).st_mode)
            assert f"Umask:\t{umask:04o}\n".encode() in proc_file(command.pid, "status")
    finally:
        os.umask(previous)


PRELOADED_BIND = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/socket.h>

/* bind(2), right after which a shell command runs. */
int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "bind");

    if (real(fd, address, length) != 0 || system(getenv("AFTER_BIND")) != 0)
        abort();
    return 0;
}
"""


@pytest.fixture
def after_bind(preloadable):
    """A function that makes an environment for what follows bind(2).

    There a shell command runs as soon as a socket is bound.
    """

    def after_bind(shell_command):
        return {**ENVIRONMENT, "LD_PRELOAD": str(preloadable(PRELOADED_BIND)), "AFTER_BIND": shell_command}

    return after_bind


def test_mode_from_the_first_moment(door, place, after_bind):
    """Other users cannot connect before the file has its final mode."""
    with listening(door, env=after_bind(f"stat -c %a {door} >{place}/mode")):
        assert (place / "mode").read_text() == "600\n"


@pytest.mark.parametrize("another", ["file", "link"])
def test_file_that_is_replaced_at_once(door, place, after_bind, another):
    """The mode of a file that replaces the new socket is not changed."""
    (place / "file").touch(0o600)
    (place / "link").symlink_to(place / "file")
    with started("--listen", str(door), "--mode", "666", env=after_bind(f"mv -f {place}/{another} {door}")) as command:
        wait_until(lambda: not (place / another).exists())
        wait_until_asleep(command)
        assert stat.S_IMODE(door.stat().st_mode) == 0o600


def test_file_that_is_replaced_later(door):
    """A file or a socket that has replaced its own is not removed."""
    with listening(door) as command:
        door.unlink()
        door.write_text("another's")
        terminate(command)
    assert door.read_text() == "another's"
    door.unlink()
    with listening(door) as command:
        door.unlink()
        leave_dead_socket(door)
        terminate(command)
    assert door.is_socket()


def test_file_that_is_removed(door):
    """It is no error if another process has removed the file."""
    with listening(door) as command:
        door.unlink()
        terminate(command)
        assert command.stderr.read() == ""


def test_directory_that_is_moved(place):
    """The file is removed from the directory in which it was made.

    Another directory may have that one's name by then.
    """
    (place / "house").mkdir()
    with listening(place / "house" / "door") as command:
        (place / "house").rename(place / "moved")
        (place / "house").mkdir()
        os.link(place / "moved" / "door", place / "house" / "door")
        terminate(command)
    assert list((place / "moved").iterdir()) == []
    assert (place / "house" / "door").is_socket()


@pytest.mark.parametrize("name", ["file", "directory", "link", "dangling link", "dead", "bound", "listening", ".", ""])
def test_path_that_exists(place, error_of, name):
    """The command refuses a path that exists, and leaves it alone.

    It does not decide whether anybody uses it.
    """
    (place / "file").write_text("precious")
    (place / "directory").mkdir()
    leave_dead_socket(place / "dead")
    (place / "link").symlink_to("dead")
    (place / "dangling link").symlink_to("missing")
    with socket.socket(socket.AF_UNIX) as bound, socket.socket(socket.AF_UNIX) as listener:
        bound.bind(str(place / "bound"))
        listener.bind(str(place / "listening"))
        listener.listen()
        before = {path.name: path.lstat() for path in place.iterdir()}
        error = error_of("--listen", f"{place}/{name}")
        assert error == f"peercred: {place}/{name}: it exists: remove it, if nobody uses it\n"
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has connected
            listener.accept()
    assert {path.name: path.lstat() for path in place.iterdir()} == before
    assert (place / "file").read_text() == "precious"


def test_path_that_appears_meanwhile(door, error_of, monkeypatch):
    """A file that is made just before bind(2) is not replaced either."""
    monkeypatch.setattr(os.path, "lexists", lambda _: door.write_text("precious") == 0)
    assert error_of("--listen", str(door)) == f"peercred: {door}: Address already in use\n"
    assert door.read_text() == "precious"


def test_path_where_no_file_can_be_made(place, error_of):
    """The error says why no socket can be made at a path."""
    (place / "file").touch()
    assert f"{place}/missing/door: No such file" in error_of("--listen", str(place / "missing" / "door"))
    assert f"{place}/file/door: Not a directory" in error_of("--listen", str(place / "file" / "door"))
    assert "path too long" in error_of("--listen", str(place / ("x" * 108)))


def test_file_is_not_held_open(door):
    """While the command listens, it does not hold its file open."""
    with listening(door) as command:
        directory = f"/proc/{command.pid}/fd"
        assert str(door) not in [os.readlink(f"{directory}/{name}") for name in os.listdir(directory)]

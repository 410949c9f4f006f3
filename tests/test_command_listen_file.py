"""`peercred --listen PATH`: how it makes, guards and removes its file."""

from __future__ import annotations

import fcntl
import os
import socket
import stat

import pytest
from command import (
    ENVIRONMENT,
    can_connect,
    door_fixture,  # noqa: F401
    error_line,
    error_of_fixture,  # noqa: F401
    in_process_fixture,  # noqa: F401
    leave_dead_socket,
    listening,
    proc_file,
    run,
    started,
    terminate,
    wait_until,
)
from peers import connect


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o177])
@pytest.mark.parametrize(("arguments", "mode"), [([], 0o600), (["--mode", "666"], 0o666), (["--mode", "0750"], 0o750)])
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
    """A file that replaces the new socket is neither changed nor removed."""
    (place / "file").touch(0o600)
    (place / "link").symlink_to(place / "file")
    env = after_bind(f"mv -f {place}/{another} {door}")
    error = error_line(run("--listen", str(door), "--mode", "666", env=env))
    assert "another process has replaced the socket" in error
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


def test_dead_socket_is_replaced(door):
    """A socket that no process has open any more is replaced."""
    leave_dead_socket(door)
    with listening(door) as command:
        assert command.poll() is None


@pytest.mark.parametrize("name", ["file", "link", ".", ""])
def test_other_files_are_not_replaced(place, error_of, name):
    """A file, a link and a directory are not replaced."""
    leave_dead_socket(place / "dead")
    (place / "file").write_text("precious")
    (place / "link").symlink_to(place / "dead")
    assert "exists and is not a socket: choose another path" in error_of("--listen", f"{place}/{name}")
    assert (place / "file").read_text() == "precious"
    assert (place / "link").is_symlink()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_bound_socket_is_not_replaced(door, error_of, kind):
    """A socket that a process has bound is not replaced.

    It makes no difference whether the process listens.
    """
    with socket.socket(socket.AF_UNIX, kind) as alive:
        alive.bind(str(door))
        before = os.lstat(door)
        assert f"{door}: Address already in use" in error_of("--listen", str(door))
        if kind != socket.SOCK_DGRAM:
            alive.listen()
            assert f"{door}: Address already in use" in error_of("--listen", str(door))
        assert os.path.samestat(before, os.lstat(door))


def test_path_where_no_file_can_be_made(place, error_of):
    """The error says why no socket can be made at a path."""
    (place / "file").touch()
    assert f"{place}/missing/door: No such file" in error_of("--listen", str(place / "missing" / "door"))
    assert f"{place}/file/door: Not a directory" in error_of("--listen", str(place / "file" / "door"))
    assert "path too long" in error_of("--listen", str(place / ("x" * 108)))


def test_locked_directory(place, error_of):
    """In a directory that is locked, a dead socket is not replaced.

    The lock is held while a process replaces one. A new socket needs no lock.
    """
    dead = place / "dead"
    leave_dead_socket(dead)
    directory = os.open(place, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    before = os.lstat(dead)
    assert "try again, or choose another path" in error_of("--listen", str(dead))
    assert os.path.samestat(before, os.lstat(dead))
    with listening(place / "door"):
        pass
    os.close(directory)


PRELOADED_UNLINK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* unlink(2) that makes the file REACHED, and waits until HOLD is removed. */
int unlink(const char *path)
{
    int (*real)(const char *) = dlsym(RTLD_NEXT, "unlink");
    int patience = 6000;

    if (strcmp(path + strlen(path) - 4, "door") == 0) {
        close(open(getenv("REACHED"), O_CREAT | O_WRONLY, 0600));
        while (access(getenv("HOLD"), F_OK) == 0 && patience--)
            usleep(10000);
    }
    return real(path);
}
"""


def test_two_that_find_the_same_dead_socket(door, place, preloadable):
    """Of two commands that find the same dead socket, only one listens.

    One starts while the other is about to remove the dead socket.
    """
    leave_dead_socket(door)
    (place / "hold").touch()
    env = {
        **ENVIRONMENT,
        "LD_PRELOAD": str(preloadable(PRELOADED_UNLINK)),
        "REACHED": str(place / "reached"),
        "HOLD": str(place / "hold"),
    }
    with started("--listen", str(door), env=env) as slow:
        wait_until((place / "reached").exists)
        with started("--listen", str(door)) as fast:
            wait_until(lambda: fast.poll() is not None or can_connect(door))
            (place / "hold").unlink()
            wait_until(lambda: slow.poll() is not None or can_connect(door))
            connect(str(door)).close()
            [listener] = [command for command in (slow, fast) if command.poll() is None]
            assert int(listener.stdout.readline().split("\t")[1]) == os.getpid()


def test_file_is_not_held_open(door):
    """While the command listens, it does not hold its file open."""
    with listening(door) as command:
        directory = f"/proc/{command.pid}/fd"
        assert str(door) not in [os.readlink(f"{directory}/{name}") for name in os.listdir(directory)]

"""`peercred --listen PATH`: who connects, what becomes of the socket's file, and what ends it."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import json
import os
import pty
import re
import resource
import signal
import socket
import stat
import termios
import time

import pytest
from command import (
    ENDING,
    ENVIRONMENT,
    KEYS,
    can_connect,
    deadline,  # noqa: F401
    ended_by,
    group,
    here,  # noqa: F401
    listening,
    named,
    proc,
    refusal,
    refused,  # noqa: F401
    run,
    started,
    user,
    wait_until,
    wait_until_asleep,
)
from peers import Child, become, connect, needs_cpython, needs_passrights, needs_pidfd, needs_root

from peercred._command.listen import Signals


def pid_of(line):
    return int(line.split("\t")[1])


@needs_root
@needs_pidfd
def test_everyone_is_shown(place):
    """There is a line per connection, as they come, with ids and program of the very process."""
    path = place / "door"

    def visit(uid, gid, groups):
        become(uid=uid, gid=gid, groups=groups)
        return connect(str(path)).detach()

    with listening(path, "--mode", "666") as command:
        assert pid_of(command.first_line) == os.getpid()
        for ids in ((1001, 2001, (4, 27)), (3_000_000_000, 2002, ()), (0, 0, (5,))):
            with Child(lambda ids=ids: visit(*ids)) as child:
                child.result()
                when, pid, program, uid, gid, *groups = command.stdout.readline().rstrip("\n").split("\t")
                assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", when)
                assert int(pid) == child.pid
                assert program == proc(child.pid, "comm").decode().rstrip("\n")
                assert (uid, gid) == (named(user(ids[0]), ids[0]), named(group(ids[1]), ids[1]))
                assert groups == [",".join(map(str, ids[2])) or "-"]


def test_json(place):
    """With --json each is one object on a line, with the same keys as for `peercred PATH`."""
    with listening(place / "door", "--json") as command:
        connect(str(place / "door")).close()
        for line in (command.first_line, command.stdout.readline()):
            peer = json.loads(line)
            assert list(peer) == KEYS
            assert (peer["pid"], peer["uid"]) == (os.getpid(), os.geteuid())


def test_terminal(place):
    """On a terminal there is a head line, and columns below it."""
    ours, theirs = pty.openpty()
    with listening(place / "door", stdout=theirs):
        os.close(theirs)
        output = b""
        while output.count(b"\n") < 2:
            output += os.read(ours, 4096)
    os.close(ours)
    head, line = output.decode().splitlines()
    assert head.split() == ["TIME", "PID", "PROGRAM", "UID", "GID", "GROUPS"]
    assert line[head.index("PID") :].split()[0] == str(os.getpid())
    assert line[head.index("UID") :].startswith(f"{named(user(os.geteuid()), os.geteuid())} ")


def test_abstract(place, refused):  # noqa: F811
    """An abstract socket has no file."""
    with listening(f"@{place}/door") as command:
        assert pid_of(command.first_line) == os.getpid()
        assert "Address already in use" in refused("--listen", f"@{place}/door")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o177])
@pytest.mark.parametrize(("arguments", "mode"), [([], 0o600), (["--mode", "666"], 0o666), (["--mode", "0750"], 0o750)])
def test_mode(place, arguments, mode, umask):
    """Whatever the umask, the file has the mode that was asked for, or else 0600. The umask stays as it is."""
    previous = os.umask(umask)
    try:
        with listening(place / "door", *arguments) as command:
            assert stat.S_IMODE(os.lstat(place / "door").st_mode) == mode
            assert stat.S_ISSOCK(os.lstat(place / "door").st_mode)
            assert f"Umask:\t{umask:04o}\n".encode() in proc(command.pid, "status")
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
    """The environment of a process where a shell command runs as soon as a socket is bound."""

    def after_bind(shell_command):
        return {**ENVIRONMENT, "LD_PRELOAD": str(preloadable(PRELOADED_BIND)), "AFTER_BIND": shell_command}

    return after_bind


def test_mode_from_the_first_moment(place, after_bind):
    """There is no moment at which the file can be opened by others."""
    with listening(place / "door", env=after_bind(f"stat -c %a {place}/door >{place}/mode")):
        assert (place / "mode").read_text() == "600\n"


@pytest.mark.parametrize("another", ["file", "link"])
def test_replaced_as_soon_as_it_is_made(place, after_bind, another):
    """Whoever may write in the directory cannot have the mode of another file changed, nor have that removed."""
    (place / "file").touch(0o600)
    (place / "link").symlink_to(place / "file")
    env = after_bind(f"mv -f {place}/{another} {place}/door")
    assert "another process has replaced the socket" in refusal(
        run("--listen", f"{place}/door", "--mode", "666", env=env)
    )
    assert stat.S_IMODE((place / "door").stat().st_mode) == 0o600


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("times", [1, 2])
def test_signal_ends_it(place, number, times):
    """A signal, also twice, ends it with the signal's exit code and no message, and it removes its file."""
    with listening(place / "door") as command:
        wait_until_asleep(command)
        for _ in range(times):
            command.send_signal(number)
        assert ended_by(command, number)
        assert command.stderr.read() == ""
    assert not (place / "door").exists()


@needs_cpython("PyPy does not tell that a signal is ignored")
def test_signal_that_is_ignored_stays_ignored(place):
    """Under nohup a closed terminal does not end it."""
    with listening(place / "door", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as command:
        command.send_signal(signal.SIGHUP)
        connect(str(place / "door")).close()
        assert command.stdout.readline()


@pytest.fixture
def blocked(place):
    """The command, whose output blocks with a line in it, and the other end of that pipe."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"-" * 4096)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"-")
    os.set_blocking(writer, True)
    with listening(place / "door", stdout=writer) as command, open(reader, "rb") as output:
        os.close(writer)
        wait_until_asleep(command)
        yield command, output


@pytest.mark.parametrize("number", ENDING)
def test_signal_while_the_output_blocks(place, blocked, number):
    """The first signal waits for the output: the line is written, and then the command ends."""
    command, output = blocked
    command.send_signal(number)
    written = output.read()
    assert ended_by(command, number)
    assert written.lstrip(b"-").count(b"\n") == 1
    assert command.stderr.read() == ""
    assert not (place / "door").exists()


@pytest.mark.parametrize("number", ENDING)
def test_second_signal_while_the_output_blocks(place, blocked, number):
    """The second signal ends it although nobody reads its output, in the same way."""
    command, _ = blocked
    command.send_signal(number)
    other = ENDING[ENDING.index(number) - 1]  # two of the same number could merge into one
    command.send_signal(other)
    assert command.wait() in (128 + number, 128 + other)  # whichever the kernel delivers last
    assert command.stderr.read() == ""
    assert not (place / "door").exists()


def test_second_signal_while_the_terminal_is_stopped(place):
    """The same on a terminal that was stopped by Ctrl-S before the head line."""
    ours, theirs = pty.openpty()
    termios.tcflow(theirs, termios.TCOOFF)
    with started("--listen", str(place / "door"), stdout=theirs) as command:
        wait_until(lambda: can_connect(place / "door"))
        wait_until_asleep(command)
        command.send_signal(signal.SIGINT)
        command.send_signal(signal.SIGTERM)
        assert command.wait() in (128 + signal.SIGINT, 128 + signal.SIGTERM)
        assert command.stderr.read() == ""
    os.close(ours)
    os.close(theirs)
    assert not (place / "door").exists()


def test_reader_that_has_gone(place):
    """When nobody reads the output any more, it ends with one line, and removes its file."""
    with listening(place / "door") as command:
        command.stdout.close()
        connect(str(place / "door")).close()
        assert command.wait() == 1
        assert command.stderr.read() == f"peercred: {place}/door: cannot write to standard output: Broken pipe\n"
    assert not (place / "door").exists()


def test_more_than_1024_descriptors(place):
    """Descriptors above 1023, as it has them if it inherits a thousand, are no trouble to it."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 2048:
        pytest.skip(reason="needs a hard limit of 2048 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, limits[1]))
    try:
        with open(os.devnull) as file, contextlib.ExitStack() as stack:
            while (descriptor := os.dup(file.fileno())) < 1100:  # until no lower one is free
                stack.callback(os.close, descriptor)
            stack.callback(os.close, descriptor)
            with listening(place / "door", pass_fds=range(3, 1100)) as command:
                assert min({*range(2048)} - {int(name) for name in os.listdir(f"/proc/{command.pid}/fd")}) > 1100
                assert pid_of(command.first_line) == os.getpid()
                command.terminate()
                assert ended_by(command, signal.SIGTERM)
                assert command.stderr.read() == ""
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@needs_pidfd
@pytest.mark.parametrize("spare", [0, 1, 2], ids="{} descriptors left".format)
def test_full_table_of_descriptors(place, spare):
    """Without descriptors left it says so, tries again in a second, and goes on as soon as there are some again."""
    with listening(place / "door") as command:
        wait_until_asleep(command)
        limits = resource.prlimit(command.pid, resource.RLIMIT_NOFILE)
        free = sorted(set(range(100)) - {int(name) for name in os.listdir(f"/proc/{command.pid}/fd")})
        resource.prlimit(command.pid, resource.RLIMIT_NOFILE, (free[spare], limits[1]))
        begin = time.monotonic()
        connect(str(place / "door")).close()
        assert "Too many open files" in command.stderr.readline()
        if spare == 0:  # the client still waits: it is tried again, but not at once
            assert "Too many open files" in command.stderr.readline()
            assert time.monotonic() - begin >= 1
        resource.prlimit(command.pid, resource.RLIMIT_NOFILE, limits)
        connect(str(place / "door")).close()
        assert pid_of(command.stdout.readline()) == os.getpid()
        command.terminate()
        assert ended_by(command, signal.SIGTERM)


PRELOADED_ACCEPT = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

/* accept4(2) that fails once. */
int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    int (*real)(int, struct sockaddr *, socklen_t *, int) = dlsym(RTLD_NEXT, "accept4");
    static int failed;

    return failed++ ? real(fd, address, length, flags) : (errno = atoi(getenv("ACCEPT_ERRNO")), -1);
}
"""


@pytest.fixture
def failing_accept(preloadable):
    """The environment of a process whose first accept(2) fails."""

    def failing_accept(number):
        return {**ENVIRONMENT, "LD_PRELOAD": str(preloadable(PRELOADED_ACCEPT)), "ACCEPT_ERRNO": str(number)}

    return failing_accept


def test_full_table_of_files(place, failing_accept):
    """The same where the whole system has no room for more open files."""
    with listening(place / "door", env=failing_accept(errno.ENFILE)) as command:
        assert os.strerror(errno.ENFILE) in command.stderr.readline()
        assert pid_of(command.first_line) == os.getpid()


def test_failure(place, failing_accept):
    """Any other failure ends it, with exit code 1, one line that says why, and no file left."""
    with started("--listen", str(place / "door"), env=failing_accept(errno.EIO)) as command:
        wait_until(lambda: command.poll() is not None or can_connect(place / "door"))
        assert command.wait() == 1
        assert command.stderr.read() == f"peercred: {place}/door: {os.strerror(errno.EIO)}\n"
    assert not (place / "door").exists()


@needs_passrights
def test_no_descriptors_are_taken(place):
    """Nobody can send it a descriptor, which could keep it from going on for as long as the sender likes."""
    with listening(place / "door") as command:
        wait_until_asleep(command)
        command.send_signal(signal.SIGSTOP)
        with connect(str(place / "door")) as client, pytest.raises(PermissionError):
            client.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [client.fileno()]))])
        command.send_signal(signal.SIGCONT)
        assert pid_of(command.stdout.readline()) == os.getpid()


def test_others_file_is_not_removed(place):
    """A file that has taken the place of its own stays, be it a socket or not."""
    with listening(place / "door") as command:
        (place / "door").unlink()
        (place / "door").write_text("another's")
        command.terminate()
        assert ended_by(command, signal.SIGTERM)
    assert (place / "door").read_text() == "another's"
    (place / "door").unlink()
    with listening(place / "door") as command, socket.socket(socket.AF_UNIX) as another:
        (place / "door").unlink()
        another.bind(str(place / "door"))
        command.terminate()
        assert ended_by(command, signal.SIGTERM)
    assert (place / "door").is_socket()


def test_directory_that_is_moved(place):
    """Its file is removed from the directory where it made it, not from one that has taken that one's place."""
    (place / "house").mkdir()
    with listening(place / "house" / "door") as command:
        (place / "house").rename(place / "moved")
        (place / "house").mkdir()
        os.link(place / "moved" / "door", place / "house" / "door")
        command.terminate()
        assert ended_by(command, signal.SIGTERM)
    assert list((place / "moved").iterdir()) == []
    assert (place / "house" / "door").is_socket()


def test_only_a_dead_socket_is_replaced(place, refused):  # noqa: F811
    """Neither a file, a directory, a link, nor a socket that anyone has bound, listening or not, is touched."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "dead"))
    (place / "file").write_text("precious")
    (place / "link").symlink_to(place / "dead")
    for name in ("file", "link", ".", ""):
        assert "exists and is not a socket: choose another path" in refused("--listen", f"{place}/{name}")
    assert (place / "file").read_text() == "precious"
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
        path = place / kind.name
        with socket.socket(socket.AF_UNIX, kind) as alive:
            alive.bind(str(path))
            before = os.lstat(path)
            assert f"{path}: Address already in use" in refused("--listen", str(path))
            if kind != socket.SOCK_DGRAM:
                alive.listen()
                assert f"{path}: Address already in use" in refused("--listen", str(path))
            assert os.path.samestat(before, os.lstat(path))
    with listening(place / "dead") as command:
        assert command.poll() is None
    assert (place / "link").is_symlink()
    assert f"{place}/missing/door: No such file" in refused("--listen", str(place / "missing" / "door"))
    assert f"{place}/file/door: Not a directory" in refused("--listen", str(place / "file" / "door"))
    assert "path too long" in refused("--listen", str(place / ("x" * 108)))


def test_locked_directory(place, refused):  # noqa: F811
    """While another process may be about to replace a dead socket, it is left alone. Others need no lock."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "dead"))
    directory = os.open(place, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    before = os.lstat(place / "dead")
    assert "try again, or choose another path" in refused("--listen", str(place / "dead"))
    assert os.path.samestat(before, os.lstat(place / "dead"))
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

/* unlink(2) that takes its time: it makes the file REACHED, and waits until HOLD is removed. */
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


def test_two_that_find_the_same_dead_socket(place, preloadable):
    """Only one of the two listens, even if one starts when the other is about to remove the dead socket."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "door"))
    (place / "hold").touch()
    env = {
        **ENVIRONMENT,
        "LD_PRELOAD": str(preloadable(PRELOADED_UNLINK)),
        "REACHED": str(place / "reached"),
        "HOLD": str(place / "hold"),
    }
    with started("--listen", str(place / "door"), env=env) as slow:
        wait_until((place / "reached").exists)
        with started("--listen", str(place / "door")) as fast:
            wait_until(lambda: fast.poll() is not None or can_connect(place / "door"))
            (place / "hold").unlink()
            wait_until(lambda: slow.poll() is not None or can_connect(place / "door"))
            connect(str(place / "door")).close()
            [listener] = [command for command in (slow, fast) if command.poll() is None]
            assert pid_of(listener.stdout.readline()) == os.getpid()


def test_signal_while_an_error_blocks(place):
    """A signal ends it although nobody reads its last message."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"-")
    os.set_blocking(writer, True)
    with open(reader, "rb"), listening(place / "door", stderr=writer) as command:
        os.close(writer)
        command.stdout.close()
        connect(str(place / "door")).close()
        wait_until(lambda: not (place / "door").exists())
        wait_until_asleep(command)
        command.send_signal(signal.SIGTERM)
        assert ended_by(command, signal.SIGTERM)


def test_its_file_is_not_held_open(place):
    """It opens its file to check it, and closes it again."""
    with listening(place / "door") as command:
        directory = f"/proc/{command.pid}/fd"
        assert str(place / "door") not in [os.readlink(f"{directory}/{name}") for name in os.listdir(directory)]


def test_signals_are_restored(place, here):  # noqa: F811
    """When it ends, signals do what they do by default, and no closed descriptor is told of them."""
    here("--listen", str(place / "missing" / "door"))
    assert signal.set_wakeup_fd(-1) == -1
    assert [signal.getsignal(number) for number in ENDING] == [signal.SIG_DFL] * len(ENDING)


def test_only_one_signal_interrupts():
    """The first signal interrupts nothing, the second one interrupts output, and no later one the clean-up."""
    signals = Signals()
    with pytest.raises(KeyboardInterrupt), signals.may_interrupt():
        signals(signal.SIGINT, None)
        assert signals.received == signal.SIGINT
        try:
            signals(signal.SIGTERM, None)
        finally:
            signals(signal.SIGHUP, None)
    signals(signal.SIGINT, None)
    outside = Signals()
    outside(signal.SIGTERM, None)
    outside(signal.SIGTERM, None)
    assert outside.received == signal.SIGTERM

"""Around every test: a deadline, and nothing that is left behind.

No descriptor and no child process may be left behind. Options: --no-skips and
--skips, for CI, and --effort, for a long search.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))  # what the tests share

from crowd import crowd, swap  # noqa: F401, fixtures
from peers import DEADLINE, Child, become, connect, open_descriptors, run_python

from peercred import messages

Ids: TypeAlias = int | tuple[int, int, int]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--skips", metavar="REASONS", help="a test that is skipped for another reason fails (a regex)")
    parser.addoption(
        "--no-skips", dest="skips", action="store_const", const="(?!)", help="a test that is skipped fails"
    )
    parser.addoption("--effort", type=int, default=1, metavar="N", help="N times the usual attempts to find a fault")


def pytest_configure(config: pytest.Config) -> None:
    try:
        import hypothesis
    except ImportError:  # the tests that need it are skipped
        return
    effort = config.getoption("--effort")
    # The usual run is the same each time: if it fails, the change did it. A
    # longer one looks elsewhere each time.
    hypothesis.settings.register_profile(
        "peercred", max_examples=100 * effort, derandomize=effort == 1, deadline=None, database=None, print_blob=True
    )
    hypothesis.settings.load_profile("peercred")


@pytest.fixture
def effort(request: pytest.FixtureRequest) -> int:
    """How many times the usual attempts a search for faults makes."""
    return request.config.getoption("--effort")


def forbid_skips(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> None:
    reasons = config.getoption("--skips")
    if reasons is not None and report.skipped and not re.search(reasons, str(report.longrepr)):
        report.outcome = "failed"
        report.longrepr = f"skipped, which is forbidden: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    forbid_skips(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    forbid_skips(collector.config, report)  # of a whole module
    return report


@pytest.fixture(autouse=True, scope="session")
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests run in an empty directory.

    There a subprocess finds the installed package and not the source tree.
    """
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("empty"))
    yield
    os.chdir(before)


@pytest.fixture(autouse=True, scope="session")
def _signals() -> Iterator[None]:
    """Signals do what they do by default.

    A script that runs the tests in its background, and nohup, change that.
    """
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        signal.SIGQUIT: signal.signal(signal.SIGQUIT, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def descendants(pid: int) -> Iterator[int]:
    """The child processes of a process, and theirs."""
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it has ended meanwhile
            for child in map(int, file.read_text().split()):
                yield child
                yield from descendants(child)


@pytest.fixture(autouse=True)
def _deadline(effort: int) -> Iterator[None]:
    """A test that hangs fails, and a traceback shows where it waits.

    What is raised is no OSError, which something may catch. Child processes are
    killed, because something may wait for them while the exception is on its
    way. It is raised again each second, because something else may.
    """

    def expired(*_: object) -> None:
        for pid in [*descendants(os.getpid())]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        pytest.fail("the test waits for something that does not happen")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE * effort, 1)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(autouse=True)
def _nothing_left(_deadline: None) -> Iterator[None]:
    """Every descriptor is closed, and every child process reaped."""
    before = open_descriptors()
    yield
    for _ in range(2):  # PyPy's first collection may only call finalizers
        if open_descriptors() != before:
            gc.collect()  # what a reference cycle holds is not lost
    assert open_descriptors() == before
    if os.getpid() == 1:  # in a container, where it inherits other processes' children
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that processes of every user can reach into.

    tmp_path is its owner's alone.
    """
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture(params=["stream", "seqpacket"])
def kind(request: pytest.FixtureRequest) -> socket.SocketKind:
    """The types of Unix socket that connect and listen."""
    return {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET}[request.param]


@pytest.fixture(params=["path", "abstract", "autobound"])
def listener(request: pytest.FixtureRequest, kind: socket.SocketKind, place: Path) -> Iterator[socket.socket]:
    """A listening socket of each type, at each kind of address.

    Every user may connect to it.
    """
    address = {"path": str(place / "socket"), "abstract": f"\0{place}", "autobound": ""}[request.param]
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(address)
        if request.param == "path":
            os.chmod(address, 0o666)
        server.listen()
        yield server


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A plain listening socket, where its kind does not matter."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("")
        server.listen()
        yield server


PeerAs: TypeAlias = Callable[..., AbstractContextManager[tuple[Child, socket.socket]]]


@pytest.fixture
def peer_as(server: socket.socket) -> PeerAs:
    """A function that makes a process with these ids connect to `server`.

    It is a context manager, which gives the process and the accepted
    connection. Each of uid and gid is one for all, or real, effective and
    saved. Without ids, the process keeps its own.
    """

    @contextmanager
    def peer_as(
        uid: Ids | None = None,
        gid: Ids = 2001,
        groups: tuple[int, ...] = (),
        listener: socket.socket = server,
    ) -> Iterator[tuple[Child, socket.socket]]:
        def client() -> int:
            if uid is not None:
                become(uid=uid, gid=gid, groups=groups)
            return connect(listener.getsockname(), listener.type).detach()

        with Child(client) as child:
            child.result()
            with listener.accept()[0] as conn:
                yield child, conn

    return peer_as


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected pair of stream sockets, which this process has made."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture(params=["stream", "seqpacket", "datagram"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A receiver that has enabled nothing yet, and a sender.

    They are of each type of Unix socket.
    """
    kinds = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET, "datagram": socket.SOCK_DGRAM}
    receiver, sender = socket.socketpair(socket.AF_UNIX, kinds[request.param])
    with receiver, sender:
        yield receiver, sender


@pytest.fixture
def datagrams() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A receiver of datagrams with credentials, and a sender."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with receiver, sender:
        messages.enable(receiver)
        yield receiver, sender


@pytest.fixture(scope="session")
def preloadable(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compiles what LD_PRELOAD puts below the package, each source once.

    With it, libc answers what no kernel here does.
    """

    @cache
    def compile_library(source: str) -> Path:
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            pytest.skip(reason="needs a C compiler, for answers that no kernel here gives")
        file = tmp_path_factory.mktemp("preload") / "shim.c"
        file.write_text(source)
        library = file.with_suffix(".so")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, file, "-ldl"], check=True)
        return library

    return compile_library


@pytest.fixture
def preloaded(preloadable: Callable[[str], Path]) -> Callable[..., str]:
    """What a Python program prints above such a library."""

    def preloaded(source: str, program: str, *arguments: str, **env: object) -> str:
        added = {name: str(value) for name, value in env.items()}
        return run_python(program, *arguments, env={"LD_PRELOAD": str(preloadable(source)), **added})

    return preloaded

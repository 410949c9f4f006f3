"""Around every test: no descriptor and no child process is left behind.

Options: --no-skips, for CI, and --effort, for a long search.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from peercred import messages


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a test that is skipped fails")
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
    """How many times the usual number of attempts a test shall make that searches for faults."""
    return request.config.getoption("--effort")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and item.config.getoption("--no-skips"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which --no-skips forbids: {report.longrepr}"
    return report


@pytest.fixture(autouse=True, scope="session")
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests run in an empty directory, where a subprocess finds the installed package and not the source tree."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("empty"))
    yield
    os.chdir(before)


@pytest.fixture(autouse=True, scope="session")
def _signals() -> Iterator[None]:
    """Signals do what they do by default, also where a script has started the tests in its background, or nohup has."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def open_descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that listed the directory
            continue
    return found


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before = open_descriptors()
    yield
    if open_descriptors() != before:
        gc.collect()  # what a reference cycle holds is not lost
    assert open_descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that processes of every user can reach into; tmp_path is its owner's alone."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture(params=["stream", "seqpacket"])
def kind(request: pytest.FixtureRequest) -> socket.SocketKind:
    """The types of Unix socket that connect and listen."""
    return {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET}[request.param]


@pytest.fixture(params=["path", "abstract", "autobound"])
def listener(request: pytest.FixtureRequest, kind: socket.SocketKind, place: Path) -> Iterator[socket.socket]:
    """A listening socket of each type, at each kind of address, that every user may connect to."""
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


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture(params=["stream", "seqpacket", "datagram"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A receiver that has enabled nothing yet, and a sender, of each type of Unix socket."""
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
    """Compiles what LD_PRELOAD puts below the package: a libc that answers what no kernel here does."""

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

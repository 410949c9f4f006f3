"""Try faults, each in a copy of this tree: does a test fail every time?"""

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 300  # seconds: what takes longer hangs
MEMORY = 3 * 2**30  # a changed number may ask for more than there is


class Trial(NamedTuple):
    what: str  # for people
    file: str  # its path in the tree
    text: str  # the file with the fault
    tests: list[list[str]]  # arguments of pytest: the quickest to fail first


def fails(tree: Path, arguments: list[str]) -> str:
    """Run tests of a tree. How they fail, or nothing if they pass."""
    options = ["-x", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider"]
    with subprocess.Popen(
        ["prlimit", f"--as={MEMORY}", sys.executable, "-m", "pytest", *options, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return "it hangs"
        finally:  # also what its tests have left
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode == 0:
        return ""
    lines = output.splitlines()
    return next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1] if lines else "it crashed")


def run(trials: Iterable[Trial], jobs: int, prepare: Callable[[Path], None] = lambda tree: None) -> Iterator[str]:
    """Try all, `jobs` at a time, and print each. Yield those that survive.

    `prepare` is called with the tree before its tests are run.
    """
    trees: queue.SimpleQueue[Path] = queue.SimpleQueue()

    def outcome(trial: Trial) -> str:
        tree = trees.get()
        try:
            (tree / trial.file).write_text(trial.text)
            prepare(tree)
            return next(filter(None, (fails(tree, arguments) for arguments in trial.tests)), "")
        finally:
            shutil.copy(ROOT / trial.file, tree / trial.file)
            trees.put(tree)

    with TemporaryDirectory() as directory, ThreadPoolExecutor(jobs) as pool:
        os.chmod(directory, 0o755)  # some tests become another user
        for number in range(jobs):
            tree = Path(directory, str(number))
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__"))
            trees.put(tree)
        trials = list(trials)
        for number, (trial, how) in enumerate(zip(trials, pool.map(outcome, trials), strict=True), 1):
            print(f"{number}/{len(trials)} {trial.what}: {how or 'SURVIVES'}", flush=True)
            if not how:
                yield trial.what

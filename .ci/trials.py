"""Try faults, each in a copy of this tree: does a test fail every time?"""

import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 300  # seconds: what takes longer hangs
MEMORY = 3 * 2**30  # a changed number may ask for more than there is
LAST = 8  # so many test files, those that last found a fault, run before the others

SLOW = {"test_architectures.py", "test_build.py", "test_messages_growth.py", "test_sd_notify.py"}
TESTS = sorted(f"tests/{file.name}" for file in ROOT.glob("tests/test_*.py") if file.name not in SLOW)


class Fault(NamedTuple):
    what: str  # for people
    file: str  # its path in the tree
    text: str  # the file with the fault


def failure(tree: Path, tests: list[str]) -> str:
    """Run tests of a tree. How the first fails, or nothing if all pass."""
    options = ["-x", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", "-k", "not test_real_timers"]
    with subprocess.Popen(
        ["prlimit", f"--as={MEMORY}", sys.executable, "-m", "pytest", *options, *tests],
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


def main(faults: Iterable[Fault], tests: list[str], prepare: Callable[[Path], None] = lambda tree: None) -> int:
    """Try the faults that contain an argument of the command line, or all.

    `prepare` is called with the tree before its tests are run. Return how many
    faults no test finds.
    """
    faults = [fault for fault in faults if any(word in fault.what for word in sys.argv[1:] or [""])]
    if not faults:
        sys.exit("there is no such fault")
    trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
    jobs = len(os.sched_getaffinity(0))

    def outcome(fault: Fault) -> str:
        nonlocal tests
        tree = trees.get()
        try:
            (tree / fault.file).write_text(fault.text)
            prepare(tree)
            how = failure(tree, tests[:LAST]) or failure(tree, tests[LAST:])
        finally:
            shutil.copy(ROOT / fault.file, tree / fault.file)
            trees.put(tree)
        # The next fault is most likely found by the same tests.
        found_by = re.search(r"tests/test_\w+\.py", how)
        tests = sorted(tests, key=lambda test: not found_by or test != found_by[0])
        return how

    with TemporaryDirectory() as directory, ThreadPoolExecutor(jobs) as pool:
        os.chmod(directory, 0o755)  # some tests become another user
        for number in range(jobs):
            tree = Path(directory, str(number))
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__"))
            trees.put(tree)
        if how := outcome(Fault("none", faults[0].file, (ROOT / faults[0].file).read_text())):
            sys.exit(f"a test fails without any fault: {how}")
        survivors = []
        for number, (fault, how) in enumerate(zip(faults, pool.map(outcome, faults), strict=True), 1):
            print(f"{number}/{len(faults)} {fault.what}: {how or 'SURVIVES'}", flush=True)
            survivors += [fault.what] * (not how)
    for what in survivors:
        print("SURVIVES", what)
    print(f"{len(faults)} faults, {len(faults) - len(survivors)} found")
    return len(survivors)

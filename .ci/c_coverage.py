"""The tests must reach all lines and branches of peercred/_libc.c.

    python .ci/c_coverage.py

It needs pytest and what the build needs. The compiled module of this tree is
replaced by one that counts. Children that end by os._exit() count for nothing.
The fuzzing test of receive() counts too. Which thread wins a race does not.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
SLOW = re.compile("integrations|architectures|build|fuzz|growth|notify")


def tests():
    """The test files, except slow ones."""
    files = (str(file.relative_to(ROOT)) for file in sorted(ROOT.glob("tests/**/test_*.py")))
    return [file for file in files if not SLOW.search(file)]


def compile_module(tree, directory, flags, stderr=None):
    """Compile a tree's C source, and put the module into the tree."""
    program = "import build_ffi, sys; print(build_ffi.ffibuilder().compile(sys.argv[1]))"
    command = [sys.executable, "-B", "-c", program, directory]
    env = {**os.environ, "CFLAGS": flags}
    output = subprocess.check_output(command, cwd=tree, env=env, stderr=stderr, text=True)
    built = Path(output.splitlines()[-1])
    for old in (tree / "peercred").glob("_libc.*.so"):
        old.unlink()
    shutil.copy(built, tree / "peercred")
    return built


def counted(directory, data):
    """What gcov says about each line of _libc.c."""
    gcov = ["gcov", "--branch-probabilities", "--json-format", "--stdout", data]
    report = json.loads(subprocess.check_output(gcov, cwd=directory))
    (lines,) = (file["lines"] for file in report["files"] if file["file"].endswith("_libc.c"))
    return lines


def fuzzed(directory):
    """The lines and branches that the fuzzing test reaches."""
    fuzz = ["gcc", "-O0", "--coverage", f"-I{ROOT / 'peercred'}", ROOT / "tests/soundness/fuzz_receive.c", "-o", "fuzz"]
    subprocess.run(fuzz, cwd=directory, check=True)
    subprocess.run(["./fuzz", "20000", "0"], cwd=directory, check=True)
    (data,) = Path(directory).glob("*fuzz_receive.gcda")
    reached = set()
    for line in counted(directory, data.name):
        reached |= {(line["line_number"], None)} if line["count"] else set()
        reached |= {(line["line_number"], i) for i, branch in enumerate(line["branches"]) if branch["count"]}
    return reached


def main():
    with TemporaryDirectory() as directory, TemporaryDirectory() as other:
        built = compile_module(ROOT, directory, "-O0 --coverage")
        files = [file for file in tests() if "command" not in file]  # it knows nothing of C
        command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
        generated = built.with_name("_libc.c").read_text()
        (data,) = built.parent.glob("*.gcda")
        lines, reached = counted(data.parent, data.name), fuzzed(other)

    source = (ROOT / "peercred/_libc.c").read_text()
    first = generated[: generated.index(source)].count("\n") + 1  # the rest is cffi's
    text = dict(enumerate(source.splitlines(), first))
    ours, branches, missed = 0, 0, []
    for line in lines:
        number = line["line_number"]
        if number not in text:
            continue
        ours += 1
        counts = [(None, line["count"]), *((i, branch["count"]) for i, branch in enumerate(line["branches"]))]
        branches += len(line["branches"])
        missed += [
            f"not reached, a {'line' if i is None else 'branch'} of: {text[number].strip()}"
            for i, count in counts
            if not count and (number - first + 1, i) not in reached and (i is None or "__atomic" not in text[number])
        ]
    print(*missed, sep="\n")
    print(f"the C source has {ours} lines and {branches} branches; {len(missed)} are not reached")
    return 1 if missed or not branches else 0


if __name__ == "__main__":
    sys.exit(main())

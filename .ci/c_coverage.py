"""The tests must reach all lines and branches of peercred/_libc.c.

    python .ci/c_coverage.py

It needs pytest and what the build needs. The compiled module of this tree is
replaced by one that counts. Children that end by os._exit() count for nothing.
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


def main():
    with TemporaryDirectory() as directory:
        built = compile_module(ROOT, directory, "-O0 --coverage")
        files = [file for file in tests() if "command" not in file]  # it knows nothing of C
        command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
        generated = built.with_name("_libc.c").read_text()
        (data,) = built.parent.glob("*.gcda")
        gcov = ["gcov", "--branch-probabilities", "--json-format", "--stdout", data.name]
        report = json.loads(subprocess.check_output(gcov, cwd=data.parent))

    source = (ROOT / "peercred/_libc.c").read_text()
    first = generated[: generated.index(source)].count("\n") + 1  # the rest is cffi's
    text = dict(enumerate(source.splitlines(), first))
    (lines,) = (file["lines"] for file in report["files"] if file["file"].endswith("_libc.c"))
    ours = [line for line in lines if line["line_number"] in text]
    branches = [(line, branch) for line in ours for branch in line["branches"]]
    missed = [("line", line) for line in ours if not line["count"]]
    missed += [("branch", line) for line, branch in branches if not branch["count"]]
    for kind, line in missed:
        print(f"not reached, a {kind} of: {text[line['line_number']].strip()}")
    print(f"the C source has {len(ours)} lines and {len(branches)} branches; {len(missed)} are not reached")
    return 1 if missed or not branches else 0


if __name__ == "__main__":
    sys.exit(main())

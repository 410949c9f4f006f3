"""The tests must reach all lines and branches of peercred/_libc.c.

    python .ci/c_coverage.py

It needs pytest and what the build needs. The compiled module of this tree is
replaced by one that counts. Which thread wins a race does not count.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
SLOW = re.compile("integrations|architectures|build|fuzz|growth|notify")

# What cffi generates is before and after the source, and no part of it.
COMPILE = r"""
import build_ffi, shutil, sys
build_ffi.SOURCE = f'#line 1 "_libc.c of peercred"\n{build_ffi.SOURCE}\n#line 1 "/dev/null"\n'
print(shutil.copy(build_ffi.ffibuilder().compile(sys.argv[1]), "peercred"))
"""
# Children that end by os._exit() write down what they have reached, too.
PYTEST = """
import ctypes, os, pytest, sys
os._exit = ctypes.CDLL(None).exit
sys.exit(pytest.main())
"""


def tests():
    """The test files, except slow ones."""
    files = (str(file.relative_to(ROOT)) for file in sorted(ROOT.glob("tests/**/test_*.py")))
    return [file for file in files if not SLOW.search(file)]


def compile_module(tree, directory, flags, **options):
    """Compile a tree's C source, and put the module into the tree."""
    env = {**os.environ, "CFLAGS": flags}
    command = [sys.executable, "-B", "-c", COMPILE, directory]
    output = subprocess.check_output(command, cwd=tree, env=env, text=True, **options)
    return tree / output.splitlines()[-1]


def main():
    source = (ROOT / "peercred/_libc.c").read_text().splitlines()
    os.umask(0)  # other users write down what they have reached, too
    with TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        compile_module(ROOT, directory, "-O0 --coverage")
        env = {**os.environ, "PYTHONPATH": str(ROOT), "GCOV_ERROR_FILE": os.devnull}
        files = [file for file in tests() if "command" not in file]  # it knows nothing of C
        subprocess.run(
            [sys.executable, "-B", "-c", PYTEST, "-qp", "no:cacheprovider", *files], cwd=ROOT, env=env, check=True
        )
        gcov = ["gcov", "--branch-probabilities", "--json-format", "--stdout", "_libc.gcda"]
        report = json.loads(subprocess.check_output(gcov, cwd=f"{directory}/peercred"))
    (lines,) = (file["lines"] for file in report["files"] if file["file"].endswith("of peercred"))
    missed = []
    for line in lines:
        text = source[line["line_number"] - 1].strip()
        missed += [f"a line: {text}"] * (line["count"] == 0)
        missed += [f"a branch of: {text}" for way in line["branches"] if not way["count"] and "__atomic" not in text]
    print(*missed, sep="\n")
    branches = sum(len(line["branches"]) for line in lines)
    print(f"the C source has {len(lines)} lines and {branches} branches; {len(missed)} are not reached")
    return len(missed) > 0 or branches == 0


if __name__ == "__main__":
    sys.exit(main())

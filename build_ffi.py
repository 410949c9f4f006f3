"""The build of peercred, which compiles peercred/_libc.c, on Linux only.

pyproject.toml names this module twice: as the build backend, which is
hatchling's except that HATCH_BUILD_NO_HOOKS is ignored, and as its build hook.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory

from hatchling.build import *
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

# With this variable, hatchling would make a wheel without the compiled module.
os.environ.pop("HATCH_BUILD_NO_HOOKS", None)

LINUX = sys.platform == "linux"
# PyPy, and free-threaded and debug builds of CPython, have no abi3.
ABI3 = LINUX and sys.implementation.name == "cpython" and not sys.abiflags

SOURCE = Path(__file__).with_name("peercred").joinpath("_libc.c").read_text()

DECLARATIONS = """
    typedef int... pid_t;
    typedef int... uid_t;
    typedef int... gid_t;
    typedef int... socklen_t;

    struct ucred {
        pid_t pid;
        uid_t uid;
        gid_t gid;
        ...;
    };
    struct sockaddr_un {
        char sun_path[...];
        ...;
    };

    static const int AF_UNIX, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM;
    static const int SOL_SOCKET, SO_ACCEPTCONN, SO_DOMAIN, SO_PASSCRED, SO_PASSPIDFD, SO_PASSSEC, SO_TYPE;
    static const int MSG_CTRUNC, MSG_DONTWAIT, MSG_PEEK, SCM_CREDENTIALS, SCM_RIGHTS;

    /* libc's own, for who wants to call it. The C source uses it too. */
    int getsockopt(int sockfd, int level, int optname, void *optval, socklen_t *optlen);
"""


def ffibuilder():
    from cffi import FFI  # installed on Linux only

    ffi = FFI()
    ffi.cdef(DECLARATIONS)
    ffi.cdef(SOURCE[SOURCE.index("/* The interface") : SOURCE.index("/* End of the interface")])
    ffi.set_source(
        "peercred._libc",
        SOURCE,
        # The source defines it too, but after Python.h.
        define_macros=[("_GNU_SOURCE", None)],
        extra_compile_args=["-g0"],  # debug data would hold a temporary path
        py_limited_api=ABI3,
    )
    return ffi


# What setuptools finds in the environment, and takes apart as a shell does.
PROGRAMS = ("CC", "LDSHARED")
VARIABLES = (*PROGRAMS, "AR", "ARFLAGS", "CFLAGS", "CPP", "CPPFLAGS", "CXX", "LDCXXSHARED", "LDFLAGS")


def give_up(why):
    sys.exit(f"peercred cannot be compiled: {why}")


def words_of(name, default=""):
    """The words of a variable in the environment."""
    value = os.environ.get(name, default)
    try:
        words = shlex.split(value)
    except ValueError as error:
        give_up(f"{name}={value!r} in the environment: {error}")
    if name in PROGRAMS and not words and name in os.environ:
        give_up(f"{name}={value!r} in the environment names no program")
    return words


def missing():
    """What this machine lacks to compile the module, or None."""
    for name in VARIABLES:
        words_of(name)
    compiler = words_of("CC", sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        return f"a C compiler ({compiler[0]})"
    preprocess = [*compiler, *words_of("CPPFLAGS"), *words_of("CFLAGS"), "-I", sysconfig.get_path("include")]

    def complaint(source):
        ran = subprocess.run([*preprocess, "-E", "-x", "c", "-"], input=source, capture_output=True, text=True)
        return ran.returncode != 0 and (ran.stderr.strip() or f"{compiler[0]} ended with {ran.returncode}")

    if refused := complaint(""):
        give_up(refused)
    for header, name in {"sys/socket.h": "libc's headers", "Python.h": "Python's headers"}.items():
        if complaint(f"#include <{header}>\n"):
            return f"{name} ({header})"
    return None


class LibcBuildHook(BuildHookInterface):
    def initialize(self, version, build_data):
        if not LINUX:
            # A wheel of Python files alone, whose functions raise. Not
            # py3-none-any, because pip on Linux would prefer it to the sdist.
            build_data["tag"] = f"py3-none-{next(platform_tags())}"
            return
        if lack := missing():
            sys.exit(
                f"peercred must be compiled, and {lack} cannot be found. To install what is needed:\n"
                "Debian, Ubuntu: apt install gcc libc6-dev python3-dev    Fedora: dnf install gcc python3-devel\n"
                "Alpine: apk add gcc musl-dev python3-dev"
            )
        self.compiled = TemporaryDirectory()
        from cffi import VerificationError

        try:
            built = Path(ffibuilder().compile(self.compiled.name))
        except VerificationError as error:  # the compiler has said why
            give_up(error)
        # CPython 3.15 would call it _libc.abi3-x86_64-linux-gnu.so, which 3.13
        # does not find.
        name = "_libc.abi3.so" if ABI3 else built.name
        if version == "standard":
            build_data["force_include"][str(built)] = f"peercred/{name}"
        # An editable install needs it in the source tree. Otherwise it only
        # helps a Python that is started there, and the tree may be read-only.
        try:
            with TemporaryDirectory(dir=self.root) as beside:
                # Replace atomically: a process may have the old file mapped.
                Path(shutil.copy(built, beside)).replace(Path(self.root, "peercred", name))
        except OSError as error:
            if version == "editable":
                directory = Path(self.root, "peercred")
                sys.exit(f"an editable install compiles into {directory}, which cannot be written: {error.strerror}")
        build_data["pure_python"] = False
        if ABI3:
            platform = next(tag for tag in platform_tags() if tag.startswith("linux_"))
            build_data["tag"] = f"cp310-abi3-{platform}"
        else:
            build_data["infer_tag"] = True

    def finalize(self, version, build_data, artifact_path):
        if LINUX:
            self.compiled.cleanup()

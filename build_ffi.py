"""The build of peercred, which compiles peercred/_libc.c, on Linux only.

pyproject.toml names this module twice: as the build backend, which is
hatchling's except that HATCH_BUILD_NO_HOOKS is ignored, and as its build hook.
"""

import atexit
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from hatchling.build import *
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags, sys_tags

# It would make a wheel without the compiled module.
os.environ.pop("HATCH_BUILD_NO_HOOKS", None)

LINUX = sys.platform == "linux"
# PyPy, and free-threaded and debug builds of CPython, have no abi3.
ABI3 = LINUX and sys.implementation.name == "cpython" and not sys.abiflags

SOURCE = Path(__file__).with_name("peercred").joinpath("_libc.c").read_text()
# The types, constants and functions of it that Python sees.
MARKED = re.findall(r"^(?:static )?FOR_PYTHON (.*?(?:};|\)))$", SOURCE, re.MULTILINE | re.DOTALL)

# What Python sees of libc.
DECLARATIONS = """
    typedef int... pid_t, uid_t, gid_t, socklen_t;

    struct ucred {
        pid_t pid;
        uid_t uid;
        gid_t gid;
    };
    struct sockaddr_un { char sun_path[...]; ...; };

    int getsockopt(int sockfd, int level, int optname, void *optval, socklen_t *optlen);

    static const int AF_UNIX, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM;
    static const int SOL_SOCKET, SO_ACCEPTCONN, SO_DOMAIN, SO_TYPE;
    static const int MSG_CTRUNC, MSG_DONTWAIT, MSG_PEEK, SCM_CREDENTIALS, SCM_RIGHTS;
"""

HEADERS = {"sys/socket.h": "libc's headers", "Python.h": "Python's headers"}
# What setuptools takes from the environment.
VARIABLES = ("CC", "LDSHARED", "AR", "ARFLAGS", "CFLAGS", "CPP", "CPPFLAGS", "CXX", "LDCXXSHARED", "LDFLAGS")


def ffibuilder():
    from cffi import FFI  # installed on Linux only

    ffi = FFI()
    ffi.cdef(DECLARATIONS + ";".join(MARKED) + ";")
    # -g0, because debug data would hold a temporary path
    ffi.set_source("peercred._libc", SOURCE, extra_compile_args=["-D_GNU_SOURCE", "-g0"], py_limited_api=ABI3)
    return ffi


def missing():
    """What this machine lacks to compile the module, or None."""
    compiler = shlex.split(os.environ.get("CC", sysconfig.get_config_var("CC") or "cc"))
    if not compiler:
        raise ValueError("it names no program")
    if shutil.which(compiler[0]) is None:
        return f"a C compiler ({compiler[0]})"
    flags = shlex.split(f"{os.environ.get('CPPFLAGS', '')} {os.environ.get('CFLAGS', '')}")
    command = [*compiler, *flags, "-I", sysconfig.get_path("include"), "-E", "-x", "c", "-"]
    includes = "".join(f"#include <{header}>\n" for header in HEADERS)
    ran = subprocess.run(command, input=includes, capture_output=True, text=True)
    if ran.returncode == 0:
        return None
    for header, whose in HEADERS.items():
        if header in ran.stderr:
            return f"{whose} ({header})"
    raise ValueError(ran.stderr.strip() or f"{compiler[0]} ended with {ran.returncode}")


def compiled():
    """The compiled module, as a temporary file."""
    from cffi import VerificationError

    directory = mkdtemp()
    atexit.register(shutil.rmtree, directory)
    try:
        if lack := missing():
            sys.exit(
                f"peercred must be compiled, and {lack} cannot be found. To install what is needed:\n"
                "Debian, Ubuntu: apt install gcc libc6-dev python3-dev    Fedora: dnf install gcc python3-devel\n"
                "Alpine: apk add gcc musl-dev python3-dev"
            )
        return Path(ffibuilder().compile(directory))
    except (OSError, ValueError, VerificationError) as error:
        settings = [f"{name}={os.environ[name]!r}" for name in VARIABLES if name in os.environ]
        sys.exit(f"peercred cannot be compiled: {': '.join([*settings, str(error)])}")


class LibcBuildHook(BuildHookInterface):
    def initialize(self, version, build_data):
        if not LINUX:
            # Python files alone, whose functions raise. Not py3-none-any,
            # because pip on Linux would prefer it to the sdist.
            build_data["tag"] = f"py3-none-{next(platform_tags())}"
            return
        built = compiled()
        # CPython 3.15 would call it _libc.abi3-x86_64-linux-gnu.so, which 3.13
        # does not find.
        name = "_libc.abi3.so" if ABI3 else built.name
        package = Path(self.root, "peercred")
        if version == "standard":
            build_data["force_include"][str(built)] = f"peercred/{name}"
        # An editable install needs it in the source tree. Otherwise it only
        # helps a Python that is started there, and the tree may be read-only.
        try:
            with TemporaryDirectory(dir=package) as beside:
                # Replace atomically: a process may have the old file mapped.
                Path(shutil.copy(built, beside)).replace(package / name)
        except OSError as error:
            if version == "editable":
                sys.exit(f"an editable install compiles into {package}, which cannot be written: {error.strerror}")
        build_data["pure_python"] = False
        tag = next(tag for tag in sys_tags() if tag.platform.startswith("linux_"))
        build_data["tag"] = f"cp310-abi3-{tag.platform}" if ABI3 else str(tag)

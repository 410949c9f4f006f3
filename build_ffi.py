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

    struct peer {
        struct ucred cred;
        int groups;
    };

    struct owned {
        int released;
        int count[3];
        int fds[3][253]; /* FDS_MAX: the compiler checks it */
    };

    #define AF_BLUETOOTH ...
    #define AF_INET ...
    #define AF_INET6 ...
    #define AF_NETLINK ...
    #define AF_PACKET ...
    #define AF_UNIX ...
    #define AF_VSOCK ...
    #define MSG_CTRUNC ...
    #define MSG_DONTWAIT ...
    #define MSG_PEEK ...
    #define SCM_CREDENTIALS ...
    #define SCM_RIGHTS ...
    #define SOCK_DGRAM ...
    #define SOCK_SEQPACKET ...
    #define SOCK_STREAM ...

    #define SOL_SOCKET ...
    #define SO_ACCEPTCONN ...
    #define SO_DOMAIN ...
    #define SO_PASSCRED ...
    #define SO_PASSPIDFD ...
    #define SO_PASSSEC ...
    #define SO_TYPE ...

    #define ERRNO_MAX ...
    #define IN_DUPFD ...
    #define IN_GETPEERNAME ...
    #define IN_SO_DOMAIN ...
    #define IN_SO_TYPE ...

    #define GROUPS_MAX ...
    #define LABEL_MAX ...
    #define FDS_MAX ...
    #define OWN_PIDFD ...
    #define OWN_FDS ...
    #define OWN_STRAYS ...
    #define PASS_CREDS ...
    #define PASS_PIDFD ...
    #define PASS_LABEL ...
    #define PASS_FDS ...

    /* libc's own, for who wants to call it. The functions below use it in C. */
    int getsockopt(int sockfd, int level, int optname, void *optval, socklen_t *optlen);

    static struct ucred peercred(int fd);
    static struct peer peercred_and_groups(int fd, gid_t *gids, int count);
    static int peergroups(int fd, gid_t *gids, int count);
    static int peersec(int fd, char *label, socklen_t size);
    static int peerpidfd(int fd, struct owned *owned);
    static int int_option(int fd, int option);

    static int pass_options(int fd, int options);
    static int set_pass_options(int fd, int options);

    static int open_proc(struct owned *holder, struct owned *owned);
    static void move_owned(struct owned *from, struct owned *to, int kind);
    static int close_one(struct owned *owned, int kind);
    static void close_owned(struct owned *owned);

    struct received {
        struct ucred cred;
        ssize_t length;
        int flags;
        int label_length;
        int address_length;
        char address[...];
        int pidfd_error;
        int kept;
        int strays;
    };
    static struct received receive(int fd, char *data, size_t size, int flags, int options, int max_fds, char *label,
                                   struct owned *owned);
    static struct ucred overflow_ids(void);
"""

SOURCE = Path(__file__).with_name("peercred").joinpath("_libc.c").read_text()


def ffibuilder():
    from cffi import FFI  # installed on Linux only

    ffi = FFI()
    ffi.cdef(DECLARATIONS)
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

"""The C surface of peercred, and the hatchling hook that compiles it into the wheel, on Linux only."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

LINUX = sys.platform == "linux"
# PyPy and the free-threaded and debug builds of CPython do without abi3.
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

    #define AF_UNIX ...
    #define SOCK_DGRAM ...

    #define SOL_SOCKET ...
    #define SO_ACCEPTCONN ...
    #define SO_DOMAIN ...
    #define SO_PEERGROUPS ...
    #define SO_PEERPIDFD ...
    #define SO_PEERSEC ...
    #define SO_TYPE ...

    int getsockopt(int sockfd, int level, int optname, void *optval, socklen_t *optlen);

    static int peer_option(int fd, int option, void *value, int size);
    static struct ucred peercred(int fd);
"""

SOURCE = """
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

/* What headers older than the running kernel lack. MIPS, Alpha and PowerPC have the common numbers here. */
#ifndef SO_PEERGROUPS
#if defined(__hppa__)
#define SO_PEERGROUPS 0x4034
#elif defined(__sparc__)
#define SO_PEERGROUPS 61
#else
#define SO_PEERGROUPS 59
#endif
#endif
#ifndef SO_PEERPIDFD
#if defined(__hppa__)
#define SO_PEERPIDFD 0x404B
#elif defined(__sparc__)
#define SO_PEERPIDFD 86
#else
#define SO_PEERPIDFD 77
#endif
#endif

/* cffi lets go of the GIL around every call. getsockopt(2) never blocks, and to get the GIL back beside
   busy threads takes a switch interval of each, so this module keeps it, as CPython's socket.getsockopt
   does. Nothing that can block may be declared here. */
#undef Py_BEGIN_ALLOW_THREADS
#undef Py_END_ALLOW_THREADS
#define Py_BEGIN_ALLOW_THREADS {
#define Py_END_ALLOW_THREADS }

/* Asks for a SO_PEER* option; the length of the answer, or a negative errno. What the kernel leaves unwritten is
   -1, for 0 is root. A listening socket answers with its own identity and counts as not connected. That is looked
   up last: a socket may begin to listen at any moment, and never stops. */
static int peer_option(int fd, int option, void *value, int size)
{
    int listening = 1;
    socklen_t length = size, listening_length = sizeof listening;

    memset(value, 0xff, size);
    if (getsockopt(fd, SOL_SOCKET, option, value, &length) != 0
        || getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &listening_length) != 0)
        return -errno;
    if (listening)
        return -ENOTCONN;
    return length <= (socklen_t)size ? (int)length : -EPROTO;
}

/* SO_PEERCRED in one crossing: the credentials, or as pid a negative errno. No peer is a success to the
   kernel, with ids of -1. */
static struct ucred peercred(int fd)
{
    struct ucred cred;
    int length = peer_option(fd, SO_PEERCRED, &cred, sizeof cred);

    if (length < 0)
        cred.pid = length;
    else if (length != sizeof cred)
        cred.pid = -EPROTO;
    else if (cred.uid == (uid_t)-1 || cred.gid == (gid_t)-1)
        cred.pid = -ENOTCONN;
    return cred;
}
"""


def ffibuilder():
    from cffi import FFI  # build-system.requires has it on Linux only

    ffi = FFI()
    ffi.cdef(DECLARATIONS)
    ffi.set_source(
        "peercred._libc",
        SOURCE,
        define_macros=[("_GNU_SOURCE", None)],  # declares struct ucred; Python.h comes before SOURCE
        extra_compile_args=["-g0"],  # debug data would hold the temporary path
        py_limited_api=ABI3,
    )
    return ffi


class LibcBuildHook(BuildHookInterface):
    def initialize(self, version, build_data):
        if not LINUX:
            return  # a pure wheel, whose functions raise
        with TemporaryDirectory(dir=self.root) as tmp:
            built = Path(ffibuilder().compile(tmp))
            # Into the source tree, where an editable install looks for it; at one stroke, for a
            # running process may have the old one mapped.
            built.replace(Path(self.root, "peercred", built.name))
        build_data["artifacts"].append(f"/peercred/{built.name}")
        build_data["pure_python"] = False
        if ABI3:
            platform = next(tag for tag in platform_tags() if tag.startswith("linux_"))
            build_data["tag"] = f"cp310-abi3-{platform}"
        else:
            build_data["infer_tag"] = True

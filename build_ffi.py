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
    #define MSG_CMSG_CLOEXEC ...
    #define MSG_CTRUNC ...
    #define SCM_CREDENTIALS ...
    #define SCM_PIDFD ...
    #define SCM_RIGHTS ...
    #define SCM_SECURITY ...
    #define SOCK_DGRAM ...
    #define SOCK_STREAM ...

    #define SOL_SOCKET ...
    #define SO_ACCEPTCONN ...
    #define SO_DOMAIN ...
    #define SO_PASSCRED ...
    #define SO_PASSPIDFD ...
    #define SO_PASSSEC ...
    #define SO_PEERGROUPS ...
    #define SO_PEERPIDFD ...
    #define SO_PEERSEC ...
    #define SO_TYPE ...

    #define CREDS_ROOM ...
    #define PIDFD_ROOM ...
    #define LABEL_MAX ...
    #define LABEL_ROOM ...

    int getsockopt(int sockfd, int level, int optname, void *optval, socklen_t *optlen);
    int setsockopt(int sockfd, int level, int optname, const void *optval, socklen_t optlen);

    static int peer_option(int fd, int option, void *value, int size);
    static struct ucred peercred(int fd);
    static int passing(int fd);
    static struct ucred unpack_ucred(const char *bytes);
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

#ifndef SO_PASSPIDFD
#if defined(__hppa__)
#define SO_PASSPIDFD 0x404A
#elif defined(__sparc__)
#define SO_PASSPIDFD 85
#else
#define SO_PASSPIDFD 76
#endif
#endif
#ifndef SCM_SECURITY
#define SCM_SECURITY 3
#endif
#ifndef SCM_PIDFD
#define SCM_PIDFD 4
#endif

/* Room for each control message. A pidfd comes last, and without padding behind it, where half a descriptor fits. */
#define CREDS_ROOM CMSG_SPACE(sizeof(struct ucred))
#define PIDFD_ROOM CMSG_LEN(sizeof(int))
/* The page that /proc/<pid>/attr/current takes, and many times what labels are. */
#define LABEL_MAX 4096
#define LABEL_ROOM CMSG_SPACE(LABEL_MAX)

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

/* Which of SO_PASSCRED (1), SO_PASSPIDFD (2) and SO_PASSSEC (4) are on, or a negative errno. Of another family's
   socket Linux 6.12 says that too, and SO_PASSCRED can be on there, to no effect. */
static int passing(int fd)
{
    static const int options[] = {SO_PASSCRED, SO_PASSPIDFD, SO_PASSSEC};
    int i, on, family = -1, mask = 0;
    socklen_t length = sizeof family;

    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &length) != 0)
        return -errno;
    if (family != AF_UNIX)
        return -EAFNOSUPPORT;
    for (i = 0; i < 3; i++) {
        on = 0;
        length = sizeof on;
        if (getsockopt(fd, SOL_SOCKET, options[i], &on, &length) == 0)
            mask |= !!on << i;
        else if (errno != ENOPROTOOPT) /* an option that the kernel lacks is off */
            return -errno;
    }
    return mask;
}

/* The payload of SCM_CREDENTIALS, of whose length the caller has made sure, and which need not be aligned. */
static struct ucred unpack_ucred(const char *bytes)
{
    struct ucred cred;

    memcpy(&cred, bytes, sizeof cred);
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

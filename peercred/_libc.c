/* What asks the kernel. cffi compiles this file as a part of peercred._libc, with
   Python.h before it. build_ffi.py declares what Python sees of it. */

#define _GNU_SOURCE 1 /* for struct ucred */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* For headers that are older than the running kernel. MIPS, Alpha and PowerPC
   have the common numbers here. */
#if defined(__hppa__)
#define NUMBER(common, parisc, sparc) parisc
#elif defined(__sparc__)
#define NUMBER(common, parisc, sparc) sparc
#else
#define NUMBER(common, parisc, sparc) common
#endif
#ifndef SO_PEERGROUPS
#define SO_PEERGROUPS NUMBER(59, 0x4034, 61)
#endif
#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD NUMBER(76, 0x404A, 85)
#endif
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD NUMBER(77, 0x404B, 86)
#endif
#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS NUMBER(83, 0x4051, 0x5C)
#endif
#ifndef SCM_SECURITY
#define SCM_SECURITY 3
#endif
#ifndef SCM_PIDFD
#define SCM_PIDFD 4
#endif

/* The kernel's limits: supplementary groups of a process (NGROUPS_MAX),
   descriptors in a message (SCM_MAX_FD), and bytes of a label (a page, because
   /proc/<pid>/attr/current takes no more). */
#define GROUPS_MAX 65536
#define FDS_MAX 253
#define LABEL_MAX 4096

/* close(2) can block, so release the GIL for it. PyPy has already released it.
   The macros are still Python's own here: see below. */
static void close_without_gil(int fd)
{
#if defined(Py_PYTHON_H) && !defined(PYPY_VERSION)
    Py_BEGIN_ALLOW_THREADS
    close(fd);
    Py_END_ALLOW_THREADS
#else
    close(fd);
#endif
}

/* Everything else keeps the GIL, as CPython's socket.getsockopt does. cffi
   would release it around each call, but these calls never block, and getting
   it back costs a switch interval for each busy thread. */
#undef Py_BEGIN_ALLOW_THREADS
#undef Py_END_ALLOW_THREADS
#define Py_BEGIN_ALLOW_THREADS {
#define Py_END_ALLOW_THREADS }

/* A function that fails returns its errno, negated, as its result or as the pid
   of its struct. (An unsigned 32-bit answer needs a wider result, such as
   int64_t.) cffi's saved errno would not do: a signal handler may overwrite it
   before Python reads it.

   If another call failed than the one for the option, the result is less by one
   of these. The kernel has no greater errno than ERRNO_MAX. */
#define ERRNO_MAX 4095
#define IN_GETPEERNAME (1 * (ERRNO_MAX + 1))
#define IN_DUPFD (2 * (ERRNO_MAX + 1))
#define IN_SO_TYPE (3 * (ERRNO_MAX + 1))
#define IN_SO_DOMAIN (4 * (ERRNO_MAX + 1))

/* Asks for an option, and returns the answer's length or a negative errno. The
   caller must check that the answer is long enough. The buffer starts as 0xff:
   bytes the kernel does not write must never read as uid 0. */
static int ask(int fd, int option, void *value, socklen_t size)
{
    socklen_t length = size;

    memset(value, 0xff, size);
    if (getsockopt(fd, SOL_SOCKET, option, value, &length) != 0)
        return -errno;
    return length <= size ? (int)length : -EPROTO;
}

/* The value of an option that is a number from 0 up, or a negative errno. */
static int int_option(int fd, int option)
{
    int value, length = ask(fd, option, &value, sizeof value);

    if (length < 0)
        return length;
    return length == (int)sizeof value && value >= 0 ? value : -EPROTO;
}

/* Is the socket connected, to one Unix socket? 0, or a negative result.

   SO_PEER* also succeed without a peer. A listening socket answers with its own
   ids, and so does a Bluetooth socket, connected or not. A datagram socketpair
   still names its maker after it has been connected elsewhere, but then its
   peer has an address. */
static int check_peer(int fd)
{
    struct sockaddr_un address;
    socklen_t length = sizeof address;
    int type;

    address.sun_family = AF_UNSPEC;
    if (getpeername(fd, (struct sockaddr *)&address, &length) != 0)
        return -errno - IN_GETPEERNAME;
    if (address.sun_family == AF_UNSPEC) /* nothing has been written */
        return -EPROTO - IN_GETPEERNAME;
    if (address.sun_family != AF_UNIX)
        return -EAFNOSUPPORT;
    if (length <= offsetof(struct sockaddr_un, sun_path))
        return 0;
    type = int_option(fd, SO_TYPE);
    if (type < 0)
        return type - IN_SO_TYPE;
    return type == SOCK_DGRAM ? -ENOTCONN : 0;
}

/* The same as ask(), if the socket has a peer. Look for the peer last: a thread
   can make the socket listen at any moment, unless it is connected. If there is
   none, say that first: the option's own errno differs, or is "unsupported". */
static int ask_peer(int fd, int option, void *value, socklen_t size)
{
    int length = ask(fd, option, value, size), error = check_peer(fd);

    return error < 0 ? error : length;
}

/* No credentials: the pid is a negative result. */
static struct ucred refused(int error)
{
    struct ucred cred;

    cred.pid = error;
    cred.uid = (uid_t)-1;
    cred.gid = (gid_t)-1;
    return cred;
}

/* The kernel reports "nobody" as a success, with ids of -1. Its pids are from 0
   up: if this one is not, nothing has been written. */
static struct ucred checked(struct ucred cred, int length, int nobody)
{
    if (length != (int)sizeof cred || cred.pid < 0)
        return refused(length < 0 ? length : -EPROTO);
    return cred.uid == (uid_t)-1 || cred.gid == (gid_t)-1 ? refused(nobody) : cred;
}

static struct ucred peercred(int fd)
{
    struct ucred cred;
    int length = ask_peer(fd, SO_PEERCRED, &cred, sizeof cred);

    return checked(cred, length, -ENOTCONN);
}

/* The number of groups, or a negative result (-ERANGE: too little room). The
   kernel writes no -1. */
static int number_of_groups(const gid_t *gids, int length)
{
    const int size = sizeof *gids;
    int i;

    if (length < 0)
        return length;
    for (i = 0; i < length / size; i++)
        if (gids[i] == (gid_t)-1)
            return -EPROTO;
    return length % size == 0 ? i : -EPROTO;
}

static int peergroups(int fd, gid_t *gids, int count)
{
    return number_of_groups(gids, ask_peer(fd, SO_PEERGROUPS, gids, (socklen_t)count * sizeof *gids));
}

/* A struct ucred, and what peergroups() says. */
struct peer {
    pid_t pid;
    uid_t uid;
    gid_t gid;
    int groups;
};

/* Credentials and groups of one peer. Another thread may replace the descriptor
   at any moment, so ask a duplicate of our own. It must not become number 2 of
   a process without standard error: what another thread logs would go to the
   peer. When it is closed, it may be the last descriptor of its socket. */
static struct peer peercred_and_groups(int fd, gid_t *gids, int count)
{
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 3), length, groups, error;
    struct ucred cred;

    if (own < 0) {
        /* EINVAL: no number from 3 up is allowed (RLIMIT_NOFILE). */
        error = errno == EINVAL ? EMFILE : errno;
        cred = refused(-error - IN_DUPFD);
        return (struct peer){cred.pid, cred.uid, cred.gid, 0};
    }
    length = ask(own, SO_PEERCRED, &cred, sizeof cred);
    groups = number_of_groups(gids, ask(own, SO_PEERGROUPS, gids, (socklen_t)count * sizeof *gids));
    error = check_peer(own);
    close_without_gil(own);
    cred = checked(cred, error < 0 ? error : length, -ENOTCONN);
    return (struct peer){cred.pid, cred.uid, cred.gid, groups};
}

/* The length of the label, or a negative result. */
static int peersec(int fd, char *label, socklen_t size)
{
    int length = ask_peer(fd, SO_PEERSEC, label, size);

    /* No security module's label ends so: this byte has not been written. */
    return length > 0 && label[length - 1] == (char)0xff ? -EPROTO : length;
}

/* A new descriptor, or a negative result. With less room than an int, the
   kernel would make a descriptor and cut off its number. */
static int peerpidfd(int fd)
{
    int pidfd = int_option(fd, SO_PEERPIDFD), error = check_peer(fd);

    if (error == 0)
        return pidfd;
    if (pidfd >= 0)
        close(pidfd); /* a listening socket gave one of this process */
    return error;
}

/* What may come with a message: a bit for each option. */
#define PASS_CREDS 1
#define PASS_PIDFD 2
#define PASS_LABEL 4
#define PASS_FDS 8

static const struct {
    int bit, option, without; /* without: its value if the kernel lacks it */
} pass_options[] = {
    {PASS_CREDS, SO_PASSCRED, 0},
    {PASS_PIDFD, SO_PASSPIDFD, 0},
    {PASS_LABEL, SO_PASSSEC, 0},
    {PASS_FDS, SO_PASSRIGHTS, 1},
};
#define PASS_OPTIONS (int)(sizeof pass_options / sizeof *pass_options)

/* Which of these options are on, or a negative errno. Up to Linux 6.12, sockets
   of other families have SO_PASSCRED too, without any effect. */
static int enabled(int fd, int options)
{
    int i, on, bits = 0, family = int_option(fd, SO_DOMAIN);

    if (family < 0)
        return family - IN_SO_DOMAIN;
    if (family != AF_UNIX)
        return -EAFNOSUPPORT;
    for (i = 0; i < PASS_OPTIONS; i++) {
        if ((options & pass_options[i].bit) == 0)
            continue;
        on = int_option(fd, pass_options[i].option);
        if (on == -ENOPROTOOPT)
            on = pass_options[i].without;
        if (on < 0)
            return on;
        if (on)
            bits |= pass_options[i].bit;
    }
    return bits;
}

static int set_option(int fd, int i, int options)
{
    int on = (options & pass_options[i].bit) != 0;

    if (setsockopt(fd, SOL_SOCKET, pass_options[i].option, &on, sizeof on) == 0)
        return 0;
    /* An option that the kernel lacks need not be turned off. */
    return errno == ENOPROTOOPT && (!on || pass_options[i].without) ? 0 : -errno;
}

/* Turns these options on, and the others off. After an error, all are as they
   were. Returns 0 or a negative errno. */
static int set_enabled(int fd, int options)
{
    int i, error, before = enabled(fd, ~0);

    if (before < 0)
        return before;
    for (i = 0; i < PASS_OPTIONS; i++) {
        error = set_option(fd, i, options);
        if (error != 0) {
            while (i-- > 0)
                set_option(fd, i, before);
            return error;
        }
    }
    return 0;
}

/* The size of a message's control data with this many descriptors. The kernel
   puts the pidfd last. The last item gets no padding, because CMSG_SPACE of one
   descriptor has room for two. */
static int control_size(int options, int fds)
{
    size_t size = 0, attached = (size_t)fds * sizeof(int);

    if (options & PASS_CREDS)
        size += CMSG_SPACE(sizeof(struct ucred));
    if (options & PASS_LABEL)
        size += CMSG_SPACE(LABEL_MAX);
    if (fds > 0)
        size += options & PASS_PIDFD ? CMSG_SPACE(attached) : CMSG_LEN(attached);
    if (options & PASS_PIDFD)
        size += CMSG_LEN(sizeof(int));
    return (int)size;
}

/* The payload of SCM_CREDENTIALS, which need not be aligned. EMSGSIZE: it is
   cut off. ENODATA: it names nobody. */
static struct ucred unpack_ucred(const char *payload, size_t length)
{
    struct ucred cred;

    if (length != sizeof cred)
        return refused(-EMSGSIZE);
    memcpy(&cred, payload, sizeof cred);
    return checked(cred, sizeof cred, -ENODATA);
}

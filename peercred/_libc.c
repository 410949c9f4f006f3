/* What asks the kernel. cffi compiles it into peercred._libc, after Python.h. */

#define _GNU_SOURCE 1 /* for struct ucred */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>

/* For headers older than the kernel. MIPS, Alpha and PowerPC have the common
   numbers here. */
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

/* Marks what build_ffi.py declares to cffi: at the beginning of a line, or after
   `static`, up to a line that ends in `)` or `};`. */
#define FOR_PYTHON

/* The kernel's limits: groups of a process (NGROUPS_MAX), descriptors in a message
   (SCM_MAX_FD), bytes of a label (/proc/<pid>/attr/current takes no more). */
FOR_PYTHON enum { GROUPS_MAX = 65536, FDS_MAX = 253, LABEL_MAX = 4096 };

/* A function that fails returns -errno, as its result or in its struct. (A wider
   answer than 31 bits needs a wider result.) If it was not the option's own call
   that failed, one of these is subtracted; the last four are in the order of the
   PASS_* bits. cffi's saved errno would not do: a signal handler may change it
   before Python reads it. */
FOR_PYTHON enum { ERRNO_MAX = 4095, IN_GETPEERNAME = 1 << 12, IN_DUPFD = 2 << 12, IN_SO_TYPE = 3 << 12,
                  IN_SO_DOMAIN = 4 << 12, IN_SO_PASSCRED = 5 << 12, IN_SO_PASSPIDFD = 6 << 12, IN_SO_PASSSEC = 7 << 12,
                  IN_SO_PASSRIGHTS = 8 << 12 };

/* For close(2) and recvmsg(2), which can block. PyPy has released its lock. */
#if defined(Py_PYTHON_H) && !defined(PYPY_VERSION)
#define WITHOUT_GIL(statement) Py_BEGIN_ALLOW_THREADS statement Py_END_ALLOW_THREADS
#else
#define WITHOUT_GIL(statement) statement
#endif

/* The length of the answer, which the caller must check, or -errno. The buffer
   starts as 0xff: bytes the kernel does not write must never read as uid 0. */
static int ask(int fd, int option, void *value, socklen_t size)
{
    socklen_t length = size;

    memset(value, 0xff, size);
    if (getsockopt(fd, SOL_SOCKET, option, value, &length) != 0)
        return -errno;
    return length <= size ? (int)length : -EPROTO;
}

/* An option that is an int from 0 up, or -errno. */
static FOR_PYTHON int int_option(int fd, int option)
{
    int value, length = ask(fd, option, &value, sizeof value);

    if (length < 0)
        return length;
    return length == (int)sizeof value && value >= 0 ? value : -EPROTO;
}

/* Open descriptors. Each is taken in one atomic step, so no two threads get the
   same. */
FOR_PYTHON struct owned {
    int released; /* somebody else owns them */
    int count[3];
    int fds[3][FDS_MAX];
};
FOR_PYTHON enum { OWN_PIDFD, OWN_FDS, OWN_STRAYS /* what nobody asked for */ };

/* Returns 0 if there is no owner, or no room. */
static int add_owned(struct owned *owned, int kind, int room, int fd)
{
    if (owned == NULL || owned->count[kind] >= room)
        return 0;
    owned->fds[kind][owned->count[kind]++] = fd;
    return 1;
}

/* Moves all of a kind, if there are any. */
static FOR_PYTHON void move_owned(struct owned *from, struct owned *to, int kind)
{
    int count = __atomic_exchange_n(&from->count[kind], 0, __ATOMIC_ACQ_REL);

    if (count > 0) {
        memcpy(to->fds[kind], from->fds[kind], (size_t)count * sizeof(int));
        __atomic_store_n(&to->count[kind], count, __ATOMIC_RELEASE);
    }
}

/* Closes a descriptor of this kind or a later one. Was there one? */
static FOR_PYTHON int close_one(struct owned *owned, int kind)
{
    for (; kind <= OWN_STRAYS; kind++) {
        int *left = &owned->count[kind], count = __atomic_load_n(left, __ATOMIC_ACQUIRE);

        while (count > 0)
            if (__atomic_compare_exchange_n(left, &count, count - 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
                WITHOUT_GIL(close(owned->fds[kind][count - 1]);)
                return 1;
            }
    }
    return 0;
}

/* The destructor. PyPy calls it late, so it warns only on CPython. */
static FOR_PYTHON void close_owned(struct owned *owned)
{
    if (owned->released)
        return;
#if defined(Py_PYTHON_H) && !defined(PYPY_VERSION)
    int left = owned->count[OWN_PIDFD] + owned->count[OWN_FDS];

    if (left > 0 && PyErr_WarnFormat(PyExc_ResourceWarning, 1, "peercred closes %d descriptors that nobody has closed", left) < 0)
        PyErr_WriteUnraisable(NULL);
#endif
    while (close_one(owned, 0))
        ;
}

/* Does a socket without a peer have ids of -1, as on Linux? gVisor before
   release-20251103 answers with the ids of whoever asks, which would make every
   client the server's own user. Asked until it is known, which is never if no
   socket can be made (seccomp). */
static int is_sound(void)
{
    static int known;
    struct ucred nobody;

    if (__atomic_load_n(&known, __ATOMIC_RELAXED))
        return 1;
    int alone = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (alone < 0)
        return 1;
    ask(alone, SO_PEERCRED, &nobody, sizeof nobody); /* after an error, its ids are -1 too */
    close(alone); /* it cannot block */
    if (nobody.uid != (uid_t)-1)
        return 0;
    __atomic_store_n(&known, 1, __ATOMIC_RELAXED);
    return 1;
}

/* 0 if the socket is connected to one Unix socket. SO_PEER* succeed without that:
   listening sockets (ENOTCONN here) and all Bluetooth sockets answer with their
   own ids. A datagram socketpair still names its maker when it is connected
   elsewhere, to an address. */
static int check_peer(int fd)
{
    struct sockaddr_un address;
    socklen_t length = sizeof address;

    if (!is_sound())
        return -ENOPROTOOPT;
    address.sun_family = AF_UNSPEC;
    if (getpeername(fd, (struct sockaddr *)&address, &length) != 0)
        return -errno - IN_GETPEERNAME;
    if (address.sun_family == AF_UNSPEC) /* nothing has been written */
        return -EPROTO - IN_GETPEERNAME;
    if (address.sun_family != AF_UNIX)
        return -EAFNOSUPPORT;
    if (length <= sizeof address.sun_family)
        return 0; /* the peer has no address */
    int type = int_option(fd, SO_TYPE);
    if (type < 0)
        return type - IN_SO_TYPE;
    return type == SOCK_DGRAM ? -ENOTCONN : 0;
}

/* The same as ask(), if the socket has a peer. If not, that is the error. Look for
   the peer last: until the socket is connected, a thread can make it listen. */
static int ask_peer(int fd, int option, void *value, socklen_t size)
{
    int length = ask(fd, option, value, size), error = check_peer(fd);

    return error < 0 ? error : length;
}

static struct ucred refused(int error)
{
    return (struct ucred){.pid = error, .uid = (uid_t)-1, .gid = (gid_t)-1};
}

/* Ids of -1 mean that there is no peer. A negative pid has not been written. */
static struct ucred checked(struct ucred cred, int length, int if_no_peer)
{
    if (length != (int)sizeof cred || cred.pid < 0)
        return refused(length < 0 ? length : -EPROTO);
    return cred.uid == (uid_t)-1 || cred.gid == (gid_t)-1 ? refused(if_no_peer) : cred;
}

static FOR_PYTHON struct ucred peercred(int fd)
{
    struct ucred cred;
    int length = ask_peer(fd, SO_PEERCRED, &cred, sizeof cred);

    return checked(cred, length, -ENOTCONN);
}

/* The number of groups. A group of -1 has not been written. */
static int number_of_groups(const gid_t *gids, int length)
{
    const int size = sizeof *gids;

    if (length < 0)
        return length;
    for (int i = 0; i < length / size; i++)
        if (gids[i] == (gid_t)-1)
            return -EPROTO;
    return length % size == 0 ? length / size : -EPROTO;
}

static FOR_PYTHON int peergroups(int fd, gid_t *gids, int count)
{
    return number_of_groups(gids, ask_peer(fd, SO_PEERGROUPS, gids, (socklen_t)count * sizeof *gids));
}

FOR_PYTHON struct peer {
    struct ucred cred;
    int groups; /* what peergroups() says */
};

/* Another thread may replace the descriptor, so ask a duplicate. As number 2, it
   would get what other threads log to standard error. If it is the socket's last
   descriptor, closing it can block. */
static FOR_PYTHON struct peer peercred_and_groups(int fd, gid_t *gids, int count)
{
    int duplicate = fcntl(fd, F_DUPFD_CLOEXEC, 3), length, error;
    struct peer peer;

    if (duplicate < 0) /* EINVAL: RLIMIT_NOFILE allows none from 3 up */
        return (struct peer){refused(-(errno == EINVAL ? EMFILE : errno) - IN_DUPFD), 0};
    length = ask(duplicate, SO_PEERCRED, &peer.cred, sizeof peer.cred);
    peer.groups = number_of_groups(gids, ask(duplicate, SO_PEERGROUPS, gids, (socklen_t)count * sizeof *gids));
    error = check_peer(duplicate);
    WITHOUT_GIL(close(duplicate);)
    peer.cred = checked(peer.cred, error < 0 ? error : length, -ENOTCONN);
    return peer;
}

static FOR_PYTHON int peersec(int fd, char *label, socklen_t size)
{
    int length = ask_peer(fd, SO_PEERSEC, label, size);

    /* No label ends so: this byte has not been written. */
    return length > 0 && label[length - 1] == (char)0xff ? -EPROTO : length;
}

/* With less room than an int, the kernel would cut off the new pidfd's number. */
static FOR_PYTHON int peerpidfd(int fd, struct owned *owned)
{
    int pidfd = int_option(fd, SO_PEERPIDFD), error = check_peer(fd);

    if (error == 0 && pidfd >= 0)
        add_owned(owned, OWN_PIDFD, 1, pidfd);
    else if (pidfd >= 0)
        close(pidfd); /* a listening socket gave one of this process */
    return error < 0 ? error : pidfd;
}

/* ESRCH: the process has been reaped. ENOENT: this /proc does not show it.
   (/proc/self has the descriptors of the thread group's leader.) */
static int pid_in_proc(int pidfd)
{
    char path[64], text[1024] = "";

    snprintf(path, sizeof path, "/proc/thread-self/fdinfo/%d", pidfd);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return -errno;
    const char *line = read(file, text, sizeof text - 1) > 0 ? strstr(text, "\nPid:") : NULL;
    close(file);
    int pid = line == NULL ? 0 : atoi(line + strlen("\nPid:"));
    return pid > 0 ? pid : pid < 0 ? -ESRCH : -ENOENT;
}

static int open_directory(int pid)
{
    char path[32];
    struct statfs mounted;

    snprintf(path, sizeof path, "/proc/%d", pid);
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return errno == EPERM ? -ENOENT : -errno; /* EPERM: hidepid=1 */
    if (fstatfs(directory, &mounted) == 0 && mounted.f_type == 0x9FA0) /* PROC_SUPER_MAGIC */
        return directory;
    close(directory);
    return -ENOENT;
}

/* Until a process has been reaped, nobody else has its pid, so look again. While
   the pidfd is owned, nobody has closed it and opened another, so look at the count
   last. */
static FOR_PYTHON int open_proc(struct owned *holder, struct owned *owned)
{
    int pidfd = holder->fds[OWN_PIDFD][0], pid = pid_in_proc(pidfd), error;
    int directory = pid < 0 ? pid : open_directory(pid);

    pid = pid_in_proc(pidfd);
    error = __atomic_load_n(&holder->count[OWN_PIDFD], __ATOMIC_ACQUIRE) == 0 ? -EBADF : pid < 0 ? pid : 0;
    if (error == 0 && directory >= 0)
        add_owned(owned, OWN_FDS, 1, directory);
    else if (directory >= 0)
        close(directory);
    return error < 0 ? error : directory;
}

/* What may come with a message: a bit for each option. */
FOR_PYTHON enum { PASS_CREDS = 1, PASS_PIDFD = 2, PASS_LABEL = 4, PASS_FDS = 8 };

/* In the order of the bits. Without SO_PASSRIGHTS, a kernel passes descriptors. */
static const int OPTIONS[] = {SO_PASSCRED, SO_PASSPIDFD, SO_PASSSEC, SO_PASSRIGHTS};
enum { OPTIONS_COUNT = sizeof OPTIONS / sizeof *OPTIONS };
#define IN_OPTION(i) (IN_SO_PASSCRED + ((i) << 12))

/* Has the kernel no such option? (EOPNOTSUPP: SO_PASSSEC, from Linux 6.16 on,
   without CONFIG_SECURITY_NETWORK.) */
static int is_lacking(int error)
{
    return error == ENOPROTOOPT || error == EOPNOTSUPP;
}

/* Which of these are on. (Up to Linux 6.12, other families have SO_PASSCRED too,
   without any effect.) */
static FOR_PYTHON int pass_options(int fd, int options)
{
    int bits = 0, family = int_option(fd, SO_DOMAIN);

    if (family < 0)
        return family - IN_SO_DOMAIN;
    if (family != AF_UNIX)
        return -EAFNOSUPPORT;
    for (int i = 0; i < OPTIONS_COUNT; i++) {
        int on = options & 1 << i ? int_option(fd, OPTIONS[i]) : 0;

        if (is_lacking(-on))
            on = OPTIONS[i] == SO_PASSRIGHTS;
        if (on < 0)
            return on - IN_OPTION(i);
        bits |= (on != 0) << i;
    }
    return bits;
}

static int set_option(int fd, int i, int options)
{
    int on = options >> i & 1, error = 0;

    if (setsockopt(fd, SOL_SOCKET, OPTIONS[i], &on, sizeof on) != 0)
        error = errno;
    else if (on) /* gVisor accepts what it lacks */
        error = -MIN(int_option(fd, OPTIONS[i]), 0);
    if (!is_lacking(error))
        return error == 0 ? 0 : -error - IN_OPTION(i);
    /* What the kernel lacks need not be turned off. */
    return !on || OPTIONS[i] == SO_PASSRIGHTS ? 0 : -ENOPROTOOPT - IN_OPTION(i);
}

/* Turns these on and the others off. After an error, all are as before. */
static FOR_PYTHON int set_pass_options(int fd, int options)
{
    int i, error = 0, before = pass_options(fd, ~0);

    if (before < 0)
        return before;
    for (i = 0; i < OPTIONS_COUNT && error == 0; i++)
        error = set_option(fd, i, options);
    while (error != 0 && i-- > 0)
        set_option(fd, i, before);
    return error;
}

/* The pidfd comes last. The last item gets no padding, because CMSG_SPACE of one
   descriptor has room for two. */
static size_t control_size(int options, int fds)
{
    size_t attached = (size_t)fds * sizeof(int), last = options & PASS_PIDFD ? sizeof(int) : attached;

    return (options & PASS_CREDS ? CMSG_SPACE(sizeof(struct ucred)) : 0)
         + (options & PASS_LABEL ? CMSG_SPACE(LABEL_MAX) : 0)
         + (fds > 0 ? CMSG_SPACE(attached) : 0)
         + (options & PASS_PIDFD ? CMSG_SPACE(sizeof(int)) : 0)
         - (CMSG_SPACE(last) - CMSG_LEN(last));
}

FOR_PYTHON struct received {
    struct ucred cred; /* pid < 0 if there are none */
    ssize_t length;    /* of the data, or -errno */
    struct sockaddr_un address;
    int address_length; /* 0 or less if there is none */
    int label_length;   /* 0 if there is none */
    int flags;
    int pidfd_error; /* -errno if the kernel opened none */
    int kept;        /* descriptors that are owned now, except strays */
};

/* Keeps up to `room` descriptors. The others are strays. Without an owner, they
   came in room for an option that another process has turned off. */
static void keep_fds(struct received *received, struct owned *owned, int kind, int room, const char *fds, size_t size)
{
    int fd;

    for (; size >= sizeof fd; fds += sizeof fd, size -= sizeof fd) {
        memcpy(&fd, fds, sizeof fd);
        if (fd < 0) {
            received->pidfd_error = fd;
        } else if (add_owned(owned, kind, room, fd)) {
            received->kept++;
        } else {
            received->flags |= MSG_CTRUNC;
            if (!add_owned(owned, OWN_STRAYS, FDS_MAX, fd))
                WITHOUT_GIL(close(fd);)
        }
    }
}

/* recvmsg(2) with room for these options and max_fds. EMSGSIZE: the credentials or
   the label are incomplete. */
static FOR_PYTHON struct received receive(int fd, char *data, size_t size, int flags, int options, int max_fds,
                                          char *label, struct owned *owned)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(LABEL_MAX)
                                          + CMSG_SPACE(FDS_MAX * sizeof(int)) + CMSG_SPACE(sizeof(int))];
    size_t control_room = control_size(options, max_fds);
    struct received received = {.cred = refused(-ENODATA)};
    struct iovec buffer = {data, size};
    struct msghdr message = {
        .msg_name = &received.address, .msg_namelen = sizeof received.address,
        .msg_iov = &buffer, .msg_iovlen = 1,
        .msg_control = control, .msg_controllen = control_room,
    };
    int stamped = 0, incomplete = 0;

    WITHOUT_GIL(
        received.length = recvmsg(fd, &message, flags | MSG_CMSG_CLOEXEC);
        if (received.length < 0)
            received.length = -errno; /* getting the GIL back may change it */
    )
    if (received.length < 0)
        return received;

    /* Believe no length beyond our own buffers: MSG_TRUNC reports all of a datagram,
       and a full address has 111 of 110 bytes. */
    received.length = MIN(received.length, (ssize_t)size);
    message.msg_namelen = MIN(message.msg_namelen, (socklen_t)sizeof received.address);
    message.msg_controllen = MIN(message.msg_controllen, control_room);
    received.address_length = (int)message.msg_namelen - (int)sizeof received.address.sun_family;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(&message); part != NULL; part = CMSG_NXTHDR(&message, part)) {
        /* CMSG_NXTHDR may believe the length, as musl does. */
        part->cmsg_len = MIN(part->cmsg_len, (size_t)(control + message.msg_controllen - (char *)part));
        if (part->cmsg_len < CMSG_LEN(0))
            break;
        const char *payload = (const char *)CMSG_DATA(part);
        size_t length = part->cmsg_len - CMSG_LEN(0);
        int type = part->cmsg_level == SOL_SOCKET ? part->cmsg_type : -1;

        if (type == SCM_CREDENTIALS) {
            incomplete |= stamped++ || length != sizeof received.cred;
            if (!incomplete)
                memcpy(&received.cred, payload, sizeof received.cred);
        } else if (type == SCM_SECURITY && label != NULL) {
            received.label_length = (int)MIN(length, LABEL_MAX);
            memcpy(label, payload, (size_t)received.label_length);
        } else if (type == SCM_PIDFD) {
            keep_fds(&received, owned, OWN_PIDFD, 1, payload, length);
        } else if (type == SCM_RIGHTS) {
            keep_fds(&received, owned, OWN_FDS, max_fds, payload, length);
        }
    }
    /* MSG_CTRUNC alone may mean lost descriptors. A label that fills its room may
       have been longer. */
    if (message.msg_flags & MSG_CTRUNC)
        incomplete |= (options & PASS_CREDS && !stamped) || received.label_length == LABEL_MAX;
    if (incomplete)
        received.length = -EMSGSIZE;
    received.flags |= message.msg_flags & ~MSG_CMSG_CLOEXEC;
    received.cred = checked(received.cred, sizeof received.cred, -ENODATA);
    return received;
}

/* The ids of those without a mapping. The kernel reports them for a message that
   was sent before SO_PASSCRED was on. (Sandboxes hide /proc/sys/kernel.) */
static FOR_PYTHON struct ucred overflow_ids(void)
{
    struct received received;
    int ends[2], on = 1;
    char data;

    if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, ends) != 0)
        return refused(-errno);
    if (send(ends[0], "", 1, 0) < 0 || setsockopt(ends[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) != 0)
        received.length = -errno;
    else
        received = receive(ends[1], &data, sizeof data, MSG_DONTWAIT, PASS_CREDS, 0, NULL, NULL);
    close(ends[0]); /* neither can block */
    close(ends[1]);
    return received.length < 0 ? refused((int)received.length) : received.cred;
}

/* cffi's code follows. It would release the GIL around each call, and getting it
   back costs a switch interval for each busy thread. What blocks releases it itself. */
#undef Py_BEGIN_ALLOW_THREADS
#undef Py_END_ALLOW_THREADS
#define Py_BEGIN_ALLOW_THREADS {
#define Py_END_ALLOW_THREADS }

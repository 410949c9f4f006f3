/* receive() with random control data, under the sanitizers: see test_fuzz_receive.py.

   recvmsg(2) is the one below, which lies about everything. Descriptors are numbers that it makes up, each of them once,
   from FIRST up: other numbers are words of headers that were taken for descriptors. close(2) notes which are closed. */

#include "_libc.c"

#include <assert.h>

#define FIRST 10000
#define LAST (FIRST + 2000)

static unsigned long long state;
static int arrived, closed[LAST], closed_in_all;

static unsigned below(unsigned number)
{
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (unsigned)(state >> 33) % number;
}

int close(int fd)
{
    assert(fd >= 0);
    if (fd >= FIRST && fd < LAST)
        closed[fd]++;
    closed_in_all++;
    return 0;
}

/* A number that is nearly `length`, or far from it. */
static size_t lie(size_t length)
{
    static const size_t others[] = {0,  1,    11,      12,         15,           16,             17, 27,
                                    28, 4096, 1 << 20, (size_t)-1, (size_t)-16, (size_t)1 << 31};

    switch (below(8)) {
    case 0:
        return others[below(sizeof others / sizeof *others)];
    case 1:
        return length + below(9) - 4;
    default:
        return length;
    }
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    static const int types[] = {SCM_RIGHTS, SCM_RIGHTS, SCM_CREDENTIALS, SCM_SECURITY, SCM_PIDFD, 0, 5, -1};
    size_t place = 0, room = message->msg_controllen, filled;
    char *control = message->msg_control;
    struct iovec *data = message->msg_iov;
    struct cmsghdr header;
    unsigned i;
    int number;

    assert(flags & MSG_CMSG_CLOEXEC && fd == 3);
    memset(message->msg_name, 'a', message->msg_namelen);
    memset(data->iov_base, 'x', data->iov_len);
    /* Each number is another one, wherever it may be taken for a descriptor. */
    for (i = 0; i + sizeof number <= room; i += (unsigned)sizeof number) {
        number = below(20) ? FIRST + arrived++ : -(int)below(200);
        memcpy(control + i, &number, sizeof number);
    }
    while (below(6) && place + sizeof header <= room) {
        header.cmsg_level = below(8) ? SOL_SOCKET : (int)below(3);
        header.cmsg_type = types[below(sizeof types / sizeof *types)];
        filled = CMSG_LEN(header.cmsg_type == SCM_CREDENTIALS && below(4) ? sizeof(struct ucred) : below(1100));
        header.cmsg_len = lie(filled);
        memcpy(control + place, &header, sizeof header);
        place = CMSG_ALIGN(place + filled);
    }
    message->msg_controllen = below(8) ? (place < room ? place : room) : lie(room);
    message->msg_namelen = below(4) ? message->msg_namelen : (socklen_t)lie(111);
    message->msg_flags = (int)(below(2) ? below(1 << 16) : 0) | MSG_CMSG_CLOEXEC;
    return below(16) ? (ssize_t)below((unsigned)data->iov_len + 2) : below(2) ? (ssize_t)(lie(100) >> 1) : -1;
}

int main(int argc, char **argv)
{
    static struct owned owned;
    static char label[LABEL_MAX];
    char data[64];
    unsigned long round, rounds = strtoul(argv[1], NULL, 10);

    assert(argc == 3);
    state = strtoull(argv[2], NULL, 10);
    for (round = 0; round < rounds; round++) {
        int options = (int)below(8), max_fds = below(2) ? (int)below(FDS_MAX + 1) : 0, owns = options & ~PASS_CREDS || max_fds;
        int i, fd, kind, strays, kept[LAST] = {0};
        struct received received;

        arrived = closed_in_all = 0;
        memset(closed, 0, sizeof closed);
        memset(&owned, 0, sizeof owned);
        received = receive(3, data, below(sizeof data + 1), 0, options, max_fds, options & PASS_LABEL ? label : NULL,
                           owns ? &owned : NULL);
        if (received.length < 0 && received.length != -EMSGSIZE)
            continue;
        assert(received.length <= (ssize_t)sizeof data);
        assert(received.label_length <= LABEL_MAX && received.address_length <= (int)sizeof received.address);
        assert(received.cred.pid < 0 || (received.cred.uid != (uid_t)-1 && received.cred.gid != (gid_t)-1));
        assert(owned.count[OWN_PIDFD] <= 1 && owned.count[OWN_FDS] <= max_fds);
        assert(received.kept == owned.count[OWN_PIDFD] + owned.count[OWN_FDS]);
        assert(owns || received.kept == 0);
        for (kind = OWN_PIDFD; kind <= OWN_STRAYS; kind++)
            for (i = 0; i < owned.count[kind]; i++) {
                fd = owned.fds[kind][i];
                assert(fd >= 0);
                if (fd >= FIRST && fd < LAST)
                    kept[fd]++;
            }
        for (fd = FIRST; fd < LAST; fd++)
            assert(kept[fd] + closed[fd] <= 1);
        strays = closed_in_all + owned.count[OWN_STRAYS];
        assert(strays == 0 || received.flags & MSG_CTRUNC);
        close_owned(&owned);
        for (fd = FIRST; fd < LAST; fd++)
            assert(closed[fd] <= 1 && closed[fd] >= kept[fd]);
        assert(closed_in_all == strays + received.kept);
    }
    printf("%lu messages\n", rounds);
    return 0;
}

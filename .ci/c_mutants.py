"""The C source with one fault at a time: the tests must find each.

    python .ci/c_mutants.py [TEXT...]

With TEXTs, only the faults in whose description is one of them, such as
"peersec". It needs pytest, what the build needs, and the cross compilers of
tests/test_architectures.py.

Not in the list are faults that change nothing which a test could see:

- the ids in refused(): if the pid is negative, Python does not read them;
- has_peer() before the option instead of after it: for a socket that stays the
  same, either order is right;
- which error is reported if both the option and has_peer() fail;
- longer than a struct ucred, in checked(): ask() lets no longer answer pass;
- without `if (own < 0) return peer;`, asking and closing -1 do nothing;
- `error < 0` for `error != 0`: those functions return no positive number;
- any other bit for "on": the kernel takes each for 1;
- other bits for PASS_*: Python asks the module which they are;
- peersec() with less room than there is: then it is asked again, with more;
- more bits than were asked for, in enabled(): Python does not look at them;
- PASS_FDS in enabled(), the last option: Python does not ask for it, and it
  never has to be restored;
- without `if (before < 0) return before;`, in set_enabled(): a socket that
  refuses the question refuses the options as well;
- the family in enabled(): only Linux 6.12 and older have the options for other
  families;
- more room than a message needs, in control_size(): a descriptor that gets in
  is closed, and the message says the same.

Nor are those that only the sanitizers see: one turn too many in a loop over
pass_options.
"""

import re
import sys
from tempfile import TemporaryDirectory

import trials
from c_coverage import compile_module

# Each fault: the function, or "" for the rest of the file; what stands
# there, once; and what stands there instead.
FAULTS = [
    # The numbers that old headers lack.
    ("", "NUMBER(59, 0x4034, 61)", "NUMBER(60, 0x4034, 61)"),
    ("", "NUMBER(59, 0x4034, 61)", "NUMBER(59, 0x4035, 61)"),
    ("", "NUMBER(59, 0x4034, 61)", "NUMBER(59, 0x4034, 62)"),
    ("", "NUMBER(76, 0x404A, 85)", "NUMBER(77, 0x404A, 85)"),
    ("", "NUMBER(76, 0x404A, 85)", "NUMBER(76, 0x404b, 85)"),
    ("", "NUMBER(76, 0x404A, 85)", "NUMBER(76, 0x404A, 86)"),
    ("", "NUMBER(77, 0x404B, 86)", "NUMBER(78, 0x404B, 86)"),
    ("", "NUMBER(77, 0x404B, 86)", "NUMBER(77, 0x404c, 86)"),
    ("", "NUMBER(77, 0x404B, 86)", "NUMBER(77, 0x404B, 87)"),
    ("", "NUMBER(83, 0x4051, 0x5C)", "NUMBER(84, 0x4051, 0x5C)"),
    ("", "NUMBER(83, 0x4051, 0x5C)", "NUMBER(83, 0x4052, 0x5C)"),
    ("", "NUMBER(83, 0x4051, 0x5C)", "NUMBER(83, 0x4051, 93)"),
    ("", "defined(__hppa__)", "0"),
    ("", "defined(__sparc__)", "0"),
    ("", "SCM_SECURITY 3", "SCM_SECURITY 4"),
    ("", "SCM_PIDFD 4", "SCM_PIDFD 3"),
    # What connections and messages need.
    ("", "typedef int... uid_t;", "typedef int uid_t;"),
    ("", "typedef int... gid_t;", "typedef int gid_t;"),
    ("", "typedef int... pid_t;", "typedef unsigned pid_t;"),
    ("", "int peergroups(int fd, gid_t *gids, int count);", "unsigned peergroups(int fd, gid_t *gids, int count);"),
    ("", "static int enabled(int fd, int options);", "static unsigned enabled(int fd, int options);"),
    ("ask", "length = size", "length = size - 1"),
    ("ask", "length = size", "length = size + 1"),
    ("ask", "    memset(value, 0xff, size);\n", ""),
    ("ask", "0xff", "0"),
    ("ask", "0xff, size", "0xff, size / 4"),
    ("ask", "!= 0", "< -1"),
    ("ask", "-errno", "errno"),
    ("ask", "-errno", "-EPROTO"),
    ("ask", "length <= size ? (int)length : -EPROTO", "(int)length"),
    ("ask", "length <= size", "length < size"),
    ("ask", "length <= size", "(int)length <= (int)size"),
    ("ask", "length <= size", "length <= size + 4"),
    ("ask", "-EPROTO", "(int)size"),
    ("int_option", "&value, sizeof value", "&value, sizeof value - 1"),
    ("int_option", "    if (length < 0)\n        return length;\n", ""),
    ("int_option", "return length;", "return 0;"),
    ("int_option", "length == (int)sizeof value && ", ""),
    ("int_option", "length == (int)sizeof value", "length <= (int)sizeof value"),
    ("int_option", " && value >= 0", ""),
    ("int_option", "value >= 0", "value > 0"),
    ("int_option", "-EPROTO", "EPROTO"),
    ("int_option", "-EPROTO", "0"),
    # What answers about connections.
    ("", "GROUPS_MAX 65536", "GROUPS_MAX 65535"),
    # The comment goes on, over the macros: cffi lets go of the GIL.
    ("", "for each busy thread. */", "for each busy thread."),
    ("has_peer", "AF_UNSPEC", "AF_UNIX"),
    ("has_peer", "sizeof address;", "0;"),
    ("has_peer", "getpeername(fd, (struct sockaddr *)&address, &length) != 0", "0"),
    ("has_peer", "return -errno", "return 0"),
    ("has_peer", "-errno", "errno"),
    ("has_peer", "-errno", "-ENOTCONN"),
    ("has_peer", "address.sun_family != AF_UNIX", "0"),
    ("has_peer", "-EAFNOSUPPORT", "EAFNOSUPPORT"),
    ("has_peer", "-EAFNOSUPPORT", "-ENOTCONN"),
    ("has_peer", "length <= offsetof", "length < offsetof"),
    ("has_peer", "length <= offsetof(struct sockaddr_un, sun_path)", "1"),
    ("has_peer", "length <= offsetof(struct sockaddr_un, sun_path)", "0"),
    ("has_peer", "type == SOCK_DGRAM ? -ENOTCONN : ", ""),
    ("has_peer", "type == SOCK_DGRAM", "type != SOCK_DGRAM"),
    ("has_peer", "SOCK_DGRAM", "SOCK_SEQPACKET"),
    ("has_peer", "SOCK_DGRAM", "SOCK_STREAM"),
    ("has_peer", "-ENOTCONN", "ENOTCONN"),
    ("has_peer", "-ENOTCONN", "0"),
    ("has_peer", "type < 0 ? type : 0", "0"),
    ("has_peer", "type < 0 ? type : 0", "type"),
    ("has_peer", "SO_TYPE", "SO_DOMAIN"),
    ("ask_peer", "has_peer(fd)", "0"),
    ("ask_peer", "length < 0", "length <= 0"),
    ("ask_peer", "return length", "return 0"),
    ("ask_peer", "error < 0 ? error : length", "length"),
    ("ask_peer", "error < 0 ? error : length", "error"),
    ("ask_peer", "error < 0", "error <= 0"),
    ("refused", "= error", "= -error"),
    ("refused", "= error", "= 0"),
    ("checked", "length != (int)sizeof cred", "length > (int)sizeof cred"),
    ("checked", "length != (int)sizeof cred", "length < 0"),
    ("checked", "length != (int)sizeof cred", "0"),
    ("checked", "length < 0 ? length : -EPROTO", "-EPROTO"),
    ("checked", "length < 0 ? length : -EPROTO", "length"),
    ("checked", "cred.uid == (uid_t)-1 || ", ""),
    ("checked", " || cred.gid == (gid_t)-1", ""),
    ("checked", "||", "&&"),
    ("checked", "cred.uid == (uid_t)-1", "cred.pid == 0"),
    ("checked", "cred.uid == (uid_t)-1", "cred.uid == 0"),
    ("checked", "refused(nobody)", "cred"),
    ("peercred", "ask_peer(", "ask("),
    ("peercred", "SO_PEERCRED", "SO_PASSCRED"),
    ("peercred", "&cred, sizeof cred", "&cred, sizeof cred - 1"),
    ("peercred", "checked(cred, length,", "checked(cred, sizeof cred,"),
    ("peercred", "-ENOTCONN", "ENOTCONN"),
    ("peercred", "-ENOTCONN", "-ENODATA"),
    ("number_of_groups", "sizeof(gid_t)", "1"),
    ("number_of_groups", "length < 0 ? length : ", ""),
    ("number_of_groups", "length % size == 0 ? length / size : -EPROTO", "length / size"),
    ("number_of_groups", "% size == 0", "% 2 == 0"),
    ("number_of_groups", "-EPROTO", "EPROTO"),
    ("peergroups", "ask_peer(", "ask("),
    ("peergroups", "SO_PEERGROUPS", "SO_PEERSEC"),
    ("peergroups", " * sizeof *gids", ""),
    ("peergroups", "(socklen_t)count", "((socklen_t)count + 1)"),
    ("peergroups", "(socklen_t)count", "((socklen_t)count - 1)"),
    ("peercred_and_groups", "F_DUPFD_CLOEXEC", "F_DUPFD"),
    ("peercred_and_groups", "fcntl(fd, F_DUPFD_CLOEXEC, 0)", "fd"),
    ("peercred_and_groups", "own < 0 ? refused(-errno) : ", ""),
    ("peercred_and_groups", "own < 0 ?", "own <= 0 ?"),
    ("peercred_and_groups", "if (own < 0)", "if (own <= 0)"),
    ("peercred_and_groups", "refused(-errno)", "refused(errno)"),
    ("peercred_and_groups", "peercred(own)", "peercred(fd)"),
    ("peercred_and_groups", "cred.pid, cred.uid", "cred.uid, cred.pid"),
    ("peercred_and_groups", "cred.uid, cred.gid", "cred.gid, cred.uid"),
    ("peercred_and_groups", "ask(own", "ask(fd"),
    ("peercred_and_groups", "SO_PEERGROUPS", "SO_PEERSEC"),
    ("peercred_and_groups", "(socklen_t)count", "((socklen_t)count + 1)"),
    ("peercred_and_groups", "(socklen_t)count", "((socklen_t)count - 1)"),
    ("peercred_and_groups", " * sizeof *gids", ""),
    ("peercred_and_groups", "number_of_groups(ask", "(ask"),
    ("peercred_and_groups", "    close_without_gil(own);\n", ""),
    ("peercred_and_groups", "close_without_gil(own)", "close_without_gil(fd)"),
    ("close_without_gil", "    Py_BEGIN_ALLOW_THREADS\n    close(fd);\n    Py_END_ALLOW_THREADS\n", "    close(fd);\n"),
    ("peersec", "ask_peer(", "ask("),
    ("peersec", "SO_PEERSEC", "SO_PEERGROUPS"),
    ("peersec", "label, size", "label, size + 1"),
    ("peerpidfd", "SO_PEERPIDFD", "SO_PEERCRED"),
    ("peerpidfd", "pidfd < 0", "pidfd <= 0"),
    ("peerpidfd", "has_peer(fd)", "0"),
    ("peerpidfd", "has_peer(fd)", "has_peer(pidfd)"),
    ("peerpidfd", "error == 0", "error <= 0"),
    ("peerpidfd", "close(pidfd);", ""),
    ("peerpidfd", "close(pidfd);", "close(fd);"),
    ("peerpidfd", "return error", "return pidfd"),
    # What messages need.
    ("", "FDS_MAX 253", "FDS_MAX 252"),
    ("", "FDS_MAX 253", "FDS_MAX 254"),
    ("", "LABEL_MAX 4096", "LABEL_MAX 4064"),
    ("", "LABEL_MAX 4096", "LABEL_MAX 8192"),
    # The table of options.
    ("", "#define PASS_CREDS 1", "#define PASS_CREDS 2"),
    ("", "#define PASS_PIDFD 2", "#define PASS_PIDFD 1"),
    ("", "#define PASS_LABEL 4", "#define PASS_LABEL 2"),
    ("", "#define PASS_FDS 8", "#define PASS_FDS 4"),
    ("", "SO_PASSCRED, 0}", "SO_PASSSEC, 0}"),
    ("", "SO_PASSCRED, 0}", "SO_PASSCRED, 1}"),
    ("", "SO_PASSPIDFD, 0}", "SO_PEERPIDFD, 0}"),
    ("", "SO_PASSPIDFD, 0}", "SO_PASSPIDFD, 1}"),
    ("", "SO_PASSSEC, 0}", "SO_PASSCRED, 0}"),
    ("", "SO_PASSSEC, 0}", "SO_PASSSEC, 1}"),
    ("", "SO_PASSRIGHTS, 1}", "SO_PASSSEC, 1}"),
    ("", "SO_PASSRIGHTS, 1}", "SO_PASSRIGHTS, 0}"),
    ("", "    {PASS_CREDS, SO_PASSCRED, 0},\n", ""),
    ("", "    {PASS_PIDFD, SO_PASSPIDFD, 0},\n", ""),
    ("", "    {PASS_LABEL, SO_PASSSEC, 0},\n", ""),
    ("", "    {PASS_FDS, SO_PASSRIGHTS, 1},\n", ""),
    ("", "sizeof *pass_options)", "sizeof *pass_options - 1)"),
    ("enabled", "SO_DOMAIN", "SO_TYPE"),
    ("enabled", "    if (family < 0)\n        return family;\n", ""),
    ("enabled", "return family", "return 0"),
    ("enabled", "-EAFNOSUPPORT", "EAFNOSUPPORT"),
    ("enabled", "i = 0;", "i = 1;"),
    ("enabled", ".bit) == 0", ".bit) != 0"),
    ("enabled", "on == -ENOPROTOOPT", "0"),
    ("enabled", "on == -ENOPROTOOPT", "on < 0"),
    ("enabled", "on = pass_options[i].without", "on = 1"),
    ("enabled", "        if (on < 0)\n            return on;\n", ""),
    ("enabled", "return on", "return 0"),
    ("enabled", "        if (on)\n", ""),
    ("enabled", "if (on)", "if (!on)"),
    ("enabled", "bits |=", "bits ="),
    ("enabled", "bits |=", "bits &="),
    ("set_option", ".bit) != 0", ".bit) == 0"),
    ("set_option", "options & pass_options", "options | pass_options"),
    ("set_option", "&on, sizeof on", "&on, 0"),
    ("set_option", "errno == ENOPROTOOPT && ", ""),
    ("set_option", "(!on || pass_options[i].without) ? 0", "0 ? 0"),
    ("set_option", "(!on || pass_options[i].without)", "!on"),
    ("set_option", "(!on || pass_options[i].without)", "pass_options[i].without"),
    ("set_option", "(!on || pass_options[i].without)", "(on || pass_options[i].without)"),
    ("set_option", "(!on || pass_options[i].without)", "1"),
    ("set_option", "-errno", "errno"),
    ("set_option", "-errno", "0"),
    ("set_enabled", "enabled(fd, ~0)", "0"),
    ("set_enabled", "~0", "PASS_CREDS"),
    ("set_enabled", "~0", "~PASS_CREDS"),
    ("set_enabled", "~0", "~PASS_PIDFD"),
    ("set_enabled", "~0", "~PASS_LABEL"),
    ("set_enabled", "return before", "return 0"),
    ("set_enabled", "i = 0;", "i = 1;"),
    ("set_enabled", "i < PASS_OPTIONS", "i < PASS_OPTIONS - 1"),
    ("set_enabled", "error != 0", "error > 0"),
    ("set_enabled", "            while (i-- > 0)\n                set_option(fd, i, before);\n", ""),
    ("set_enabled", "i-- > 0", "--i > 0"),
    ("set_enabled", "set_option(fd, i, before)", "set_option(fd, i, options)"),
    ("set_enabled", "set_option(fd, i, before)", "set_option(fd, i, 0)"),
    ("set_enabled", "return error", "return 0"),
    ("control_size", "(size_t)fds * sizeof(int)", "(size_t)fds"),
    ("control_size", "if (options & PASS_CREDS)\n", ""),
    ("control_size", "if (options & PASS_CREDS)\n", "if (0)\n"),
    ("control_size", "CMSG_SPACE(sizeof(struct ucred))", "CMSG_LEN(sizeof(struct ucred) - 1)"),
    ("control_size", "CMSG_SPACE(sizeof(struct ucred))", "CMSG_LEN(sizeof(struct ucred))"),
    ("control_size", "if (options & PASS_LABEL)\n", ""),
    ("control_size", "if (options & PASS_LABEL)\n", "if (0)\n"),
    ("control_size", "CMSG_SPACE(LABEL_MAX)", "LABEL_MAX"),
    ("control_size", "fds > 0", "fds >= 0"),
    ("control_size", "fds > 0", "fds > 1"),
    ("control_size", "options & PASS_PIDFD ? CMSG_SPACE(attached) : CMSG_LEN(attached)", "CMSG_LEN(attached)"),
    ("control_size", "CMSG_SPACE(attached) : CMSG_LEN(attached)", "CMSG_LEN(attached) : CMSG_SPACE(attached)"),
    ("control_size", "    if (options & PASS_PIDFD)\n", ""),
    ("control_size", "    if (options & PASS_PIDFD)\n", "    if (0)\n"),
    ("control_size", "CMSG_LEN(sizeof(int))", "CMSG_LEN(sizeof(int)) - 1"),
    ("unpack_ucred", "length != sizeof cred", "length < sizeof cred"),
    ("unpack_ucred", "length != sizeof cred", "length > sizeof cred"),
    ("unpack_ucred", "-EMSGSIZE", "-ENODATA"),
    ("unpack_ucred", "-EMSGSIZE", "EMSGSIZE"),
    ("unpack_ucred", "payload, sizeof cred", "payload, sizeof cred - 1"),
    ("unpack_ucred", "-ENODATA", "-EMSGSIZE"),
    ("unpack_ucred", "-ENODATA", "ENODATA"),
    ("unpack_ucred", "checked(cred, sizeof cred, -ENODATA)", "cred"),
]


def changed(text, function, old, new):
    """The source with the fault, which must fit in exactly one place."""
    if function:
        (start,) = (match.start() for match in re.finditer(rf"^static .*\b{function}\(.*\)\n{{", text, re.MULTILINE))
        end = text.index("\n}\n", start) + 3
    else:
        start, end = 0, len(text)
    assert text.count(old, start, end) == 1, f"found {text.count(old, start, end)} times: {function} {old!r}"
    return text[:start] + text[start:end].replace(old, new) + text[end:]


def compile_plainly(tree):
    with TemporaryDirectory() as directory:
        compile_module(tree, directory, "-O0 -w")


def main():
    text = (trials.ROOT / "peercred/_libc.c").read_text()
    faults = [
        trials.Fault(f"{function} {old!r} -> {new!r}", "peercred/_libc.c", changed(text, function, old, new))
        for function, old, new in FAULTS
    ]
    return 1 if trials.main(faults, ["tests/test_architectures.py", *trials.TESTS], compile_plainly) else 0


if __name__ == "__main__":
    sys.exit(main())

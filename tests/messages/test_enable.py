"""enable(): which options are on afterwards, as the kernel says."""

from __future__ import annotations

from peers import connect, enabled, needs_pidfd, own

from peercred import messages


def test_options_of_a_listener_are_inherited(server):
    """Connections have what their listener enabled before listen()."""
    messages.enable(server)
    server.listen()
    with connect(server.getsockname()) as client, server.accept()[0] as conn:
        client.send(b"x")
        assert enabled(conn) == {"creds"}
        assert messages.receive(conn, 100).cred == own()


def test_enable_is_as_given(ends):
    """enable() turns each option on or off, as given."""
    receiver, _ = ends
    messages.enable(receiver)
    assert enabled(receiver) == {"creds"}
    messages.enable(receiver, label=True)
    assert enabled(receiver) == {"creds", "label"}
    messages.enable(receiver, creds=False)
    assert enabled(receiver) == set()


@needs_pidfd
def test_enable_pidfd(ends):
    """enable() turns SO_PASSPIDFD on or off, as given."""
    receiver, _ = ends
    messages.enable(receiver, creds=False, pidfd=True, label=True)
    assert enabled(receiver) == {"pidfd", "label"}
    messages.enable(receiver, pidfd=False)
    assert enabled(receiver) == {"creds"}

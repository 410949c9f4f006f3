"""peercred.messages in event loops: the standard library's socket, and the
loop's way to wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest
from servers import needs

import peercred
from peercred import messages

OWN = peercred.Cred(os.getpid(), os.geteuid(), os.getegid())


def test_messages_with_asyncio(datagrams):
    """asyncio: a socket that does not block, and loop.add_reader."""
    receiver, sender = datagrams
    receiver.setblocking(False)

    async def main():
        def readable():
            with contextlib.suppress(BlockingIOError):  # woken for nothing
                got.set_result(messages.receive(receiver, 4096))

        loop = asyncio.get_running_loop()
        got = loop.create_future()
        loop.add_reader(receiver, readable)
        try:
            readable()
            assert not got.done()
            messages.send(sender, b"x")
            return await got
        finally:
            loop.remove_reader(receiver)

    assert asyncio.run(main()).cred == OWN


@needs("trio")
def test_messages_with_trio(datagrams):
    """trio: the standard library's socket, and trio.lowlevel.wait_readable."""
    import trio

    receiver, sender = datagrams
    receiver.setblocking(False)

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.lowlevel.wait_readable(receiver)
            assert messages.receive(receiver, 4096).cred == OWN
        with pytest.raises(TypeError, match=r"trio\.lowlevel\.wait_readable"):
            messages.receive(trio.socket.from_stdlib_socket(receiver), 4096)

    async def send():
        await trio.lowlevel.wait_writable(sender)
        messages.send(sender, b"x")

    trio.run(main)


@needs("anyio")
@pytest.mark.parametrize("backend", ["asyncio", pytest.param("trio", marks=needs("trio"))])
def test_messages_with_anyio(datagrams, backend):
    """anyio: the standard library's socket, and anyio.wait_readable."""
    import anyio

    receiver, sender = datagrams
    receiver.setblocking(False)

    async def main():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await anyio.wait_readable(receiver)
            assert messages.receive(receiver, 4096).cred == OWN

    async def send():
        await anyio.wait_writable(sender)
        messages.send(sender, b"x")

    anyio.run(main, backend=backend)

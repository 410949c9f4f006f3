"""A FastAPI application that admits its own user, and hangs up on others.

Start it, and ask it:

    uvicorn --uds app.sock --http fastapi_app:WithPeer fastapi_app:app
    curl --unix-socket app.sock http://localhost/

uvicorn lets every user connect to the socket. WithPeer decides who is heard,
before a byte is parsed, so it guards /docs and WebSockets too. Without --http,
nobody is refused, but every view that asks for the peer ends with 500.
"""

import logging
import os
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from uvicorn.protocols.http.auto import AutoHTTPProtocol

import peercred

allowed = peercred.AllowList(uids={os.geteuid()})  # or uids={0, "alice"}, gids={"docker"}
app = FastAPI()


class WithPeer(AutoHTTPProtocol):
    def connection_made(self, transport):
        super().connection_made(transport)
        try:
            peer = allowed.require(transport)
        except OSError as refusal:  # not on the list, cannot be identified, or gone
            logging.getLogger("uvicorn.error").warning("refused: %s", refusal)
            transport.abort()
        else:
            self.app_state = {**getattr(self, "app_state", {}), "peer": peer}


def peer_of(request: Request) -> peercred.Cred:
    return request.state.peer


@app.get("/")
def welcome(peer: Annotated[peercred.Cred, Depends(peer_of)]) -> dict[str, int]:
    return {"welcome": peer.uid}

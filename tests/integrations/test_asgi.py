"""ASGI applications under uvicorn: README's recipe, as it stands there."""

from __future__ import annotations

import re
from textwrap import dedent

import pytest
from peers import needs_root
from readme import README, example
from servers import SOCKET, UIDS, as_client, assert_names, is_refused, needs, running, web, websocket

REFUSING = example("class WithPeer")
ADMITTING = REFUSING.replace("allowed.require(transport)", "peercred.read(transport)")  # as its comment says
assert REFUSING.count("allowed.require(transport)  # or peercred.read(transport), to refuse nobody") == 1
STATE, SCOPE = "request.state.peer", 'scope["state"]["peer"]'

STARLETTE = """
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route, WebSocketRoute

    async def view(request):
        return PlainTextResponse(said(PEER))

    async def chat(ws):
        await ws.accept()
        async for message in ws.iter_text():
            await ws.send_text(said(ws.state.peer))

    app = Starlette(routes=[Route("/", view), WebSocketRoute("/ws", chat)])
"""

APPLICATIONS = {
    "asgi": """
        async def app(scope, receive, send):
            assert scope["type"] == "http"
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": said(PEER).encode()})
    """,
    "starlette": STARLETTE,
    "fastapi": """
        from fastapi import FastAPI, Request, WebSocket
        from fastapi.responses import PlainTextResponse

        app = FastAPI()

        @app.get("/", response_class=PlainTextResponse)
        def view(request: Request):  # in a thread
            return said(PEER)
    """,
    "litestar": """
        from litestar import Litestar, Request, get

        @get("/", media_type="text/plain")
        async def view(request: Request) -> str:
            assert said(request.scope["state"]["peer"]) == said(PEER)
            return said(PEER)

        app = Litestar([view])
    """,
    "quart": """
        from quart import Quart, request

        app = Quart("app")

        @app.get("/")
        async def view():
            scope = request.scope
            return said(PEER)
    """,
    "django": """
        from django.conf import settings
        from django.core.asgi import get_asgi_application
        from django.http import HttpResponse
        from django.urls import path

        async def view(request):
            scope = request.scope
            return HttpResponse(said(PEER))

        urlpatterns = [path("", view)]
        settings.configure(ROOT_URLCONF="app", ALLOWED_HOSTS=["localhost"], SECRET_KEY="x")
        app = get_asgi_application()
    """,
}
PEER = {"asgi": SCOPE, "starlette": STATE, "fastapi": STATE, "litestar": STATE, "quart": SCOPE, "django": SCOPE}


def program(application):
    return dedent(APPLICATIONS[application]).replace("PEER", named(PEER[application]))


def named(words):
    """What the README's text says, once it is certain that it does."""
    assert f"`{words}`" in README
    return words


def uvicorn(*options):
    return ["-m", "uvicorn", "--uds", SOCKET, "--http", "door:WithPeer", *options, "app:app"]


pytestmark = needs("uvicorn", "starlette", "websockets")


@pytest.mark.parametrize("application", ["asgi", *(pytest.param(name, marks=needs(name)) for name in [*PEER][1:])])
def test_frameworks(place, application):
    """The peer is in each request's state, whatever the framework."""
    with running(place, program(application), *uvicorn(), door=ADMITTING):
        assert_names(place / SOCKET, web())


@pytest.mark.parametrize("client", [web(), websocket], ids=["http", "websocket"])
@pytest.mark.parametrize("loop", ["asyncio", pytest.param("uvloop", marks=needs("uvloop"))])
@pytest.mark.parametrize("http", ["H11Protocol", pytest.param("HttpToolsProtocol", marks=needs("httptools"))])
def test_protocols(place, http, loop, client):
    """On either parser and loop, for HTTP and WebSockets."""
    files = {"door": f"{ADMITTING}\nassert WithPeer.__mro__[1].__name__ == {http!r}\n"}
    if http == "H11Protocol":
        files["httptools"] = "raise ImportError"  # what uvicorn takes first, if it is installed
    with running(place, program("starlette"), *uvicorn("--loop", loop), **files):
        assert_names(place / SOCKET, client)


@pytest.mark.parametrize("ws", ["websockets", "websockets-sansio", pytest.param("wsproto", marks=needs("wsproto"))])
def test_websocket_libraries(place, ws):
    """With each of uvicorn's implementations of WebSockets."""
    with running(place, program("starlette"), *uvicorn("--ws", ws), door=ADMITTING):
        assert_names(place / SOCKET, websocket)


def test_workers(place):
    """In worker processes."""
    with running(place, program("starlette"), *uvicorn("--workers", "2"), door=ADMITTING):
        assert_names(place / SOCKET, web())


@needs("gunicorn", "uvicorn_worker")
def test_gunicorn(place):
    """In gunicorn's workers, by the UvicornWorker that README describes."""
    worker = f"from uvicorn_worker import UvicornWorker\nclass Worker(UvicornWorker):\n    {named(KWARGS)}\n"
    command = ["-m", "gunicorn", "--bind", f"unix:{SOCKET}", "--no-control-socket", "-w", "2", "-k", "worker.Worker"]
    assert "`uvicorn_worker.UvicornWorker`" in README
    with running(place, program("starlette"), *command, "app:app", door=ADMITTING, worker=worker):
        assert_names(place / SOCKET, web())


KWARGS = 'CONFIG_KWARGS = {"http": "door:WithPeer"}'


@needs_root
@pytest.mark.parametrize("loop", ["asyncio", pytest.param("uvloop", marks=needs("uvloop"))])
@pytest.mark.parametrize("http", ["h11", pytest.param("httptools", marks=needs("httptools"))])
def test_refusing(place, http, loop):
    """The recipe as it stands refuses a stranger, and names the others.

    No byte of a stranger is parsed, and the log says who it was.
    """
    files = {"door": REFUSING}
    if http == "h11":
        files["httptools"] = "raise ImportError"
    assert "uids={os.geteuid()}" in REFUSING
    with running(place, program("starlette"), *uvicorn("--loop", loop), **files):
        for uid in UIDS:
            assert as_client(place / SOCKET, is_refused, uid)
        assert as_client(place / SOCKET, ask, uid=0) == [200, "0", "0"]
    log = (place / "log").read_text()
    assert "Traceback" not in log
    for uid in UIDS:
        assert re.search(rf"not on the allow-list: pid \d+, uid {uid}, ", log)


def ask(dial):
    """The status, and the uid and gid that were told."""
    import http.client

    response = http.client.HTTPResponse(sock := dial())
    sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    with sock, response:
        response.begin()
        return [response.status, *response.read().decode().split()[-2:]]


BASE = "from uvicorn.protocols.http.auto import AutoHTTPProtocol"
GONE = {
    "ineffective": f"{BASE}\nAutoHTTPProtocol.app_state = property(lambda self: {{}}, lambda self, value: None)",
    "renamed": """
import inspect, uvicorn.protocols.http.h11_impl as impl
source = inspect.getsource(impl)
assert "self.app_state" in source
exec(compile(source.replace("self.app_state", "self.renamed"), "renamed.py", "exec"))
AutoHTTPProtocol = H11Protocol
""",
}


def without_app_state(door, how):
    assert BASE in door
    return door.replace(BASE, GONE[how])


@pytest.mark.parametrize("how", GONE)
def test_without_app_state_nobody_is_named(place, how):
    """Where uvicorn's app_state has no effect, nobody is named.

    Asking for the peer is an AttributeError: status 500.
    """
    with running(place, program("starlette"), *uvicorn(), door=without_app_state(ADMITTING, how)):
        assert as_client(place / SOCKET, ask)[0] == 500
    assert "AttributeError: 'State' object has no attribute 'peer'" in (place / "log").read_text()


@needs_root
@pytest.mark.parametrize("how", GONE)
def test_without_app_state_strangers_are_still_refused(place, how):
    """Who is refused does not depend on app_state."""
    with running(place, program("starlette"), *uvicorn(), door=without_app_state(REFUSING, how)):
        assert as_client(place / SOCKET, is_refused)


def test_a_request_is_not_a_connection(place):
    """Starlette's Request is a TypeError that leads to the README."""
    from starlette.requests import Request

    import peercred

    with pytest.raises(TypeError, match=r"'Request' object is not a connection: .*'Where is the connection"):
        peercred.read(Request({"type": "http", "headers": []}))

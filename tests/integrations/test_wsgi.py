"""WSGI applications, under the servers whose environ, or module, leads to the
connection.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from servers import SOCKET, assert_names, http2, needs, running, web

APPLICATIONS = {
    "wsgi": """
        def app(environ, start_response):
            body = who(CONN).encode()
            start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
            return [body]
    """,
    "flask": """
        from flask import Flask, request
        app = Flask("app")

        @app.get("/")
        def view():
            environ = request.environ
            return who(CONN)
    """,
    "django": """
        from django.conf import settings
        from django.core.wsgi import get_wsgi_application
        from django.http import HttpResponse
        from django.urls import path

        def view(request):
            environ = request.environ
            body = who(CONN)
            return HttpResponse(body, headers={"Content-Length": len(body)})

        urlpatterns = [path("", view)]
        settings.configure(ROOT_URLCONF="app", ALLOWED_HOSTS=["localhost"], SECRET_KEY="x")
        app = get_wsgi_application()
    """,
}
FRAMEWORKS = ["wsgi", pytest.param("flask", marks=needs("flask")), pytest.param("django", marks=needs("django"))]
GUNICORN = ["-m", "gunicorn", "--bind", f"unix:{SOCKET}", "--no-control-socket", "--workers", "2"]
GUNICORN_CONN = 'environ["gunicorn.socket"]'


@needs("gunicorn")
@pytest.mark.parametrize("application", FRAMEWORKS)
@pytest.mark.parametrize("worker", ["sync", "gthread", pytest.param("gevent", marks=needs("gevent"))])
def test_gunicorn(place, application, worker):
    """gunicorn's environ has the socket, in each of its kinds of worker.

    Only sync closes it after a request.
    """
    options = ["--worker-class", worker, "--threads", "2" if worker == "gthread" else "1"]
    with running(place, APPLICATIONS[application], *GUNICORN, *options, "app:app", conn=GUNICORN_CONN):
        assert_names(place / SOCKET, web(keep_alive=worker != "sync"))


@needs("gunicorn", "h2")
def test_gunicorn_http2(place):
    """The same for two requests of one HTTP/2 connection."""
    options = ["--threads", "2", "--http-protocols", "h1,h2", "--http2-cleartext", "both"]
    with running(place, APPLICATIONS["wsgi"], *GUNICORN, *options, "app:app", conn=GUNICORN_CONN):
        assert_names(place / SOCKET, http2)


@needs("flask")
def test_flask_run(place):
    """`flask run` has the socket in its environ."""
    command = ["-m", "flask", "--app", "app", "run", "--host", f"unix://{place / SOCKET}"]
    with running(place, APPLICATIONS["flask"], *command, conn='environ["werkzeug.socket"]'):
        assert_names(place / SOCKET, web(keep_alive=False))


UWSGI = Path(sys.executable).with_name("uwsgi")


@pytest.mark.skipif(not UWSGI.exists(), reason="needs uwsgi, of the group integrations")
@pytest.mark.parametrize("application", FRAMEWORKS)
@pytest.mark.parametrize("concurrency", ["--processes", "--threads"])
def test_uwsgi(place, application, concurrency):
    """uWSGI's own module tells the descriptor, in workers and in threads."""
    program = "import uwsgi\n" + APPLICATIONS[application].replace("\n        ", "\n")
    options = ["--http11-socket", SOCKET, "--chmod-socket=666", "--need-app", "--die-on-term", "--master"]
    command = [
        "-c",
        f"import os; os.execv({str(UWSGI)!r}, {['uwsgi', *options, concurrency, '2', '--module', 'app:app']})",
    ]
    with running(place, program, *command, conn="uwsgi.connection_fd()"):
        assert_names(place / SOCKET, web())

"""A Flask application that admits its own user, and answers others with 403.

Start it, and ask it:

    gunicorn --bind unix:app.sock flask_app:app
    curl --unix-socket app.sock http://localhost/

gunicorn lets every user connect to the socket. This file decides who gets an
answer. Under another server, environ has no "gunicorn.socket", so every request
ends with 500: README's table says what to use there.
"""

import os

from flask import Flask, abort, g, request

import peercred

allowed = peercred.AllowList(uids={os.geteuid()})  # or uids={0, "alice"}, gids={"docker"}
app = Flask(__name__)


@app.before_request
def admit():
    """Runs before every view, and before a path that does not exist is 404."""
    try:
        g.peer = allowed.require(request.environ["gunicorn.socket"])
    except OSError as refusal:  # not on the list, cannot be identified, or gone
        app.logger.warning("refused: %s", refusal)
        abort(403)


@app.get("/")
def welcome():
    return f"welcome, {g.peer.uid}\n"

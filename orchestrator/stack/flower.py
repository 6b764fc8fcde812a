"""Flower, by our settings: nothing of it is on the command line, where every user of the machine could read it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from db.types import UsageError
from tasks import logs
from tasks.app import App
from tasks.loading import all_stays
from tasks.settings import Settings

# What it remembers, in memory and in its file: of a busy cluster some minutes.
TASKS_KEPT = 10_000
SAVED_EVERY_S = 30
# The file may be named so: nothing is kept.
NONE = "none"


def check(settings: Settings, host: str) -> None:
    """Raise UsageError where Flower would be open to others without a password."""
    if settings.flower_auth or _is_loopback(host):
        return
    raise UsageError(
        f"Flower on {host} would be open to all who can reach it: set STRANDLINE_FLOWER_AUTH=user:password, "
        "or listen on 127.0.0.1"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def store(settings: Settings) -> str | None:
    """The file that it keeps its state in, its folder made; None: it keeps none. Raises UsageError."""
    if settings.flower_db == NONE:
        return None
    path = Path(settings.flower_db or Path(settings.state_dir) / "flower").expanduser().absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise _unusable(path, os.strerror(error.errno or 0).lower()) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise _unusable(path, "its folder cannot be written to")
    return str(path)


def _unusable(path: Path, why: str) -> UsageError:
    return UsageError(f"Flower cannot keep its state in {path}: {why}; set STRANDLINE_FLOWER_DB to a file, or to none")


def cookie_secret(settings: Settings) -> str:
    """As it was set; else derived from the password, so that it is the same after a restart; else any."""
    if settings.flower_cookie_secret or not settings.flower_auth:
        return settings.flower_cookie_secret or secrets.token_urlsafe(64)
    return hmac.new(settings.flower_auth.encode(), b"strandline flower cookies", hashlib.sha256).hexdigest()


def run(app: App, *, host: str, port: int) -> None:
    """Serve until TERM, and then keep what was seen. Raises UsageError."""
    settings = app.runtime.settings
    logs.configure(settings, "ERROR")
    check(settings, host)
    signal.signal(signal.SIGTERM, _end)
    # Its own variables would open what ours close.
    os.environ.pop("FLOWER_UNAUTHENTICATED_API", None)
    served = _made(app, settings, host, port)
    try:
        served.start_http_server()
    except OSError as error:
        raise UsageError(f"Flower cannot listen on {host}, port {port}: {error.strerror}; choose another") from error
    try:
        served.start()
    except (KeyboardInterrupt, SystemExit):
        pass
    finally:
        served.stop()


def _end(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _made(app: App, settings: Settings, host: str, port: int) -> Any:
    with all_stays():
        from flower import urls
        from flower.app import Flower
        from flower.command import extract_settings, setup_logging
        from flower.options import options
        from flower.views.monitor import Metrics
        from tornado.web import authenticated

    class Closed(Metrics):
        """Flower's own answers everybody, with the names of all workers and tasks."""

        get = authenticated(Metrics.get)

    file, given = store(settings), {
        "address": host,
        "port": port,
        "cookie_secret": cookie_secret(settings),
        "read_only": settings.flower_read_only,
        "max_tasks": TASKS_KEPT,
        "purge_offline_workers": 600,
        "tasks_columns": "name,args,state,received,runtime,worker",
    }  # fmt: skip
    if settings.flower_auth:
        given["basic_auth"] = settings.flower_auth.split(",")
    if settings.flower_url_prefix.strip("/"):
        given["url_prefix"] = settings.flower_url_prefix.strip("/")
    if file is not None:
        given |= {"persistent": True, "db": file, "state_save_interval": SAVED_EVERY_S * 1000}
    for name, value in given.items():
        setattr(options, name, value)
    urls.handlers[:] = [(one[0], Closed) if _is_metrics(one) else one for one in urls.handlers]
    extract_settings()
    setup_logging()
    return Flower(capp=app, options=options, **urls.settings)


def _is_metrics(handler: Any) -> bool:
    return isinstance(handler, tuple) and handler[0] == "/metrics"

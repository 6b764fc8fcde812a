"""The way to Redis: one address, from which coordination and Celery's broker both get what they need.

A hung or unreachable server costs a bounded time: TIMEOUT_S for a call of ours, BROKER_TIMEOUT_S for one of kombu's.
"""

from __future__ import annotations

import gc
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

import redis
from kombu.exceptions import KombuError
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from db.types import UsageError
from tasks.settings import Settings

# Progress and the breaker are asked in the middle of work: what is not there soon is done without.
TIMEOUT_S = 2.0
# Well above the second that a worker's blocking pop lasts.
BROKER_TIMEOUT_S = 3.0
# A connection that answers nothing for so long is opened anew (kombu looks after that time, then again).
HEALTH_S = 5
# What a broker that is gone, hung, read-only or full makes of sending.
BROKER_ERRORS = (KombuError, redis.RedisError, OSError)

VARIABLE = "STRANDLINE_REDIS_URL"
PORTS = {"redis": 6379, "rediss": 6379, "sentinel": 26379}
TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
TLS_OPTIONS = (*TLS_FILES, "ssl_cert_reqs", "ssl_check_hostname")
_VERIFY = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
_SWITCH = {"true": True, "false": False}
_FORMS = "redis://, rediss:// (TLS), unix:///path or sentinel://host:port;sentinel://host:port"


@dataclass(frozen=True)
class Address:
    """Where Redis is and how to talk to it; read from the settings, and never shown with its passwords."""

    scheme: str
    nodes: tuple[tuple[str, int], ...] = ()  # the server, or the sentinels
    path: str = ""  # of a unix socket
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Mapping[str, Any] | None = None
    master: str = ""
    sentinel_password: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, settings: Settings) -> Address:
        """The address in the settings. Raises UsageError, which shows no password."""
        parts = [_split(url) for url in settings.redis_url.split(";")]
        first = parts[0]
        if any(part.scheme != first.scheme for part in parts) or (len(parts) > 1 and first.scheme != "sentinel"):
            _refuse("several addresses, separated by ';', may only be sentinel://…")
        options = dict(parse_qsl(first.query, keep_blank_values=True))
        on_unix = first.scheme == "unix"
        return cls(
            first.scheme,
            nodes=() if on_unix else tuple(_node(part) for part in parts),
            path=_socket(first) if on_unix else "",
            db=_db(first, options),
            username=_unquoted(first.username) or options.pop("username", None),
            password=_unquoted(first.password) or options.pop("password", None),
            tls=_tls(first.scheme, options),
            master=settings.redis_sentinel_master,
            sentinel_password=settings.redis_sentinel_password or None,
        )

    def __str__(self) -> str:
        """For people."""
        nodes = ";".join(f"{self.scheme}://{_host(host)}:{port}" for host, port in self.nodes)
        return nodes or f"unix://{self.path}"

    # Coordination

    def client(self, timeout_s: float = TIMEOUT_S) -> redis.Redis:
        """A client of which no call lasts much longer than so. It opens no connection."""
        options: dict[str, Any] = {
            "db": self.db, "username": self.username, "password": self.password,
            "socket_timeout": timeout_s, "socket_connect_timeout": timeout_s,
            # Once more, where a connection was closed while it was idle; never after a timeout.
            "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        }  # fmt: skip
        if self.scheme == "unix":
            return redis.Redis(unix_socket_path=self.path, **options)
        options |= {"socket_keepalive": True} | self._tls_options()
        if self.scheme == "sentinel":
            sentinels = Sentinel(  # type: ignore[no-untyped-call]
                self.nodes, sentinel_kwargs=self._sentinel_options(timeout_s), **options
            )
            found: redis.Redis = sentinels.master_for(self.master)  # type: ignore[no-untyped-call]
            return found
        host, port = self.nodes[0]
        return redis.Redis(host=host, port=port, **options)

    def _tls_options(self) -> dict[str, Any]:
        return {} if self.tls is None else {"ssl": True, **self.tls}

    def _sentinel_options(self, timeout_s: float) -> dict[str, Any]:
        return {
            "password": self.sentinel_password, "socket_timeout": timeout_s, "socket_connect_timeout": timeout_s,
            **self._tls_options(),
        }  # fmt: skip

    # The broker

    @property
    def broker_url(self) -> str:
        """The same address as kombu writes it (a unix socket has another scheme there); TLS is said beside it."""
        login = ""
        if self.username or self.password:
            login = f"{quote(self.username or '', safe='')}:{quote(self.password or '', safe='')}@"
        if self.scheme == "unix":
            return f"redis+socket://{login}{quote(self.path)}?virtual_host={self.db}"
        return ";".join(f"{self.scheme}://{login}{_host(host)}:{port}/{self.db}" for host, port in self.nodes)

    @property
    def broker_tls(self) -> dict[str, Any] | None:
        """What Celery calls `broker_use_ssl`."""
        return None if self.tls is None else dict(self.tls)

    def broker_options(self, prefix: str) -> dict[str, Any]:
        """What Celery calls `broker_transport_options`."""
        options: dict[str, Any] = {
            "global_keyprefix": prefix,
            "visibility_timeout": 300,
            "socket_timeout": BROKER_TIMEOUT_S,
            "socket_connect_timeout": BROKER_TIMEOUT_S,
            "health_check_interval": HEALTH_S,
            "socket_keepalive": True,
            "max_retries": 0,  # who sends a message does not wait for a broker that is gone
        }
        if self.scheme == "sentinel":
            options |= {"master_name": self.master, "sentinel_kwargs": self._sentinel_options(BROKER_TIMEOUT_S)}
        return options


def close_inherited() -> None:
    """In a process that was forked: close what the parent had open. A copy would stay open when the parent has done
    with it. Only the descriptor is closed: more would end the connection, or take it out of the parent's event loop.
    """
    for one in gc.get_objects():
        if isinstance(one, redis.connection.AbstractConnection) and getattr(one, "pid", None) != os.getpid():
            inherited = getattr(one, "_sock", None)
            if inherited is not None:
                inherited.close()


def unix_url(path: str) -> str:
    """The setting for a server that listens on a unix socket."""
    return f"unix://{quote(path)}"


def _refuse(why: str, cause: Exception | None = None) -> NoReturn:
    raise UsageError(f"{VARIABLE} cannot be used: {why}") from cause


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # its message may quote a piece of the password
        _refuse("host or port cannot be read; special characters of a password must be written as %XX")
    if parts.scheme not in (*PORTS, "unix"):
        _refuse(f"an address begins with {_FORMS}")
    if parts.fragment:
        _refuse("what follows '#' means nothing; special characters of a password must be written as %XX")
    return parts


def _node(parts: SplitResult) -> tuple[str, int]:
    if not parts.hostname:
        _refuse(f"no host is named; an address begins with {_FORMS}")
    return unquote(parts.hostname), parts.port or PORTS[parts.scheme]


def _socket(parts: SplitResult) -> str:
    if parts.hostname or not parts.path.startswith("/"):
        _refuse("a unix socket is written unix:///absolute/path")
    return unquote(parts.path)


def _db(parts: SplitResult, options: dict[str, str]) -> int:
    in_path = "" if parts.scheme == "unix" else parts.path.strip("/")
    number = options.pop("db", None) or options.pop("virtual_host", None) or in_path or "0"
    if not number.isdecimal():
        _refuse("the database behind the host is a number, 0 by default")
    return int(number)


def _tls(scheme: str, options: dict[str, str]) -> dict[str, Any] | None:
    """The TLS options for redis-py and kombu alike; None: no TLS. A server is believed only by its certificate, unless
    the address says otherwise (kombu alone would believe any).
    """
    for name in options:
        if name not in TLS_OPTIONS:
            _refuse(f"it has an unknown option {name!r}; known are db, username, password, {', '.join(TLS_OPTIONS)}")
    if scheme == "unix" or (scheme == "redis" and options):
        if options:
            _refuse("ssl_… options need rediss:// or sentinel://")
        return None
    if scheme != "rediss" and not options:
        return None
    reqs = options.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    check = options.get("ssl_check_hostname", "true" if reqs != "none" else "false").lower()
    if reqs not in _VERIFY or check not in _SWITCH:
        _refuse("ssl_cert_reqs is required, optional or none, and ssl_check_hostname true or false")
    files = {name: options[name] for name in TLS_FILES if name in options}
    _try_certificates(files)
    return {"ssl_cert_reqs": _VERIFY[reqs], "ssl_check_hostname": _SWITCH[check] and reqs != "none", **files}


def _try_certificates(files: Mapping[str, str]) -> None:
    """Read them once, so that a wrong name is told at the start and not as a broker that cannot be reached."""
    try:
        context = ssl.create_default_context(cafile=files.get("ssl_ca_certs"))
        if "ssl_certfile" in files:
            context.load_cert_chain(files["ssl_certfile"], files.get("ssl_keyfile"))
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        _refuse(f"the certificates that it names cannot be read: {error}", error)


def _unquoted(text: str | None) -> str | None:
    return None if not text else unquote(text)


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host

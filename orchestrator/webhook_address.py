"""Addresses that a webhook may have, and the secrets that sign what is sent there."""

from __future__ import annotations

import base64
import secrets
from urllib.parse import urlsplit

from db.types import UsageError

# A request takes so long at most, from the look at the name to the answer.
WITHIN_S = 10.0
SECRET_PREFIX, SECRET_BYTES = "whsec_", 24
SCHEMES = ("http", "https")


def new_secret() -> str:
    """A secret for a webhook."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def checked_url(url: str) -> str:
    """The address, if it can be one. Raises UsageError."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or len(url) > 2_000 or not url.isprintable():
        raise UsageError(f"webhook {url[:100]!r} is no address: use https://HOST/PATH", field="url")
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            "webhook: a user or password in the address is not allowed; the requests are signed instead", field="url"
        )
    return url


def host_of(url: str) -> str:
    """What may be down: host and port."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"

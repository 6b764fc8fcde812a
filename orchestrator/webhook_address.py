"""Addresses that a webhook may have, and the secrets that sign what is sent there."""

from __future__ import annotations

import base64
import ipaddress
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


def checked_url(url: str, *, private: bool) -> str:
    """The address, if it can be one. `private`: it may be one that is not public. Raises UsageError."""
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
    if not private and _is_private(parts.hostname or ""):
        raise UsageError(
            f"webhook: {parts.hostname} is no public address, and nothing would be sent there: use another, or set "
            "STRANDLINE_WEBHOOK_PRIVATE=true, here and for the workers",
            field="url",
        )
    return url


def _is_private(host: str) -> bool:
    """As far as it can be told without looking the name up, which is done before each request."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return not is_public(host)
    except ValueError:
        return False


def is_public(address: str) -> bool:
    """Is it an address of the internet, and none that only this machine or its network knows?"""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        mapped = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if mapped is not None:
            return is_public(str(mapped))
    return found.is_global and not found.is_multicast


def host_of(url: str) -> str:
    """What may be down: host and port."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"

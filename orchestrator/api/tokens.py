"""Who asks: bearer tokens, of which only the SHA-256 is known here, and what each may see and do."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from db.tenants import NAME
from db.types import UsageError

VARIABLE = "STRANDLINE_API_TOKENS"
ADMIN = "admin"
_SHA256 = re.compile(r"[0-9a-f]{64}")
# No token is longer, and hashing what anybody sends should cost little.
LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks; `tenants`: those that may be seen, None: all (an admin)."""

    name: str  # a short hash of the token, for the log
    tenants: frozenset[str] | None = None

    @property
    def is_admin(self) -> bool:
        """May everything be seen and done?"""
        return self.tenants is None

    def sees(self, tenant: str) -> bool:
        """Is there such a tenant, as far as this caller is concerned?"""
        return self.tenants is None or tenant in self.tenants


# Without any token configured, whoever reaches the loopback.
LOCAL = Caller("local")


def parse_tokens(text: str) -> dict[str, Caller]:
    """The setting. Raises UsageError, which names it and shows nothing of it."""
    if not text.strip():
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        raise UsageError(f"{VARIABLE} cannot be used: it is no JSON") from None
    if not isinstance(found, dict) or not found:
        raise UsageError(f"{VARIABLE} cannot be used: it must be an object with a token's SHA-256 to each name")
    return {hashed.lower(): _caller(hashed, may) for hashed, may in found.items()}


def _caller(hashed: str, may: object) -> Caller:
    if _SHA256.fullmatch(hashed.lower()) is None:
        raise UsageError(
            f"{VARIABLE} cannot be used: each name must be the SHA-256 of a token in 64 hexadecimal digits "
            "(printf %s TOKEN | sha256sum)"
        )
    name = hashed[:12].lower()
    if may == ADMIN:
        return Caller(name)
    if not (isinstance(may, list) and may and all(isinstance(one, str) and NAME.fullmatch(one) for one in may)):
        raise UsageError(f'{VARIABLE} cannot be used: token {name}… must stand for "admin" or a list of tenant names')
    return Caller(name, frozenset(may))


def caller_of(token: str, known: Mapping[str, Caller]) -> Caller | None:
    """Who has this token. All are compared, each in constant time."""
    hashed = hashlib.sha256(token.encode("utf-8", "replace")).hexdigest().encode()
    found = None
    for one, caller in known.items():
        if hmac.compare_digest(one.encode(), hashed):
            found = caller
    return found


def is_loopback(host: str) -> bool:
    """Can an address be reached from this machine alone?"""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def require_safe(host: str, tokens: Mapping[str, Caller]) -> None:
    """Raise UsageError where everybody on a network could do everything."""
    if not tokens and not is_loopback(host):
        raise UsageError(
            f"without {VARIABLE} the API may listen on loopback only, and {host!r} is not: "
            "configure tokens, or listen on 127.0.0.1"
        )

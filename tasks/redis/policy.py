"""May Redis throw keys away when it is full? Then it throws away messages, in silence: we refuse to start on it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import redis

from db.types import StrandlineError, UsageError
from tasks.redis.connection import VARIABLE, Address

log = logging.getLogger(__name__)

WANTED = "noeviction"
RETRY_S = 2.0


def refusal(policy: str | None, server: str) -> str | None:
    """Why a server with this maxmemory-policy cannot be used; None: it can (also where the policy is not known)."""
    if policy in (None, WANTED):
        return None
    return (
        f"the Redis at {server} has maxmemory-policy {policy}: when it is full it throws messages away in silence. "
        f"Set it to {WANTED} (CONFIG SET maxmemory-policy {WANTED}, and in its configuration file), "
        f"or name another server in {VARIABLE}"
    )


def policy_of(client: redis.Redis) -> str | None:
    """The policy as CONFIG tells it, else INFO; None where neither is allowed. Raises redis.ConnectionError, …"""
    questions: tuple[Callable[[], Any], ...] = (
        lambda: client.config_get("maxmemory-policy").get("maxmemory-policy"),
        lambda: client.info("memory").get("maxmemory_policy"),
    )
    for ask in questions:
        try:
            found = ask()
        except redis.ResponseError:  # renamed, or not allowed to this user
            continue
        if found is not None:
            return str(found)
    return None


def check(client: redis.Redis, address: Address) -> None:
    """Raise StrandlineError where the server's policy or our password cannot be right, redis.RedisError where it does
    not answer.
    """
    try:
        policy = policy_of(client)
    except redis.AuthenticationError as error:
        raise UsageError(f"the Redis at {address} refuses the name or password in {VARIABLE}: {error}") from error
    if (sentence := refusal(policy, str(address))) is not None:
        raise StrandlineError(sentence)
    if policy is None:
        log.warning("the Redis at %s tells nobody its maxmemory-policy; make sure that it is %s", address, WANTED)


def await_fit(client: redis.Redis, address: Address, patience_s: float = float("inf"),
              meanwhile: Callable[[], None] = lambda: None) -> None:  # fmt: skip
    """Return once the server answers and may be used. While it does not answer that is said, again and again, and
    `meanwhile` is done. Raises StrandlineError as `check` does, and where patience ends.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            check(client, address)
            return
        except redis.RedisError as error:
            sentence = f"the Redis at {address} does not answer: {error}"
            if time.monotonic() >= deadline:
                raise StrandlineError(f"{sentence}; is {VARIABLE} right, and does the server run?") from error
            log.warning("%s; trying again in %.0f s", sentence, RETRY_S)
            meanwhile()
        time.sleep(RETRY_S)

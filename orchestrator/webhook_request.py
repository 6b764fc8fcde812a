"""One request to a webhook: to whom, signed how, for how long.

Signed as Standard Webhooks (standardwebhooks.com, version 1) has it, so that receivers can take a library: the headers
webhook-id (the same at each try), webhook-timestamp and webhook-signature, an HMAC-SHA256 over all three parts.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import socket

import httpx

from db.webhooks import Webhook
from orchestrator.webhook_address import SECRET_PREFIX, WITHIN_S, is_public


class Refused(Exception):
    """The request was not made, or not answered as one that was taken."""


def signature(secret: str, delivery_id: str, timestamp: int, body: bytes) -> str:
    """The value of webhook-signature."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = hmac.new(key, f"{delivery_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(signed).decode()}"


def post(webhook: Webhook, delivery_id: str, timestamp: int, body: bytes, *, private: bool) -> None:
    """Tell it. `private`: addresses that are not public are allowed. Raises Refused, with a sentence."""
    headers = {
        "content-type": "application/json",
        "user-agent": "strandline",
        "webhook-id": delivery_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(webhook.secret, delivery_id, timestamp, body),
    }
    try:
        status = asyncio.run(asyncio.wait_for(_post(webhook.url, headers, body, private), WITHIN_S))
    except TimeoutError as error:
        raise Refused(f"no answer within {WITHIN_S:.0f} s") from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise Refused(str(error) or type(error).__name__) from error
    if not 200 <= status < 300:
        raise Refused(f"it answered {status}")


async def _post(url: str, headers: dict[str, str], body: bytes, private: bool) -> int:
    """The status of the answer, of which no more is read; redirects are not followed."""
    asked = httpx.URL(url)
    address = await _address(asked.host, asked.port or (443 if asked.scheme == "https" else 80), private)
    # To the very address that was looked at: the name may say another by now.
    pinned = asked.copy_with(host=address)
    async with (
        httpx.AsyncClient(timeout=WITHIN_S, trust_env=False) as client,
        client.stream("POST", pinned, content=body, headers=headers | {"host": asked.netloc.decode("ascii")},
                      extensions={"sni_hostname": asked.host}) as response,
    ):  # fmt: skip
        return response.status_code


async def _address(host: str, port: int, private: bool) -> str:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(one[4][0]) for one in found]
    inner = [one for one in addresses if not is_public(one)]
    if inner and not private:
        raise Refused(f"{host} is {inner[0]}, which is no public address: STRANDLINE_WEBHOOK_PRIVATE allows that")
    return addresses[0]

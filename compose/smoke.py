"""Tries a stack of compose.yaml as its users would: registers a folder, asks for a scan, reads the feed, tells the lag.

python3 compose/smoke.py [ROOT]      ROOT: a folder as containers see it (/data/…), by default the first in /data

It needs the address and token of the API (STRANDLINE_API_ADDRESS, compose/secrets/api_token), and Python alone. The
tenant that it makes is removed at the end.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
READY_S, ENDED_S, TOLD_S = 120, 600, 60


def address() -> str:
    """Where the host reaches the API: as compose.yaml publishes it."""
    return "http://" + os.environ.get("STRANDLINE_API_ADDRESS", "127.0.0.1:8080")


def ask(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The answer of the API, by its type; errors end the program with what they say."""
    token = (HERE / "secrets" / "api_token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address() + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read().decode()
            return json.loads(content) if "json" in answer.headers.get("Content-Type", "") else content
    except urllib.error.HTTPError as error:
        sys.exit(f"smoke: {method} {path}: {error.code} {error.read().decode(errors='replace')}")


def ready() -> None:
    """Return once the API, and with it the database, is ready."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            with urllib.request.urlopen(address() + "/readyz", timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"smoke: {address()} is not ready after {READY_S} s: {error}")
        time.sleep(0.5)


def first_folder() -> str:
    """The first folder of /data, as the API's container sees it."""
    compose = [*os.environ.get("COMPOSE", "docker compose").split(), "-f", str(HERE / "compose.yaml")]
    program = "import os; print(*sorted(one.name for one in os.scandir('/data') if one.is_dir()), sep='\\n')"
    done = subprocess.run([*compose, "exec", "-T", "api", "python3", "-c", program], capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        sys.exit(f"smoke: no folder is seen in /data; name one that is there {done.stderr}")
    return "/data/" + done.stdout.splitlines()[0]


def changes(tenant: str) -> dict[str, Any]:
    """The feed from its beginning, applied to an empty map: by path, the last that was said of it."""
    state: dict[str, Any] = {}
    since = ""
    while True:
        page = ask("GET", f"/v1/tenants/{tenant}/changes?limit=1000{since}")
        for change in page["items"]:
            state[change["path"]] = change
        if not page["items"]:
            return state
        since = f"&since={page['next'] or page['items'][-1]['cursor']}"


def lag() -> str:
    """By how many seconds the schedule is behind, as the metrics tell it.

    They leave out a part that does not answer in time, such as a database on a host that is busy with starting: whoever
    scrapes them asks again, and so does this.
    """
    deadline = time.monotonic() + TOLD_S
    while True:
        told = ask("GET", "/metrics")
        if found := re.search(r"^strandline_schedule_lag_seconds\S* (\S+)$", told, re.MULTILINE):
            return found[1]
        if time.monotonic() > deadline:
            parts = ", ".join(re.findall(r"^strandline_up.*$", told, re.MULTILINE))
            sys.exit(f"smoke: the metrics do not tell the lag of the schedule within {TOLD_S} s; parts: {parts}")
        time.sleep(0.5)


def main() -> None:
    """Say what was tried and found; exit 1 where it is not as it should be."""
    began = time.monotonic()
    ready()
    print(f"ready after {time.monotonic() - began:.1f} s")
    root, tenant = sys.argv[1] if len(sys.argv) > 1 else first_folder(), f"smoke-{uuid.uuid4().hex[:8]}"
    ask("POST", "/v1/tenants", {"name": tenant, "root": root})
    try:
        asked = time.monotonic()
        scan = ask("POST", f"/v1/tenants/{tenant}/scans", {})["scan"]
        while (found := ask("GET", f"/v1/scans/{scan}"))["state"] in ("queued", "running"):
            if time.monotonic() - asked > ENDED_S:
                sys.exit(f"smoke: the scan of {root} has not ended after {ENDED_S} s: {found}")
            time.sleep(0.2)
        print(f"{root}: {found['state']}, {found['files']:,} files after {time.monotonic() - asked:.1f} s")
        fed = len(changes(tenant))
        print(f"{fed:,} changes in the feed")
        print(f"lag of the schedule: {lag()} s")
    finally:
        ask("DELETE", f"/v1/tenants/{tenant}")
    if found["state"] not in ("succeeded", "partial") or fed < found["added"]:
        sys.exit(f"smoke: this is not as it should be: {found}")
    print("all is well")


if __name__ == "__main__":
    main()

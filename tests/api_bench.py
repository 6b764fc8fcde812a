"""What the API costs: enqueueing beside readers of events, and how soon a scan that was asked for looks at something.

make bench-api ARGS="--rate 200 --seconds 60 --readers 1000"

One API process on PostgreSQL and Redis of its own; requests come at their times whether those before were answered or
not, so that a slow answer is not hidden by fewer requests. Nothing scans meanwhile: the figures are the API's own.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from db.engine import connect, reading
from db.tables import shards
from tests import cluster as clusters
from tests.api import ADMIN, TOKENS
from tests.processes import read_peak
from tests.servers import for_a_benchmark, free_port
from tests.storage import add_tenant
from tests.trees import Dir, File, build
from tests.waiting import wait_until

TENANTS = 1000
# What is promised.
MEDIAN_MS, P99_MS, FIRST_MS, GROWTH_MB = 20, 100, 300, 20


@dataclass
class Reader:
    """Raw, so that a thousand of them cost this process little."""

    events: int = 0
    alive: bool = False

    async def run(self, port: int, path: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
            f"Authorization: Bearer {ADMIN}\r\n\r\n".encode()
        )
        with contextlib.closing(writer):
            while chunk := await reader.read(65536):
                self.alive = True
                self.events += chunk.count(b"data: ")
        self.alive = False


@dataclass
class Load:
    """A connection that asks for scans, one after the other, as they are due."""

    port: int
    took_ms: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)

    async def run(self, due: "asyncio.Queue[tuple[float, int] | None]") -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with contextlib.closing(writer):
            while (one := await due.get()) is not None:
                at_s, number = one
                writer.write(
                    f"POST /v1/tenants/t{number}/scans HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                    f"Authorization: Bearer {ADMIN}\r\nContent-Length: 0\r\n"
                    f"Idempotency-Key: {at_s:.9f} {number}\r\n\r\n".encode()
                )
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                self.took_ms.append((time.monotonic() - at_s) * 1000)
                status = head[9:12].decode()
                self.statuses[status] = self.statuses.get(status, 0) + 1


async def enqueue(port: int, rate: float, seconds: float, readers: int, pid: int, followed: list[str]) -> dict:
    reading_ = [Reader() for _ in range(readers)]
    tasks = [asyncio.ensure_future(one.run(port, path))
             for one, path in zip(reading_, followed, strict=True)]  # fmt: skip
    deadline = time.monotonic() + 60
    while not all(one.alive for one in reading_) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    assert all(one.alive for one in reading_), f"{sum(one.alive for one in reading_)} of {readers} readers are served"
    due: asyncio.Queue = asyncio.Queue()
    loads = [Load(port) for _ in range(64)]
    asking = [asyncio.ensure_future(one.run(due)) for one in loads]
    sizes, cpu_s = [resident_mb(pid)], psutil.Process(pid).cpu_times()
    begun_s = time.monotonic()
    for number in range(int(rate * seconds)):
        at_s = begun_s + number / rate
        await asyncio.sleep(max(0.0, at_s - time.monotonic()))
        due.put_nowait((at_s, random.randrange(TENANTS)))
        if number % max(1, int(rate * seconds / 10)) == 0:
            sizes.append(resident_mb(pid))
    for _ in loads:
        due.put_nowait(None)
    await asyncio.gather(*asking)
    sizes.append(resident_mb(pid))
    spent = [after - before for before, after in zip(cpu_s, psutil.Process(pid).cpu_times(), strict=True)]
    took = sorted(ms for one in loads for ms in one.took_ms)
    alive = sum(one.alive for one in reading_)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    statuses: dict[str, int] = {}
    for one in loads:
        for status, count in one.statuses.items():
            statuses[status] = statuses.get(status, 0) + count
    return {
        "requests": len(took), "statuses": statuses, "median_ms": round(statistics.median(took), 1),
        "p99_ms": round(took[int(len(took) * 0.99)], 1), "max_ms": round(took[-1], 1),
        "cpu_ms_per_request": round(sum(spent[:2]) * 1000 / len(took), 2),
        "readers": readers, "readers_alive": alive, "events": sum(one.events for one in reading_),
        "resident_mb": [round(size) for size in sizes],
    }  # fmt: skip


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("the API has ended")


def first_listings(url: str, port: int, engine, rounds: int, folder: Path) -> list[float]:
    """Milliseconds from asking until a directory is listed, on an idle cluster."""
    took = []
    with httpx.Client(headers={"Authorization": f"Bearer {ADMIN}"}) as client:
        for number in range(rounds):
            root = folder / f"tree{number}"
            build(os.fsencode(root), Dir({b"%d" % one: File(b"x") for one in range(20)}))
            add_tenant(engine, f"idle{number}", root=os.fsencode(root), interval_s=1_000_000)
        for number in range(rounds):
            begun_s = time.monotonic()
            scan = client.post(f"http://127.0.0.1:{port}/v1/tenants/idle{number}/scans").json()["scan"]
            wait_until(lambda: listed(engine, scan), 20, "a directory is listed")  # noqa: B023
            took.append((time.monotonic() - begun_s) * 1000)
            wait_until(lambda: client.get(f"http://127.0.0.1:{port}/v1/scans/{scan}").json()["state"]  # noqa: B023
                       == "succeeded", 20, "it ends")  # fmt: skip
    return took


def listed(engine, scan: str) -> bool:
    with reading(engine) as connection:
        query = shards.select().where(shards.c.scan_id == scan, shards.c.number > 0, shards.c.directories > 0)
        return connection.execute(query).first() is not None


@contextlib.contextmanager
def api_of(cluster: clusters.Cluster) -> Iterator[tuple[int, int]]:
    """The API as a process of the cluster: its port and its id."""
    process = cluster.begin("api", "api", "--level", "WARNING")
    assert process.stderr.wait_for(b"API: ", 30), process.stderr.content
    found = re.search(rb"API: http://127.0.0.1:(\d+)", process.stderr.content)
    assert found is not None
    port = int(found[1])
    wait_until(lambda: answers(port), 30, "the API answers")
    yield port, process.pid


def answers(port: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    return False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=200, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--readers", type=int, default=1000, help="nine in ten of feeds, the others of scans")
    parser.add_argument("--rounds", type=int, default=20, help="scans on the idle cluster")
    given = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with for_a_benchmark() as (url, broker), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {"STRANDLINE_API_TOKENS": TOKENS, "STRANDLINE_API_RATE": "1000000",
                    "STRANDLINE_API_PORT": str(free_port()), "STRANDLINE_INTERVAL_S": "1000000"}  # fmt: skip
        with clusters.running(folder, url, broker.url, **settings) as cluster, api_of(cluster) as (port, pid):
            engine = connect(url, pool_size=4)
            took = first_listings(url, port, engine, given.rounds, folder)
            for process in ("worker", "beat"):  # from here on it is the API alone
                cluster.processes.pop(process).close()
            tenants = [add_tenant(engine, f"t{number}", interval_s=1_000_000) for number in range(TENANTS)]
            scan = httpx.post(f"http://127.0.0.1:{port}/v1/tenants/t0/scans",
                              headers={"Authorization": f"Bearer {ADMIN}"}).json()["scan"]  # fmt: skip
            followed = [f"/v1/scans/{scan}/events" if number % 10 == 0
                        else f"/v1/tenants/{tenants[number % TENANTS].name}/changes"
                        for number in range(given.readers)]  # fmt: skip
            found = asyncio.run(enqueue(port, given.rate, given.seconds, given.readers, pid, followed))
            found["peak_mb"] = round(read_peak(pid).peak_bytes / 2**20)
            found["first_listing_ms"] = {"median": round(statistics.median(took)), "max": round(max(took))}
            engine.dispose()
    print(json.dumps(found))
    sizes = found["resident_mb"]
    held = {
        f"median at most {MEDIAN_MS} ms": found["median_ms"] <= MEDIAN_MS,
        f"99 of 100 within {P99_MS} ms": found["p99_ms"] <= P99_MS,
        "every request was accepted": set(found["statuses"]) <= {"200", "202"},
        "every reader is served to the end": found["readers_alive"] == found["readers"],
        f"memory grows by at most {GROWTH_MB} MB": sizes[-1] - sizes[len(sizes) // 3] <= GROWTH_MB,
        f"a directory is listed within {FIRST_MS} ms": found["first_listing_ms"]["median"] <= FIRST_MS,
    }
    for promise, holds in held.items():
        print(f"{'held' if holds else 'BROKEN':<7}{promise}")
    sys.exit(0 if all(held.values()) else 1)


if __name__ == "__main__":
    main()

"""The page: what is on it for whom, what it refuses, and what a person does there with a browser and a keyboard."""

import base64
import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from db.engine import writing
from db.tables import scans as scans_table
from db.types import ScanState, new_scan_id
from orchestrator.api.page import HEADERS
from tests.api import ADMIN, ONE, Api, migrated, scanned, serving
from tests.command import Command
from tests.field import cut, large
from tests.servers import postgres_kinds
from tests.storage import rows
from tests.trees import Dir, File, build
from tests.waiting import wait_until

SOON_MS = 30_000


@pytest.fixture(scope="module")
def api(_postgres_servers, redis_url: str) -> Iterator[Api]:
    with (
        _postgres_servers(postgres_kinds()[-1]).database() as url,
        serving(migrated(url), redis_url) as api,
    ):
        for name in ("one", "other"):
            scan_id = scanned(api.engine, name, files=12)
            with writing(api.engine) as connection:
                connection.execute(
                    update(scans_table).where(scans_table.c.id == scan_id)
                    .values(state=ScanState.SUSPECT, doubt=f"all <b>12</b> files of {name} are gone")
                )  # fmt: skip
        yield api


def look(api: Api, path: str = "/", token: str | None = ADMIN, method: str = "GET", **headers: str):
    basic = {"Authorization": "Basic " + base64.b64encode(f"me:{token}".encode()).decode()} if token else {}
    return api.ask(method, path, None, headers=basic | headers)


def suspect_of(api: Api, name: str) -> str:
    return re.search(r'action="/confirm/([0-9a-f-]+)"', look(api).text.partition(f"<h3>{name}</h3>")[2])[1]


def test_a_browser_is_asked_for_a_token_as_password(api: Api) -> None:
    for wrong in (None, "nobody's", "x" * 9000):
        answer = look(api, token=wrong)
        assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic ")
    assert look(api).status_code == 200


def test_a_tenant_s_token_sees_its_own_alone(api: Api) -> None:
    mine, all_ = look(api, token=ONE).text, look(api).text

    assert '<th scope="row">other</th>' in all_ and "files of other are gone" in all_
    assert "other" not in mine.replace("otherwise", "") and "files of one are gone" in mine
    assert "Seen by admins only." in mine and "Shards ready" not in mine


def test_what_others_wrote_is_shown_as_text(api: Api) -> None:
    assert "all &lt;b&gt;12&lt;/b&gt; files" in look(api).text

    told = look(api, "/explained?tenant=one&path=%3Cscript%3E").text
    assert "<script" not in told and "&lt;script&gt;" in told


def test_nothing_comes_from_elsewhere_and_nothing_is_inline(api: Api) -> None:
    answer = look(api)

    assert all(answer.headers[name] == value for name, value in HEADERS.items())
    for place in re.findall(r'(?:src|href|action|data-from)="([^"]*)"', answer.text):
        assert place.startswith(("/", "#")) and not place.startswith("//"), place
    assert not re.search(r"<script>|\sstyle=|\son\w+=", answer.text)
    for name in ("page.css", "page.js"):
        assert look(api, f"/files/{name}", token=None).status_code == 200
    assert look(api, "/files/page.html", token=None).status_code == 404


def test_deletions_are_let_through_by_the_page_s_own_button_alone(api: Api) -> None:
    mine, own = suspect_of(api, "one"), {"Origin": api.url}

    for headers in ({}, {"Origin": "https://evil.example"}, own | {"Sec-Fetch-Site": "cross-site"}):
        assert look(api, f"/confirm/{mine}", ONE, "POST", **headers).status_code == 403
    foreign = look(api, f"/confirm/{suspect_of(api, 'other')}", ONE, "POST", **own)
    nowhere = look(api, f"/confirm/{new_scan_id()}", ONE, "POST", **own)
    assert foreign.status_code == nowhere.status_code == 404
    assert not rows(api.engine, scans_table, state="queued")

    answer = look(api, f"/confirm/{mine}", ONE, "POST", **own)

    assert (answer.status_code, answer.headers["location"]) == (303, "/#scans")
    [queued] = rows(api.engine, scans_table, state="queued")
    assert queued["confirms"] == 1


def test_there_is_a_page_of_tenants_after_the_first(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.api.page.TENANTS", 1)

    first = look(api).text
    assert '<th scope="row">one</th>' in first and 'href="/?after=one#tenants"' in first

    second = look(api, "/?after=one").text
    assert '<th scope="row">other</th>' in second and '<th scope="row">one</th>' not in second
    assert "No more." in look(api, "/?after=other").text


def test_without_redis_it_says_what_cannot_be_seen(_postgres_servers, own_redis) -> None:
    with (
        _postgres_servers(postgres_kinds()[-1]).database() as url,
        own_redis() as broker,
        serving(migrated(url), broker.url) as api,
    ):
        broker.kill()
        answer = look(api)
        assert answer.status_code == 200 and "workers and live progress cannot be seen" in answer.text


# With a browser


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
    with (
        sync_playwright() as playwright,
        contextlib.closing(playwright.chromium.launch(executable_path="/usr/bin/chromium", args=quiet)) as browser,
    ):
        yield browser


def shoot(page, name: str) -> None:
    """For the documents, where somebody wants it."""
    if folder := os.environ.get("SCREENSHOTS"):
        for width in (360, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            page.screenshot(path=str(Path(folder) / f"{name}-{width}.png"), full_page=True)


def fits(page) -> bool:
    """Nothing is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.needs("chromium")
def test_a_person_sees_a_scan_go_on_lets_deletions_through_and_has_a_path_explained(browser, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "notes")
    build(root, Dir({b"letters": Dir({b"%02d" % n: File(b"%d" % n) for n in range(60)}), b"todo": File(b"x")}))
    command = Command(tmp_path / "state")
    with command.up("--dir", root, "--workers", "1"), contextlib.closing(browser.new_page()) as page:
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.set_default_timeout(2 * SOON_MS)
        page.set_viewport_size({"width": 360, "height": 740})
        page.goto(command.json("status")[0]["api"])
        assert page.get_by_role("row", name="notes").inner_text().split()[1] == "succeeded"
        assert fits(page)

        path = large(root)
        assert command.run("enqueue", "notes").returncode == 0
        running = page.locator("article.scan")
        running.wait_for(timeout=SOON_MS)
        seen = running.inner_text()
        wait_until(lambda: running.count() and running.inner_text() != seen, 30, "its progress moves")
        shoot(page, "running")
        cut(path)
        running.wait_for(state="detached", timeout=SOON_MS)

        for number in range(60):
            os.unlink(root + b"/letters/%02d" % number)
        assert command.run("enqueue", "notes").returncode == 0
        button = page.get_by_role("button", name="Let the deletions through of notes")
        button.wait_for(timeout=SOON_MS)
        assert "60 of 62 files are gone" in page.locator("article.suspect").inner_text()
        shoot(page, "suspect")
        button.focus()
        page.keyboard.press("Enter")
        button.wait_for(state="detached", timeout=SOON_MS)
        wait_until(lambda: len(command.index("notes")) == 2, 30, "what was gone is deleted")

        page.get_by_role("textbox", name="Tenant").fill("notes")
        page.keyboard.press("Tab")
        page.keyboard.type("todo")
        page.keyboard.press("Enter")
        page.locator("#explained p").first.wait_for(timeout=SOON_MS)
        assert "notes: todo" in page.locator("#explained").inner_text()
        shoot(page, "explained")
        assert fits(page) and errors == []

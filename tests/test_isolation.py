"""What is one tenant's is nobody else's: rows, and what a function is asked of."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from db import tables, tree
from db.engine import writing
from db.types import ScanState
from tests.storage import rows
from tests.test_interleavings import Make, World
from tests.test_interleavings import world as world  # the fixture
from tests.trees import Dir, File, Symlink, apply_feed, build, remove, write

TOP = Path(__file__).parent.parent
HUGE = 20
MANY = {b"%02d" % n: File(b"%d" % n) for n in range(3 * HUGE)}
TREE = Dir({
    b"huge": Dir(MANY), b"moving": Dir({b"a": File(b"a"), b"b": Dir({b"c": File(b"c")})}),
    b"going": Dir({b"x": File(b"x")}), b"link": Symlink(b"huge"), b"changing": File(b"1"),
    b"ignored": File(b"i"), b"replaced": File(b"r"),
})  # fmt: skip


def owned_by(engine: Engine, tenant_id: int) -> dict[str, list[dict[str, Any]]]:
    """Every row of a tenant."""
    of_tenant = [table for table in tables.metadata.sorted_tables if "tenant_id" in table.columns]
    return {table.name: rows(engine, table, tenant_id=tenant_id) for table in of_tenant}


@pytest.fixture
def twins(world: Make, migrated_url: str) -> Iterator[tuple[World, World]]:
    """Two tenants with equal trees, whose directories have the same ids: a statement that forgets whose are meant meets
    both.
    """
    settings = {"huge_entries": HUGE, "shard_entries": 25, "verify_days": 1e6}
    one = world(TREE, url=migrated_url, name="one", **settings)
    one.scan()
    with writing(one.engine) as connection:
        connection.execute(text("UPDATE id_blocks SET next = (SELECT min(id) FROM directories) / :n"),
                           {"n": tree.IDS_PER_BLOCK})  # fmt: skip
    two = world(TREE, url=migrated_url, name="two", **settings)
    two.scan()
    ids = [{row["id"] for row in rows(one.engine, tables.directories, tenant_id=it.tenant_id)} for it in (one, two)]
    assert ids[0] == ids[1]
    yield one, two
    remove(one.root)


def change(root: bytes) -> None:
    build(root, Dir({b"moved": Dir(), b"new": Dir({b"n": File(b"n"), b"more": Dir({b"m": File(b"m")})})}))
    (Path(root.decode()) / "moving").rename(Path(root.decode()) / "moved" / "here")
    remove(root + b"/going")
    write(root + b"/changing", b"2")
    write(root + b"/huge/00", b"changed")
    remove(root + b"/huge/01")
    remove(root + b"/replaced")
    build(root + b"/replaced", Dir({b"by a folder": File(b"f")}))
    write(root + b"/.strandlineignore", b"ignored\n")


def test_no_scan_touches_another_tenants_rows(twins: tuple[World, World]) -> None:
    one, two = twins
    before = owned_by(two.engine, two.tenant_id)
    assert all(before[name] for name in ("directories", "directory_ranges", "files", "changes", "scans", "shards"))

    def same() -> None:
        assert owned_by(two.engine, two.tenant_id) == before

    change(one.root)
    assert one.scan().state == ScanState.SUCCEEDED
    same()
    for asked in ({"full": True}, {"verify": True}):
        assert one.scan(**asked).state == ScanState.SUCCEEDED
        same()
    assert one.end_early(one.start(full=True), ScanState.CANCELLED).state == ScanState.CANCELLED
    same()
    for name in (b"huge", b"moved"):
        remove(one.root + b"/" + name)
    suspect = one.scan()
    assert suspect.state == ScanState.SUSPECT
    same()
    assert one.scan(confirms=suspect.fence).deleted == 61
    same()
    assert apply_feed(one.feed) == one.index != two.index == apply_feed(two.feed)


def test_nothing_is_asked_of_all_tenants_by_leaving_one_out() -> None:
    """Whoever has forgotten which tenant is meant gets an error, not everybody's."""
    optional = []
    for path in sorted((TOP / "db").glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                arguments = [*function.args.args, *function.args.kwonlyargs]
                defaults = len(function.args.defaults)
                optional += [
                    f"{path.name}: {function.name}"
                    for number, argument in enumerate(arguments)
                    if argument.arg in ("tenant_id", "tenant", "tenant_ids")
                    and ("None" in ast.unparse(argument.annotation or ast.Constant(None))
                         or len(function.args.args) - defaults <= number < len(function.args.args))
                ]  # fmt: skip

    # (Of the log of who did what, some of which is done to no tenant.)
    assert optional == ["audit.py: note"]

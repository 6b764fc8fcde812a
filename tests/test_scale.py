"""docs/partition.sql: the large tables in parts, on which all is as before, and nobody sees another tenant's rows."""

import pytest
from sqlalchemy import Engine, select

from db import indexed, row_security, schema
from db.engine import connect, narrowed, reading, write
from db.tables import directories, files
from tests import scale
from tests.storage import NEWEST_POSTGRES, add_tenant, file, tree_rows, write_tree


@pytest.fixture
def parted(postgres_url: str):
    engine = connect(postgres_url)
    schema.migrate(engine)
    scale.partition(postgres_url, 4)
    assert schema.migrate(engine) is False and write(engine, row_security.prepare)  # as the command does
    yield engine
    engine.dispose()


@NEWEST_POSTGRES
def test_rows_are_written_and_read_and_a_tenant_sees_his_own_alone(parted: Engine) -> None:
    known = [add_tenant(parted, name) for name in ("one", "other", "third")]
    for tenant in known:
        rows = tree_rows(tenant.id, [b"a/b"])
        write_tree(parted, new_directories=rows, files=[file(tenant.id, 2, b"note"), file(tenant.id, 3, b"more")])
        write_tree(parted, files=[file(tenant.id, 3, b"more", size=7)])  # written again
    with reading(parted) as connection:
        assert [one.path for one in indexed.page(connection, known[0].id)] == [b"a/note", b"a/b/more"]
        assert connection.execute(select(files.c.size).where(files.c.name == b"more")).scalars().all() == [7, 7, 7]
        parts = connection.exec_driver_sql("SELECT count(*) FROM pg_inherits").scalar_one()
    assert parts >= 3 * 4
    with reading(narrowed(parted, ["other"])) as connection:
        for table in (files, directories):
            seen = set(connection.execute(select(table.c.tenant_id)).scalars())
            assert seen == {known[1].id}, table.name

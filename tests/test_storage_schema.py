"""The schema: what the migrations make is what the models say, and whatever is wrong with a database is a sentence."""

import multiprocessing
import os
import re
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, Engine, create_engine, inspect, text

import db
from db import schema
from db.engine import connect, reading, writing
from db.tables import metadata
from db.types import DatabaseError, UsageError
from tests.command import STRANDLINE
from tests.processes import start
from tests.storage import NEWEST_POSTGRES, at_once, rows

ONLY_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
MIGRATIONS = Path(db.__file__).parent / "migrations"


@pytest.fixture
def empty(database_url):
    engine = connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(empty):
    """A database of its own: these tests change its schema."""
    schema.migrate(empty)
    return empty


# Migrations and models


def test_the_migrations_make_what_the_models_say(engine):
    with reading(engine) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})

        assert compare_metadata(context, metadata) == []


def test_the_migrations_make_what_create_all_makes_down_to_checks_and_defaults(engine):
    # compare_metadata looks at no CHECK, no default and no condition of an index.
    migrated = _described(engine)
    with writing(engine) as connection:
        metadata.drop_all(connection)
        metadata.create_all(connection)
    created = _described(engine)

    assert set(created) == set(metadata.tables) | {"alembic_version"}
    for table, expected in created.items():
        assert migrated[table] == expected


def _described(engine: Engine) -> dict[str, dict[str, object]]:
    inspector = inspect(engine)
    return {
        table: {
            "columns": {
                one["name"]: (str(one["type"]), one["nullable"], _bare(one["default"]))
                for one in inspector.get_columns(table)
            },
            "checks": {one["name"]: _bare(one["sqltext"]) for one in inspector.get_check_constraints(table)},
            "unique": {one["name"]: one["column_names"] for one in inspector.get_unique_constraints(table)},
            "indexes": {
                one["name"]: (one["column_names"], one["unique"], _texts(one.get("dialect_options", {})))
                for one in inspector.get_indexes(table)
            },
            "key": inspector.get_pk_constraint(table),
            "foreign": inspector.get_foreign_keys(table),
            "options": inspector.get_table_options(table),
        }
        for table in inspector.get_table_names()
    }


def _texts(options: dict[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in options.items()}


def _bare(sql: str | None) -> str | None:
    """SQLite keeps a default as it was written, in parentheses or not."""
    return sql if sql is None else re.sub(r"^\((\w+)\)$", r"\1", sql)


def test_every_check_of_the_models_is_in_the_database(engine):
    inspector = inspect(engine)
    for table in metadata.sorted_tables:
        expected = {str(one.name) for one in table.constraints if isinstance(one, CheckConstraint)}

        assert {one["name"] for one in inspector.get_check_constraints(table.name)} == expected


def test_this_program_knows_its_migrations():
    scripts = ScriptDirectory(str(MIGRATIONS))
    revisions = [script.revision for script in scripts.walk_revisions()]

    assert schema.HEAD == revisions[0] == max(path.name[:4] for path in (MIGRATIONS / "versions").glob("0*.py"))
    assert scripts.get_heads() == [schema.HEAD]
    assert set(schema.KNOWN) == {None, *revisions}


def test_migrating_twice_does_nothing_the_second_time(empty):
    assert schema.version(empty) is None

    assert schema.migrate(empty) is True
    assert schema.migrate(empty) is False

    assert schema.version(empty) == schema.HEAD
    schema.require_current(empty)


def test_threads_that_migrate_at_once_all_find_the_newest_schema(database_url):
    engines = [connect(database_url) for _ in range(4)]

    done = at_once(*(lambda engine=engine: schema.migrate(engine) for engine in engines))

    assert all(isinstance(one, bool) for one in done), done
    assert any(done)
    assert [schema.version(engine) for engine in engines] == [schema.HEAD] * 4
    for engine in engines:
        engine.dispose()


def test_processes_that_migrate_at_once_all_find_the_newest_schema(database_url):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_migrate_when_all_are_ready, args=(database_url, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert [process.exitcode for process in processes] == [0, 0]


def _migrate_when_all_are_ready(url: str, barrier) -> None:
    engine = connect(url)
    barrier.wait(60)
    schema.migrate(engine)
    schema.require_current(engine)


def test_a_failed_migration_leaves_nothing_behind(empty):
    with writing(empty) as connection:
        connection.exec_driver_sql("CREATE TABLE vanished (x INTEGER)")  # the last that the migration makes

    with pytest.raises(DatabaseError, match="vanished"):
        schema.migrate(empty)

    assert set(inspect(empty).get_table_names()) == {"vanished"}


def test_downgrading_to_base_leaves_nothing_of_ours(engine):
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")

    assert inspect(engine).get_table_names() == ["alembic_version"]
    assert schema.version(engine) is None
    assert schema.migrate(engine) is True


# Sentences


def test_an_empty_database_is_refused_with_what_to_do(empty):
    with pytest.raises(DatabaseError, match=f"has schema none, this program needs {schema.HEAD}: run `strandline mig"):
        schema.require_current(empty)


def test_a_newer_schema_is_refused_with_where_it_is_and_what_to_do(engine):
    with writing(engine) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        connection.exec_driver_sql("UPDATE compatibility SET least = '9998'")

    for refuses in (schema.migrate, schema.require_current):
        with pytest.raises(DatabaseError) as caught:
            refuses(engine)
        assert schema.where(engine) in str(caught.value)
        assert "9999, which is newer than this program" in str(caught.value)
        assert "upgrade strandline" in str(caught.value)


def test_a_damaged_sqlite_file_is_a_sentence(tmp_path):
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(b"this was never a database " * 1000)

    with pytest.raises(DatabaseError) as caught:
        schema.migrate(connect(f"sqlite:///{damaged}"))

    assert str(damaged) in str(caught.value)
    assert "the file is damaged: move it away" in str(caught.value)


@ONLY_SQLITE
def test_a_sqlite_file_that_was_cut_short_is_a_sentence(engine):
    engine.dispose()
    file = Path(engine.url.database)
    file.write_bytes(file.read_bytes()[:8192])

    with pytest.raises(DatabaseError, match="the file is damaged: move it away"):
        schema.require_current(connect(str(engine.url)))


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(DatabaseError, match="see that the folder can be written to") as caught:
        schema.migrate(connect(f"sqlite:///{tmp_path}/missing/test.sqlite"))

    assert f"{tmp_path}/missing/test.sqlite" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://clerk:hunter2@127.0.0.1:1/index",
        "postgresql+psycopg://clerk@127.0.0.1:1/index?password=hunter2",
        "postgresql+psycopg://127.0.0.1:1/index?user=clerk&password=hunter2&sslpassword=hunter2&sslmode=prefer",
    ],
)
def test_an_unreachable_postgresql_is_a_sentence_without_the_password(url):
    with pytest.raises(DatabaseError) as caught:
        schema.migrate(connect(url))

    assert "127.0.0.1:1/index" in str(caught.value)
    assert "see that it runs and can be reached" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "clerk hunter2",
        "mysql://clerk:hunter2@host/index",
        "postgresql://clerk:hunter2@host/index",
        "postgresql+psycopg://clerk:hunter2",
        "postgresql+psycopg://clerk:hunter2@host:port/index",
        "",
    ],
)
def test_what_is_no_address_of_a_database_is_a_sentence_without_the_password(url):
    with pytest.raises(UsageError) as caught:
        connect(url)

    assert "STRANDLINE_DATABASE_URL" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_new_schema_holds_one_row_the_first_block_of_ids(engine):
    assert [(row["name"], row["next"]) for row in rows(engine, metadata.tables["id_blocks"])] == [("directories", 1)]


@ONLY_SQLITE
def test_sqlite_takes_the_write_lock_first_and_readers_do_not_wait_for_it(engine):
    impatient = create_engine(engine.url, connect_args={"timeout": 0, "isolation_level": None})

    with writing(engine):
        with reading(engine) as connection:
            assert connection.execute(text("SELECT count(*) FROM tenants")).scalar() == 0
        with pytest.raises(Exception, match="locked"), impatient.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
    impatient.dispose()


@NEWEST_POSTGRES
def test_who_waits_for_the_schema_waits_for_the_database_too_and_changes_nothing(postgres_server, tmp_path):
    postgres_server.execute("DROP DATABASE IF EXISTS later WITH (FORCE)")
    env = {**os.environ, "STRANDLINE_DATABASE_URL": postgres_server.url("later")}
    with start([STRANDLINE, "migrate", "--wait"], env=env, cwd=tmp_path) as waiting:
        assert waiting.stderr.wait_for(b"does not exist", 30), waiting.stderr.content
        postgres_server.execute("CREATE DATABASE later")
        try:
            assert waiting.stderr.wait_for(b"has schema none", 30), waiting.stderr.content
            engine = connect(postgres_server.url("later"))
            assert schema.version(engine) is None
            schema.migrate(engine)
            assert waiting.wait(30).returncode == 0
            with writing(engine) as connection:
                connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
                connection.exec_driver_sql("UPDATE compatibility SET least = '9999'")
            with start([STRANDLINE, "migrate", "--wait"], env=env, cwd=tmp_path) as refused:
                ended = refused.wait(30)
            assert ended.returncode == 2 and b"newer than this program" in ended.stderr
            engine.dispose()
        finally:
            postgres_server.execute("DROP DATABASE later WITH (FORCE)")

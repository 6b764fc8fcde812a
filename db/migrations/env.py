"""Alembic's entry: runs the migrations on the connection that db/schema.py hands over, or on the one of alembic.ini."""

from alembic import context
from sqlalchemy import Connection, Table

from db.engine import connect, patient, writing
from db.tables import metadata


def _ours(thing: object, name: str | None, type_: str, _reflected: bool, _other: object) -> bool:
    # Staging tables of COPY are temporary, and SQLite's own bookkeeping is not ours.
    return not (type_ == "table" and isinstance(thing, Table) and str(name).startswith(("stage_", "sqlite_")))


def run(connection: Connection) -> None:
    context.configure(
        connection=connection, target_metadata=metadata, include_object=_ours, render_as_batch=True,
        transaction_per_migration=False,
    )  # fmt: skip
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    url = context.config.get_main_option("sqlalchemy.url") or ""
    with writing(patient(connect(url))) as own:
        run(own)

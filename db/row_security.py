"""Row-level security on PostgreSQL: under the API's own role a statement sees and writes rows of the caller's tenants
alone, also one that forgot to say which.

Nobody else is concerned: workers and the command keep their own role. SQLite has no roles; there the queries alone keep
tenants apart. The policies themselves are in the migrations.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

# Of all databases of a server; it may not log in.
ROLE = "strandline_api"
# For one transaction: ids of the tenants that may be seen, separated by commas, or ALL.
SETTING, ALL = "strandline.ids", "*"
# What is told of no tenant in particular.
SHARED = ("tallies", "id_blocks", "compatibility")

_GRANTS = f"""
GRANT {ROLE} TO CURRENT_USER;
GRANT USAGE ON SCHEMA public TO {ROLE};
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {ROLE};
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {ROLE};
"""


def prepare(connection: Connection) -> bool:
    """Make the role and let it have its tables, as far as this user may; can it be used now?"""
    for statement in (f"CREATE ROLE {ROLE} NOLOGIN", _GRANTS):
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(statement)
        except DBAPIError:
            continue  # it is there already, is another's to make, or somebody else makes it at this moment
    return is_usable(connection)


def is_usable(connection: Connection) -> bool:
    """Is there that role, with its tables, and may this user take it on?"""
    query = (
        f"SELECT pg_has_role(current_user, oid, 'MEMBER') AND has_table_privilege(oid, 'tenants', 'SELECT') "
        f"FROM pg_roles WHERE rolname = '{ROLE}'"
    )
    return bool(connection.exec_driver_sql(query).scalar())


def narrowing(names: Collection[str] | None) -> str:
    """What to say at the begin of a transaction, so that in it nothing but these tenants' rows (None: all) can be seen
    or written.
    """
    visible = f"'{ALL}'"
    if names is not None:
        # Names of tenants hold no quotes. (Numbers in place of names keep the policies cheap.)
        listed = ", ".join(f"'{name}'" for name in sorted(names)) or "NULL"
        visible = f"(SELECT coalesce(string_agg(id::text, ','), '') FROM tenants WHERE name IN ({listed}))"
    return f"SELECT set_config('{SETTING}', {visible}, true); SET LOCAL ROLE {ROLE}"

"""A real PgBouncer in transaction mode before a PostgreSQL: each transaction may get another session."""

import contextlib
import os
import shutil
from pathlib import Path
from urllib.parse import quote

import psycopg

from tests.servers import START_S, PostgresServer, Server
from tests.waiting import wait_until

PORT = 6432  # of no network: it is only the name of the socket


class PgBouncer(Server):
    """On a unix socket in its folder. `sessions`: so many of PostgreSQL's a database, which all clients share."""

    def __init__(self, folder: Path, postgres: PostgresServer, sessions: int):
        super().__init__(folder)
        self._postgres, self._sessions = postgres, sessions
        if os.geteuid() == 0:  # it refuses root
            self.user = "nobody"
            shutil.chown(folder, self.user)

    def start(self) -> None:
        config = self.folder / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host={self._postgres.folder} user=strandline\n"
            "[pgbouncer]\nauth_type = any\nadmin_users = strandline\nlisten_addr =\n"
            f"unix_socket_dir = {self.folder}\nlisten_port = {PORT}\n"
            f"pool_mode = transaction\ndefault_pool_size = {self._sessions}\nmax_client_conn = 100\n"
        )
        self.process = self._spawn(_binary(), config)
        wait_until(self._answers, START_S, "PgBouncer answers")

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise self._failure("PgBouncer did not start")
        with contextlib.suppress(psycopg.OperationalError):
            return bool(self.ask("SHOW VERSION"))
        return False

    def ask(self, command: str) -> list[dict]:
        """A word to its console."""
        address = f"host={self.folder} port={PORT} user=strandline dbname=pgbouncer"
        with psycopg.connect(address, autocommit=True, row_factory=psycopg.rows.dict_row) as console:
            cursor = psycopg.ClientCursor(console, row_factory=psycopg.rows.dict_row)
            return cursor.execute(command).fetchall()

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://strandline@/{database}?host={quote(str(self.folder))}&port={PORT}"


def _binary() -> str:
    found = shutil.which("pgbouncer")
    assert found is not None, "a test that uses it needs pgbouncer"
    return found

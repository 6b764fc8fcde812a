"""A second PostgreSQL that follows a first one, and takes its place."""

from pathlib import Path

from tests.servers import PostgresServer


class Standby(PostgresServer):
    """A copy of a running server, which follows it in step until it is promoted."""

    def __init__(self, primary: PostgresServer, folder: Path):
        super().__init__(primary.kind, folder)
        self.primary = primary

    def start(self) -> None:
        super().start()
        self.primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.primary.execute("SELECT pg_reload_conf()")

    def _make_data(self) -> None:
        self._run_to_end(
            *("pg_basebackup", "-D", self.data, "-h", self.primary.folder, "-U", "strandline"),
            *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
        )

    def promote(self) -> None:
        self.execute("ALTER SYSTEM RESET synchronous_standby_names")
        self.execute("SELECT pg_promote()")

"""Before anything of a tenant's tree is touched: may it be, and who is to blame if that ends this process?"""

from __future__ import annotations

from collections.abc import Mapping

from tasks.lease import Holder
from tasks.write_back import WriteBack


class Gate:
    """Of one shard. `quarantined`: what must not be touched, with reasons; `careful`: name each entry first."""

    def __init__(self, holder: Holder, write: WriteBack, quarantined: Mapping[bytes, str], *, careful: bool) -> None:
        self._holder, self._write, self._quarantined, self._careful = holder, write, quarantined, careful

    def refuses(self, path: bytes) -> str | None:
        """Why this path must not be touched; None: it is about to be. Raises LeaseLost."""
        self._holder.check()
        reason = self._quarantined.get(path)
        if reason is not None:
            return f"in quarantine: {reason}"
        self._holder.at = path
        if self._careful:
            self._write.flush()  # what is done is settled, whatever comes
            self._holder.name(path)
        return None

"""Makes of an installed Strandline the release after it: one migration more, which the release before can pass over.

python3 next.py      within the image
"""

import compileall
import py_compile
from pathlib import Path

import db.schema

VERSION = "9000"
MIGRATION = f'''
"""What a release might add."""

import sqlalchemy as sa
from alembic import op

revision = "{VERSION}"
down_revision = "{db.schema.HEAD}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("tenants", "scans", "shards", "files"):
        op.add_column(table, sa.Column("later", sa.Text()))
'''

schema = Path(db.schema.__file__)
text = schema.read_text()
for old, new in (
    (f'\nHEAD = "{db.schema.HEAD}"\n', f'\nHEAD = "{VERSION}"\n'),
    (f'"{db.schema.HEAD}")\n', f'"{db.schema.HEAD}", "{VERSION}")\n'),
):
    assert text.count(old) == 1, old
    text = text.replace(old, new)
schema.write_text(text)
(schema.parent / "migrations" / "versions" / f"{VERSION}_later.py").write_text(MIGRATION)
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
assert compileall.compile_dir(schema.parent, quiet=1, force=True, invalidation_mode=mode)

"""Format version 2: which enrolled photos are several shots of one plant."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """A column for what a photo shows, filled when its class is next learnt; until then each shows another plant."""
    op.add_column("supports", sa.Column("subject", sa.BigInteger().with_variant(sa.Integer, "sqlite")))

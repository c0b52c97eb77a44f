"""Format version 1, which everything begins with: a new index gets the tables of `schema.py` as they are now."""

revision = "0001"
down_revision = None


def upgrade() -> None:
    """There is nothing before this one to come from."""

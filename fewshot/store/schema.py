"""The tables of an index, as one SQLite file or another SQL database holds them."""

import sqlalchemy as sa

FORMAT_VERSION = 1
APPLICATION_ID = 0x46455753  # "FEWS", where SQLite keeps whose file it is

metadata = sa.MetaData()

about = sa.Table(
    "about",
    metadata,
    sa.Column("one", sa.Integer, sa.CheckConstraint("one = 1"), primary_key=True),
    sa.Column("created_at", sa.String, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.String),
    sa.Column("precision", sa.String),
    sa.Column("dim", sa.Integer),
    sa.Column("source", sa.JSON),
    sa.Column("backbone", sa.JSON),
)
classes = sa.Table(
    "classes",
    metadata,
    sa.Column("class_id", sa.Integer, primary_key=True),
    sa.Column("label", sa.String, nullable=False, unique=True),
    sa.Column("created_at", sa.String, nullable=False),
    sqlite_autoincrement=True,
)
supports = sa.Table(
    "supports",
    metadata,
    sa.Column("support_id", sa.Integer, primary_key=True),
    sa.Column("class_id", sa.ForeignKey("classes.class_id"), nullable=False, index=True),
    sa.Column("sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("file", sa.String, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("dhash", sa.LargeBinary(16)),
    sa.Column("added_at", sa.String, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False, index=True),
    sa.Column("own_similarity", sa.Float, index=True),
    sqlite_autoincrement=True,
)
# Embeddings and thumbnails stand apart from the rows that are scanned and sorted, so that those stay small.
embeddings = sa.Table(
    "embeddings",
    metadata,
    sa.Column("support_id", sa.ForeignKey("supports.support_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("vector", sa.LargeBinary, nullable=False),
    sa.Column("xxh3", sa.BigInteger, nullable=False),
)
thumbnails = sa.Table(
    "thumbnails",
    metadata,
    sa.Column("support_id", sa.ForeignKey("supports.support_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("webp", sa.LargeBinary, nullable=False),
    sa.Column("xxh3", sa.BigInteger, nullable=False),
)
prototypes = sa.Table(
    "prototypes",
    metadata,
    sa.Column("prototype_id", sa.Integer, primary_key=True),
    sa.Column("class_id", sa.ForeignKey("classes.class_id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("generation", sa.Integer, nullable=False, index=True),
    sa.Column("vector", sa.LargeBinary, nullable=False),
    sa.Column("xxh3", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
removals = sa.Table(
    "removals",
    metadata,
    sa.Column("removal_id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("removed_id", sa.Integer, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False, index=True),
)
staged = sa.Table(
    "staged_embeddings",
    metadata,
    sa.Column("support_id", sa.ForeignKey("supports.support_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("fingerprint", sa.String, nullable=False),
    sa.Column("vector", sa.LargeBinary, nullable=False),
    sa.Column("xxh3", sa.BigInteger, nullable=False),
)
history = sa.Table(
    "history",
    metadata,
    sa.Column("event_id", sa.Integer, primary_key=True),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("who", sa.String, nullable=False),
    sa.Column("action", sa.String, nullable=False),
    sa.Column("label", sa.String),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False, unique=True),
    sa.Column("token", sa.String, nullable=False),
    sqlite_autoincrement=True,
)

# Indexes that hold columns a second and a third time. SQLite's own check compares them with the table, so that damage
# to what has no checksum is noticed; and a repair takes what most of the copies say. Made in SQLite files only.
GUARDS = {
    "guard_supports": ("supports", ("sha256", "class_id", "file", "width", "height", "dhash", "added_at")),
    "guard_classes": ("classes", ("label", "created_at")),
    "guard_about": ("about", ("created_at", "generation", "fingerprint", "precision", "dim", "source", "backbone")),
    "guard_about_again": ("about", ("fingerprint", "precision", "dim", "source", "backbone")),
    "guard_history": ("history", ("at", "who", "action", "label", "detail", "generation", "token")),
    "guard_removals": ("removals", ("kind", "removed_id", "generation")),
}

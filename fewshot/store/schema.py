"""The tables of an index, as one SQLite file or a PostgreSQL database holds them."""

import sqlalchemy as sa

from fewshot.store.vectors import ServerVector

FORMAT_VERSION = 2
APPLICATION_ID = 0x46455753  # "FEWS", where SQLite keeps whose file it is
# What stands beside the file of an index that is served.
TOKENS_FILE = "tokens.json"
TOKENS_LOCK = "tokens.lock"

# In SQLite every integer has 64 bits, and only a key called INTEGER counts up by itself.
Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
# Labels are ordered by code point everywhere, whatever the collation of a server's database.
Label = sa.String().with_variant(sa.String(collation="C"), "postgresql")
# The bytes of little-endian float32 numbers on this side; a pgvector column on a server's.
Vector = sa.LargeBinary().with_variant(ServerVector(), "postgresql")

metadata = sa.MetaData()

about = sa.Table(
    "about",
    metadata,
    sa.Column("one", sa.Integer, sa.CheckConstraint("one = 1"), primary_key=True),
    sa.Column("created_at", sa.String, nullable=False),
    sa.Column("generation", Number, nullable=False),
    sa.Column("fingerprint", sa.String),
    sa.Column("precision", sa.String),
    sa.Column("dim", sa.Integer),
    sa.Column("source", sa.JSON),
    sa.Column("backbone", sa.JSON),
)
classes = sa.Table(
    "classes",
    metadata,
    sa.Column("class_id", Number, primary_key=True),
    sa.Column("label", Label, nullable=False, unique=True),
    sa.Column("created_at", sa.String, nullable=False),
    sqlite_autoincrement=True,
)
supports = sa.Table(
    "supports",
    metadata,
    sa.Column("support_id", Number, primary_key=True),
    sa.Column("class_id", sa.ForeignKey("classes.class_id"), nullable=False, index=True),
    sa.Column("sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("file", sa.String, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("dhash", sa.LargeBinary(16)),
    sa.Column("added_at", sa.String, nullable=False),
    sa.Column("generation", Number, nullable=False, index=True),
    sa.Column("own_similarity", sa.Float, index=True),
    # Of several shots of one plant the first one's id; NULL where no other photo of the class shows it.
    sa.Column("subject", Number),
    sqlite_autoincrement=True,
)
# Embeddings and thumbnails stand apart from the rows that are scanned and sorted, so that those stay small.
embeddings = sa.Table(
    "embeddings",
    metadata,
    sa.Column("support_id", sa.ForeignKey("supports.support_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("vector", Vector, nullable=False),
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
    sa.Column("prototype_id", Number, primary_key=True),
    sa.Column("class_id", sa.ForeignKey("classes.class_id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("generation", Number, nullable=False, index=True),
    sa.Column("vector", Vector, nullable=False),
    sa.Column("xxh3", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
removals = sa.Table(
    "removals",
    metadata,
    sa.Column("removal_id", Number, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("removed_id", Number, nullable=False),
    sa.Column("generation", Number, nullable=False, index=True),
)
staged = sa.Table(
    "staged_embeddings",
    metadata,
    sa.Column("support_id", sa.ForeignKey("supports.support_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("fingerprint", sa.String, nullable=False),
    sa.Column("vector", Vector, nullable=False),
    sa.Column("xxh3", sa.BigInteger, nullable=False),
)
history = sa.Table(
    "history",
    metadata,
    sa.Column("event_id", Number, primary_key=True),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("who", sa.String, nullable=False),
    sa.Column("action", sa.String, nullable=False),
    sa.Column("label", sa.String),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Column("generation", Number, nullable=False, unique=True),
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

# What a server needs beside the tables that both have. A folder has other places for it: the file's header, tokens.json
# and its cache.
server_metadata = sa.MetaData()

fewshot_format = sa.Table(
    "fewshot_format",
    server_metadata,
    sa.Column("one", sa.Integer, sa.CheckConstraint("one = 1"), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)
tokens = sa.Table(
    "tokens",
    server_metadata,
    sa.Column("token_id", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
    sa.Column("facts", sa.JSON, nullable=False),
    sa.Column("place", sa.Integer, sa.Identity(), nullable=False),
)
search_settings = sa.Table(
    "search_settings",
    server_metadata,
    sa.Column("one", sa.Integer, sa.CheckConstraint("one = 1"), primary_key=True),
    sa.Column("dim", sa.Integer, nullable=False),
    sa.Column("n_results", sa.Integer, nullable=False),
    sa.Column("ef_search", sa.Integer, nullable=False),
    sa.Column("recall", sa.Float, nullable=False),
)
# Stands in a database while an index is copied into it: from where, and what it holds when it is whole.
copying = sa.Table(
    "copying",
    server_metadata,
    sa.Column("one", sa.Integer, sa.CheckConstraint("one = 1"), primary_key=True),
    sa.Column("source", sa.String, nullable=False),
    sa.Column("state", sa.JSON, nullable=False),
)

"""Revisions of the tables, for files and servers alike: one script for each format version, run by Alembic."""

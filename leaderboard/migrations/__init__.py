"""Alembic: how the tables came to be. Run by ``db.migrate``."""

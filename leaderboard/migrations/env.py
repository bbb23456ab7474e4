"""Run by Alembic inside ``db.migrate``, which opens the connection and the transaction."""

from alembic import context

connection = context.config.attributes["connection"]
# SQLite's DDL is transactional once BEGIN is sent by us and not by the driver, see db.connect.
context.configure(connection=connection, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()

"""Accounts, uploads, submissions and jobs; where a row is from."""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("created", sa.String, nullable=False),
        sa.Column("revoked", sa.String),
        sa.Column("jobs_per_day", sa.Integer, nullable=False),
        sa.Column("gpu_hours_per_month", sa.Double, nullable=False),
        sa.Column("bytes_kept", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("hint", sa.String, nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("created", sa.String, nullable=False),
        sa.Column("expires", sa.String, nullable=False),
        sa.Column("revoked", sa.String),
        sa.Column("last_used", sa.String),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"]),
        sa.UniqueConstraint("digest"),
    )
    op.create_table(
        "sessions",
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("token_id", sa.Integer, nullable=False),
        sa.Column("csrf", sa.String, nullable=False),
        sa.Column("created", sa.String, nullable=False),
        sa.Column("expires", sa.String, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"]),
        sa.ForeignKeyConstraint(["token_id"], ["tokens.id"]),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.String, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("subject", sa.String, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
    )
    op.create_index("audit_by_action", "audit", ["action"])
    op.create_table(
        "uploads",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("token_id", sa.Integer, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String, nullable=False),
        sa.Column("received", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("file", sa.String, nullable=False),
        sa.Column("reason", sa.JSON(none_as_null=True)),
        sa.Column("created", sa.String, nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"]),
        sa.ForeignKeyConstraint(["token_id"], ["tokens.id"]),
    )
    op.create_table(
        "submissions",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("upload_id", sa.String),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("tasks", sa.JSON, nullable=False),
        sa.Column("probes", sa.JSON, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("code", sa.String),
        sa.Column("stage", sa.String),
        sa.Column("message", sa.Text),
        sa.Column("hint", sa.Text),
        sa.Column("model_sha", sa.String),
        sa.Column("duplicate_of", sa.String),
        sa.Column("anonymous", sa.Boolean, nullable=False),
        sa.Column("embargo_until", sa.String),
        sa.Column("created", sa.String, nullable=False),
        sa.Column("updated", sa.String, nullable=False),
        sa.Column("unsafe_local", sa.Boolean, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"]),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"]),
    )
    op.create_index("submissions_by_model", "submissions", ["model_sha"])
    op.create_index("submissions_by_user", "submissions", ["user_id"])
    op.create_table(
        "edits",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("submission_id", sa.String, nullable=False),
        sa.Column("at", sa.String, nullable=False),
        sa.Column("by", sa.String, nullable=False),
        sa.Column("before", sa.JSON, nullable=False),
        sa.Column("after", sa.JSON, nullable=False),
        sa.ForeignKeyConstraint(["submission_id"], ["submissions.id"]),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("submission_id", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("data_set", sa.String, nullable=False),
        sa.Column("task", sa.String, nullable=False),
        sa.Column("probe", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("lost", sa.Integer, nullable=False),
        sa.Column("owner", sa.String),
        sa.Column("lease_until", sa.Double),
        sa.Column("heartbeat", sa.Double),
        sa.Column("claimed", sa.Double),
        sa.Column("code", sa.String),
        sa.Column("stage", sa.String),
        sa.Column("message", sa.Text),
        sa.Column("hint", sa.Text),
        sa.Column("log", sa.Text, nullable=False),
        sa.Column("created", sa.String, nullable=False),
        sa.Column("started", sa.String),
        sa.Column("ended", sa.String),
        sa.Column("seconds", sa.Double),
        sa.Column("depends_on", sa.Integer),
        sa.ForeignKeyConstraint(["submission_id"], ["submissions.id"]),
        sa.UniqueConstraint("submission_id", "kind", "data_set", "task", "probe", name="one_job"),
    )
    op.create_index("jobs_by_state", "jobs", ["state", "kind"])
    op.create_table(
        "charges",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("submission_id", sa.String),
        sa.Column("upload_id", sa.String),
        sa.Column("job_id", sa.Integer),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("amount", sa.Double, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("refunded_at", sa.Double),
        sa.Column("why", sa.String, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"]),
        sa.ForeignKeyConstraint(["submission_id"], ["submissions.id"]),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"]),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"]),
    )
    op.create_index("charges_by_user", "charges", ["user_id", "kind"])
    op.create_table(
        "workers",
        sa.Column("owner", sa.String, primary_key=True),
        sa.Column("kinds", sa.JSON, nullable=False),
        sa.Column("seen", sa.Double, nullable=False),
    )
    op.create_table(
        "reports",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("model_sha", sa.String, nullable=False),
        sa.Column("task", sa.String),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("by", sa.Integer),
        sa.Column("at", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("answer", sa.Text),
        sa.ForeignKeyConstraint(["model_sha"], ["models.model_sha"]),
        sa.ForeignKeyConstraint(["by"], ["users.id"]),
    )
    # what is stored was evaluated by whoever runs the board
    op.add_column("results", sa.Column("origin", sa.String, nullable=False, server_default="local"))
    op.add_column(
        "results", sa.Column("unsafe", sa.Boolean, nullable=False, server_default=sa.false())
    )


def downgrade() -> None:
    connection = op.get_bind()
    exists = sa.text(
        "SELECT count(*) FROM results WHERE origin = 'self-run' OR model_sha IN (SELECT model_sha "
        "FROM submissions WHERE state = 'withdrawn' OR anonymous OR embargo_until IS NOT NULL)"
    )
    count = connection.scalar(exists)
    if count:
        raise CommandError(
            f"{count} rows are self-run, withdrawn, anonymous or were under embargo; an older "
            "release would rank and show them as all others. Keep this release, or take a backup "
            "and delete these rows first."
        )
    op.drop_column("results", "unsafe")
    op.drop_column("results", "origin")
    tables = (
        "reports",
        "workers",
        "charges",
        "jobs",
        "edits",
        "submissions",
        "uploads",
        "audit",
        "sessions",
        "tokens",
        "users",
    )
    for table in tables:  # what refers before what it needs
        op.drop_table(table)

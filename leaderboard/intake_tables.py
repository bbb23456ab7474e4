"""The tables of accounts, uploads, submissions and jobs; migrations/ says how they came to be.

Texts of moments are UTC, ISO 8601; columns of sa.Double that are moments are seconds since 1970.
"""

import sqlalchemy as sa

from .tables import METADATA

USERS = sa.Table(
    "users",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
    sa.Column("role", sa.String, nullable=False),
    sa.Column("created", sa.String, nullable=False),
    sa.Column("revoked", sa.String),
    sa.Column("jobs_per_day", sa.Integer, nullable=False),
    sa.Column("gpu_hours_per_month", sa.Double, nullable=False),
    sa.Column("bytes_kept", sa.BigInteger, nullable=False),
)

TOKENS = sa.Table(
    "tokens",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False),
    sa.Column("digest", sa.String, nullable=False, unique=True),  # sha256, never the secret
    sa.Column("hint", sa.String, nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("created", sa.String, nullable=False),
    sa.Column("expires", sa.String, nullable=False),
    sa.Column("revoked", sa.String),
    sa.Column("last_used", sa.String),
)

SESSIONS = sa.Table(
    "sessions",
    METADATA,
    sa.Column("digest", sa.String, primary_key=True),  # sha256 of the cookie
    sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False),
    sa.Column("token_id", sa.Integer, sa.ForeignKey("tokens.id"), nullable=False),
    sa.Column("csrf", sa.String, nullable=False),
    sa.Column("created", sa.String, nullable=False),
    sa.Column("expires", sa.String, nullable=False),
)

AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("actor", sa.String, nullable=False),
    sa.Column("action", sa.String, nullable=False),
    sa.Column("subject", sa.String, nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Index("audit_by_action", "action"),
)

UPLOADS = sa.Table(
    "uploads",
    METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False),
    sa.Column("token_id", sa.Integer, sa.ForeignKey("tokens.id"), nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String, nullable=False),
    sa.Column("received", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("file", sa.String, nullable=False),
    sa.Column("reason", sa.JSON(none_as_null=True)),
    sa.Column("created", sa.String, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
)

SUBMISSIONS = sa.Table(
    "submissions",
    METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("manifest", sa.Text, nullable=False),
    sa.Column("upload_id", sa.String, sa.ForeignKey("uploads.id")),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("tasks", sa.JSON, nullable=False),
    sa.Column("probes", sa.JSON, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("code", sa.String),
    sa.Column("stage", sa.String),
    sa.Column("message", sa.Text),
    sa.Column("hint", sa.Text),
    # no reference to models: known after the check, stored with the first result
    sa.Column("model_sha", sa.String),
    # no reference to submissions either: a restore need not sort rows
    sa.Column("duplicate_of", sa.String),
    sa.Column("anonymous", sa.Boolean, nullable=False),
    sa.Column("embargo_until", sa.String),
    sa.Column("created", sa.String, nullable=False),
    sa.Column("updated", sa.String, nullable=False),
    sa.Column("unsafe_local", sa.Boolean, nullable=False),
    sa.Index("submissions_by_model", "model_sha"),
    sa.Index("submissions_by_user", "user_id"),
)

EDITS = sa.Table(
    "edits",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("submission_id", sa.String, sa.ForeignKey("submissions.id"), nullable=False),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("by", sa.String, nullable=False),
    sa.Column("before", sa.JSON, nullable=False),
    sa.Column("after", sa.JSON, nullable=False),
)

JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("submission_id", sa.String, sa.ForeignKey("submissions.id"), nullable=False),
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
    sa.UniqueConstraint("submission_id", "kind", "data_set", "task", "probe", name="one_job"),
    sa.Index("jobs_by_state", "state", "kind"),
)

CHARGES = sa.Table(
    "charges",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False),
    sa.Column("submission_id", sa.String, sa.ForeignKey("submissions.id")),
    sa.Column("upload_id", sa.String, sa.ForeignKey("uploads.id")),
    sa.Column("job_id", sa.Integer, sa.ForeignKey("jobs.id")),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("amount", sa.Double, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("refunded_at", sa.Double),
    sa.Column("why", sa.String, nullable=False),
    sa.Index("charges_by_user", "user_id", "kind"),
)

WORKERS = sa.Table(
    "workers",
    METADATA,
    sa.Column("owner", sa.String, primary_key=True),
    sa.Column("kinds", sa.JSON, nullable=False),
    sa.Column("seen", sa.Double, nullable=False),
)

REPORTS = sa.Table(
    "reports",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("model_sha", sa.String, sa.ForeignKey("models.model_sha"), nullable=False),
    sa.Column("task", sa.String),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("by", sa.Integer, sa.ForeignKey("users.id")),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("answer", sa.Text),
)

SECRETS = ("tokens", "sessions")
"""Tables that hold digests of secrets, and the texts that guard forms."""

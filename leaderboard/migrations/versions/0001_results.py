"""Models, tasks, predictions and results."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "models",
        sa.Column("model_sha", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("card", sa.JSON, nullable=False),
        sa.Column("manifest", sa.JSON, nullable=False),
        sa.Column("added", sa.String, nullable=False),
    )
    op.create_table(
        "tasks",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("card", sa.JSON, nullable=False),
        sa.Column("added", sa.String, nullable=False),
    )
    op.create_table(
        "predictions",
        sa.Column("model_sha", sa.String, primary_key=True),
        sa.Column("task", sa.String, primary_key=True),
        sa.Column("task_version", sa.Integer, primary_key=True),
        sa.Column("probe", sa.String, primary_key=True),
        sa.Column("probe_version", sa.Integer, primary_key=True),
        sa.Column("dataset_sha", sa.String, primary_key=True),
        sa.Column("split_sha", sa.String, primary_key=True),
        sa.Column("parquet", sa.LargeBinary, nullable=False),
        sa.Column("added", sa.String, nullable=False),
        sa.ForeignKeyConstraint(["model_sha"], ["models.model_sha"]),
        sa.ForeignKeyConstraint(["task", "task_version"], ["tasks.name", "tasks.version"]),
    )
    unit = [
        "model_sha",
        "task",
        "task_version",
        "probe",
        "probe_version",
        "dataset_sha",
        "split_sha",
    ]
    op.create_table(
        "results",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("model_sha", sa.String, nullable=False),
        sa.Column("task", sa.String, nullable=False),
        sa.Column("task_version", sa.Integer, nullable=False),
        sa.Column("probe", sa.String, nullable=False),
        sa.Column("probe_version", sa.Integer, nullable=False),
        sa.Column("metric", sa.String, nullable=False),
        sa.Column("shots", sa.Integer),
        sa.Column("seed", sa.String),
        sa.Column("score", sa.Double),
        sa.Column("low", sa.Double),
        sa.Column("high", sa.Double),
        sa.Column("spread", sa.Double),
        sa.Column("n_test", sa.Integer, nullable=False),
        sa.Column("subset", sa.Boolean, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("device", sa.String, nullable=False),
        sa.Column("software", sa.String, nullable=False),
        sa.Column("dataset_sha", sa.String, nullable=False),
        sa.Column("split_sha", sa.String, nullable=False),
        sa.Column("calibrated", sa.Boolean, nullable=False),
        sa.Column("flags", sa.JSON, nullable=False),
        sa.Column("added", sa.String, nullable=False),
        sa.ForeignKeyConstraint(unit, [f"predictions.{name}" for name in unit]),
    )
    # Two NULLs are distinct to UNIQUE, so the columns that may be NULL are coalesced.
    op.create_index(
        "one_row_per_number",
        "results",
        [
            *unit,
            "metric",
            sa.text("coalesce(shots, -1)"),
            sa.text("coalesce(seed, '')"),
        ],
        unique=True,
    )
    op.create_index("results_by_question", "results", ["task", "probe", "metric"])


def downgrade() -> None:
    for table in ("results", "predictions", "tasks", "models"):  # what refers before what it needs
        op.drop_table(table)

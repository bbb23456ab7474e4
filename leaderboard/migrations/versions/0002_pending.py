"""What waits for features before it can be scored again."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pending",
        sa.Column("model_sha", sa.String, primary_key=True),
        sa.Column("task", sa.String, primary_key=True),
        sa.Column("task_version", sa.Integer, primary_key=True),
        sa.Column("probe", sa.String, primary_key=True),
        sa.Column("probe_version", sa.Integer, primary_key=True),
        sa.Column("why", sa.String, nullable=False),
        sa.Column("added", sa.String, nullable=False),
        sa.ForeignKeyConstraint(["model_sha"], ["models.model_sha"]),
    )


def downgrade() -> None:
    op.drop_table("pending")

"""The tables as they are after the last migration; migrations/ says how they came to be."""

import sqlalchemy as sa

from .records import Unit

METADATA = sa.MetaData()

MODELS = sa.Table(
    "models",
    METADATA,
    sa.Column("model_sha", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("card", sa.JSON, nullable=False),
    sa.Column("manifest", sa.JSON, nullable=False),
    sa.Column("added", sa.String, nullable=False),
)

TASKS = sa.Table(
    "tasks",
    METADATA,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("card", sa.JSON, nullable=False),
    sa.Column("added", sa.String, nullable=False),
)

PREDICTIONS = sa.Table(
    "predictions",
    METADATA,
    sa.Column("model_sha", sa.String, sa.ForeignKey("models.model_sha"), primary_key=True),
    sa.Column("task", sa.String, primary_key=True),
    sa.Column("task_version", sa.Integer, primary_key=True),
    sa.Column("probe", sa.String, primary_key=True),
    sa.Column("probe_version", sa.Integer, primary_key=True),
    sa.Column("dataset_sha", sa.String, primary_key=True),
    sa.Column("split_sha", sa.String, primary_key=True),
    sa.Column("parquet", sa.LargeBinary, nullable=False),
    sa.Column("added", sa.String, nullable=False),
    sa.ForeignKeyConstraint(["task", "task_version"], ["tasks.name", "tasks.version"]),
)

RESULTS = sa.Table(
    "results",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("model_sha", sa.String, nullable=False),
    sa.Column("task", sa.String, nullable=False),
    sa.Column("task_version", sa.Integer, nullable=False),
    sa.Column("probe", sa.String, nullable=False),
    sa.Column("probe_version", sa.Integer, nullable=False),
    sa.Column("metric", sa.String, nullable=False),
    sa.Column("shots", sa.Integer),
    sa.Column("seed", sa.String),  # a number or "all"
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
    sa.Column("origin", sa.String, nullable=False, server_default="local"),
    sa.Column("unsafe", sa.Boolean, nullable=False, server_default=sa.false()),
    # no number without the predictions it can be recomputed from
    sa.ForeignKeyConstraint(Unit._fields, [f"predictions.{name}" for name in Unit._fields]),
    sa.Index("results_by_question", "task", "probe", "metric"),
)

sa.Index(
    "one_row_per_number",
    *(RESULTS.c[name] for name in Unit._fields),
    RESULTS.c.metric,
    sa.text("coalesce(shots, -1)"),
    sa.text("coalesce(seed, '')"),
    unique=True,
)

PENDING = sa.Table(
    "pending",
    METADATA,
    sa.Column("model_sha", sa.String, sa.ForeignKey("models.model_sha"), primary_key=True),
    # a version that no row has yet: no reference to tasks
    sa.Column("task", sa.String, primary_key=True),
    sa.Column("task_version", sa.Integer, primary_key=True),
    sa.Column("probe", sa.String, primary_key=True),
    sa.Column("probe_version", sa.Integer, primary_key=True),
    sa.Column("why", sa.String, nullable=False),
    sa.Column("added", sa.String, nullable=False),
)

"""The tables of docs/baselines.md from a database of scores: print them as Markdown.

tomoprobe evaluate --suite core ... --db ten.db
python docs/table_of_ten.py ten.db
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache, cached_property
from math import erfc, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tomoprobe.benchmark import compare
from tomoprobe.benchmark.predictions import from_parquet, headline_of
from tomoprobe.benchmark.statistics import Difference, holm
from tomoprobe.leaderboard import db
from tomoprobe.tasks import suites

SYSTEMS = ("anatomix", "braindino", "coralbay", "cspr", "vismae")
FLOORS = ("intensity", "texture", "radiomics")
SHARED_PATIENTS = "sarcoma"
"""Tasks whose names begin so have the same patients: their errors are added as if one."""

Z95 = 1.959964  # a 95 % interval is so many standard errors wide, on either side


class Question(NamedTuple):
    """One column of the table."""

    task: str
    probe: str
    metric: str
    shots: int | None = None

    @property
    def title(self) -> str:
        """Of the column."""
        shots = f", K = {self.shots}" if self.shots else ""
        return f"{self.task}<br>{self.probe}, {self.metric}{shots}"


class Column:
    """The stored predictions of one question by model."""

    def __init__(self, engine: db.Engine, question: Question) -> None:
        names = {model.model_sha: model.name for model in db.models(engine)}
        self.question = question
        self.stored = {
            names[unit.model_sha]: from_parquet(parquet)
            for unit, parquet in db.predictions(engine, tasks=[question.task])
            if unit.probe == question.probe
        }
        self.rows = {
            row.result.model: row.result
            for row in db.rows(engine, [question.task], question.probe, metric=question.metric)
            if row.result.shots == question.shots
        }

    @cached_property
    def scale(self) -> float:
        """Normalised units per unit of the metric.

        AUROC: 0 is chance and 1 is perfect. MAE: 0 is the best constant and 1 is no error.
        """
        if self.question.metric == "auroc":
            return 2.0
        table = headline_of(next(iter(self.stored.values()))[0])
        target = table.drop_duplicates("case")["target"].to_numpy()
        return -1 / float(np.abs(target - np.median(target)).mean())

    def normalised(self, model: str) -> float:
        """The score of a model between nothing (0) and everything (1)."""
        score, scale = self.rows[model].score, self.scale
        return scale * (score - 0.5) if scale > 0 else 1 + scale * score

    @cache  # noqa: B019  # as long-lived as the script
    def against(self, reference: str) -> Mapping[str, Difference]:
        """Every model minus the reference, on the same patients."""
        q = self.question
        return compare.against(reference, self.stored, q.metric, q.shots)


class Mean(NamedTuple):
    """A difference in the mean normalised score."""

    delta: float
    error: float
    """Standard error."""

    @property
    def p(self) -> float:
        """Two-sided, of a normal distribution."""
        return erfc(abs(self.delta) / self.error / sqrt(2))

    def __str__(self) -> str:
        half = Z95 * self.error
        return f"{self.delta:+.3f} [{self.delta - half:+.3f}, {self.delta + half:+.3f}]"


def mean_difference(columns: list[Column], model: str, reference: str) -> Mean:
    """Over tasks; patients that tasks share are counted once, at the worst: errors add up."""
    deltas, alone, shared = [], 0.0, 0.0
    for column in columns:
        found, scale = column.against(reference)[model], column.scale
        deltas.append(found.delta * scale)
        error = abs(scale) * (found.high - found.low) / 2 / Z95
        if column.question.task.startswith(SHARED_PATIENTS):
            shared += error
        else:
            alone += error**2
    return Mean(float(np.mean(deltas)), sqrt(alone + shared**2) / len(columns))


def cell(found: Difference, scale: float) -> str:
    """In normalised units, higher is better; bold where the interval leaves out 0."""
    ends = sorted((found.low * scale, found.high * scale))
    text = f"{found.delta * scale:+.3f} [{ends[0]:+.3f}, {ends[1]:+.3f}]"
    return f"**{text}**" if ends[0] > 0 or ends[1] < 0 else text


def table(header: list[str], lines: list[list[str]]) -> str:
    """Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(path: Path) -> None:
    """Print the tables."""
    engine = db.connect(f"sqlite:///{path.absolute()}")
    core = [
        Question(task, "linear", "auroc" if "sex" in task or "mnist" in task else "mae")
        for task in suites.get("core")
    ]
    few = Question("adrenal_mnist3d", "few_shot", "auroc", 20)
    columns = [Column(engine, question) for question in core]
    shown = [*columns, Column(engine, few)]
    floors = [name for name in FLOORS if name in columns[0].rows]
    models = [f"{s}_tiny" for s in SYSTEMS] + [f"random_{s}" for s in SYSTEMS] + floors
    header = ["model", "mean normalised, linear"]
    lines = [
        [m, f"{np.mean([c.normalised(m) for c in columns]):.3f}"]
        + [f"{c.rows[m].score:.3g} [{c.rows[m].low:.3g}, {c.rows[m].high:.3g}]" for c in shown]
        for m in models
    ]
    lines.sort(key=lambda line: -float(line[1]))
    sizes = [f"{c.question.title} (n={c.rows[models[0]].n_test})" for c in shown]
    print(table(header + sizes, lines), end="\n\n")  # noqa: T201
    means = [mean_difference(columns, f"{s}_tiny", f"random_{s}") for s in SYSTEMS]
    adjusted = holm([mean.p for mean in means])
    lines = []
    for system, mean, p in zip(SYSTEMS, means, adjusted, strict=True):
        pairs = [c.against(f"random_{system}")[f"{system}_tiny"] for c in shown]
        cells = [cell(found, c.scale) for found, c in zip(pairs, shown, strict=True)]
        lines.append([system, str(mean), f"{p:.3f}", *cells])
    print(table(["trained - random", "mean", "p (Holm)", *sizes], lines), end="\n\n")  # noqa: T201
    lines = []
    for system in SYSTEMS:
        ours = [str(mean_difference(columns, f"{system}_tiny", floor)) for floor in floors]
        lines.append([system, *ours])
    print(table(["trained - floor, mean", *floors], lines))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))

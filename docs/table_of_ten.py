"""The tables of docs/baselines.md from a database of scores: print them as Markdown.

tomoprobe evaluate --suite core --task msd_hippocampus --task msd_hippocampus_pairs ... --db ten.db
python docs/table_of_ten.py ten.db
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache, cached_property
from itertools import combinations
from math import erfc, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tomoprobe.benchmark import compare, metrics
from tomoprobe.benchmark.predictions import from_parquet, headline_of, stacked
from tomoprobe.benchmark.statistics import Difference, holm, over_repeats
from tomoprobe.leaderboard import db
from tomoprobe.tasks import suites

SYSTEMS = ("anatomix", "braindino", "coralbay", "cspr", "vismae")
FLOORS = ("intensity", "texture", "radiomics", "patches", "mind", "nothing")
LARGER = 40
"""Test patients of a task from which on it can tell encoders apart; the others here have 20."""

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

        AUROC: 0 is chance and 1 is perfect. MAE: 0 is the best constant and 1 is no error. Dice is
        taken as it is.
        """
        if self.question.metric == "auroc":
            return 2.0
        if self.question.metric in ("dice", "warped_dice"):
            return 1.0
        table = headline_of(next(iter(self.stored.values()))[0])
        target = table.drop_duplicates("case")["target"].to_numpy()
        return -1 / float(np.abs(target - np.median(target)).mean())

    def normalised(self, model: str) -> float:
        """The score of a model between nothing (0) and everything (1)."""
        score, scale = self.rows[model].score, self.scale
        zero = {"auroc": 0.5, "mae": -1 / scale}.get(self.question.metric, 0.0)
        return scale * (score - zero)

    @cache  # noqa: B019  # as long-lived as the script
    def against(self, reference: str) -> Mapping[str, Difference]:
        """Every model minus the reference, on the same patients."""
        q = self.question
        return compare.against(reference, self.stored, q.metric, q.shots)

    @cache  # noqa: B019
    def without(self, model: str) -> Mapping[str, float]:
        """By test patient, the normalised score without that patient."""
        metric = metrics.get(self.question.metric)
        table, provenance = self.stored[model]
        told = stacked(headline_of(table), metric)
        patients = np.unique(told.patient)
        others = (told.patient[None] != patients[:, None]).astype(float)  # (P, N)
        if provenance.cv:
            _, scores = over_repeats(metric, told.target, told.values, told.fold, others)
        else:
            scores = np.mean([metric(told.target, one, others) for one in told.values], axis=0)
        return dict(zip(patients.tolist(), (scores * self.scale).tolist(), strict=True))

    def pull(self, model: str, reference: str) -> Mapping[str, float]:
        """By test patient, what leaving him out does to the difference, less the mean of it."""
        ours, theirs = self.without(model), self.without(reference)
        found = {patient: ours[patient] - theirs[patient] for patient in ours}
        middle = float(np.mean(list(found.values())))
        return {patient: value - middle for patient, value in found.items()}


def correlation(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Of the errors of two differences, from what each patient does to both (the jackknife)."""
    together = sum(one[patient] * other[patient] for patient in one.keys() & other.keys())
    size = sum(v * v for v in one.values()) * sum(v * v for v in other.values())
    return together / sqrt(size) if size else 0.0


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
    """Over tasks, whose errors go together as far as their test patients make them."""
    deltas, errors = [], []
    for column in columns:
        found, scale = column.against(reference)[model], column.scale
        deltas.append(found.delta * scale)
        errors.append(abs(scale) * (found.high - found.low) / 2 / Z95)
    pulls = [column.pull(model, reference) for column in columns]
    variance = sum(error**2 for error in errors)
    for (a, one), (b, other) in combinations(zip(errors, pulls, strict=True), 2):
        # one below 0 is not believed: of 20 patients it is known to within 0.2
        variance += 2 * a * b * max(0.0, correlation(one, other))
    return Mean(float(np.mean(deltas)), sqrt(variance) / len(columns))


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
        Column(engine, Question(t, "linear", "auroc" if "sex" in t or "mnist" in t else "mae"))
        for t in suites.get("core")
    ]
    dense = [
        Column(engine, Question("msd_hippocampus", "segment_linear", "dice")),
        Column(engine, Question("msd_hippocampus_pairs", "register", "warped_dice")),
    ]
    columns = [*core, *dense]
    larger = [c for c in columns if next(iter(c.rows.values())).n_test >= LARGER]
    shown = [*columns, Column(engine, Question("adrenal_mnist3d", "few_shot", "auroc", 20))]
    sizes = [f"{c.question.title} (n={next(iter(c.rows.values())).n_test})" for c in shown]
    floors = [name for name in FLOORS if any(name in c.rows for c in columns)]
    models = [f"{s}_tiny" for s in SYSTEMS] + [f"random_{s}" for s in SYSTEMS] + floors

    def mean(model: str, over: list[Column]) -> str:
        scores = [c.normalised(model) for c in over if model in c.rows]
        return f"{np.mean(scores):.3f}" if len(scores) == len(over) else "-"

    def shown_in(column: Column, model: str) -> str:
        row = column.rows.get(model)
        return "-" if row is None else f"{row.score:.3g} [{row.low:.3g}, {row.high:.3g}]"

    lines = [
        [m, *(mean(m, over) for over in (columns, larger, core, dense))]
        + [shown_in(column, m) for column in shown]
        for m in models
    ]
    lines.sort(key=lambda line: -1.0 if line[1] == "-" else float(line[1]), reverse=True)
    named = [f"mean of {len(columns)}", f"of {len(larger)}, n >= {LARGER}"]
    header = ["model", *named, f"of {len(core)}, linear", f"of {len(dense)}, dense"]
    print(table(header + sizes, lines), end="\n\n")  # noqa: T201
    means = [mean_difference(columns, f"{s}_tiny", f"random_{s}") for s in SYSTEMS]
    adjusted = holm([found.p for found in means])
    lines = []
    for system, found, p in zip(SYSTEMS, means, adjusted, strict=True):
        of_larger = mean_difference(larger, f"{system}_tiny", f"random_{system}")
        pairs = [c.against(f"random_{system}")[f"{system}_tiny"] for c in shown]
        cells = [cell(d, c.scale) for d, c in zip(pairs, shown, strict=True)]
        lines.append([system, str(found), f"{p:.3f}", str(of_larger), *cells])
    header = ["trained - random", named[0], "p (Holm)", named[1]]
    print(table(header + sizes, lines), end="\n\n")  # noqa: T201
    lines = []
    for system in SYSTEMS:
        ours = [
            str(mean_difference(over, f"{system}_tiny", floor))
            if (over := [c for c in columns if floor in c.rows])
            else "-"
            for floor in floors
        ]
        lines.append([system, *ours])
    told = [f"{f} ({sum(f in c.rows for c in columns)} tasks)" for f in floors]
    print(table(["trained - floor, mean", *told], lines))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))

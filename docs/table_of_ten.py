"""The tables of docs/baselines.md from a database of scores: print them as Markdown.

python docs/table_of_ten.py ten.db  # the commands before it are in docs/baselines.md
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from itertools import combinations, product
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
DRAWS = ("", "_1")
"""What follows on ``random_SYSTEM`` in the names of its copies with seeds 0 and 1."""
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


LINEAR = tuple(
    Question(task, "linear", "auroc" if "sex" in task or "mnist" in task else "mae")
    for task in suites.get("core")
)
DENSE = tuple(
    Question(task, probe, metric)
    for suite, probe, metric in (
        ("dense", "segment_linear", "dice"),
        ("registration", "register", "warped_dice"),
        ("detection", "detect", "cpm"),
    )
    for task in suites.get(suite)
)
FEW_SHOT = Question("adrenal_mnist3d", "few_shot", "auroc", 20)


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

        AUROC: 0 is chance and 1 is perfect. MAE: 0 is the best constant and 1 is no error. Dice and
        CPM are taken as they are.
        """
        if self.question.metric == "auroc":
            return 2.0
        if self.question.metric in ("dice", "warped_dice", "cpm"):
            return 1.0
        table = headline_of(next(iter(self.stored.values()))[0])
        target = table.drop_duplicates("case")["target"].to_numpy()
        return -1 / float(np.abs(target - np.median(target)).mean())

    @property
    def n_test(self) -> int:
        """Test patients or pairs."""
        return next(iter(self.rows.values())).n_test

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
        text = f"{self.delta:+.3f} [{self.delta - half:+.3f}, {self.delta + half:+.3f}]"
        return f"**{text}**" if abs(self.delta) > half else text


def mean_difference(
    columns: Sequence[Column], model: str, references: Sequence[str], draws: float = 0.0
) -> Mean:
    """Over tasks and references, whose errors go together as far as the test patients make them.

    Args:
        columns: the tasks.
        model: which.
        references: other models, of which the mean is taken: the draws of one random copy.
        draws: variance of the mean over the tasks from one such draw to the next.
    """
    deltas, errors, pulls = [], [], []
    for column, reference in product(columns, references):
        found, scale = column.against(reference)[model], column.scale
        deltas.append(found.delta * scale)
        errors.append(abs(scale) * (found.high - found.low) / 2 / Z95)
        pulls.append(column.pull(model, reference))
    variance = sum(error**2 for error in errors)
    for (a, one), (b, other) in combinations(zip(errors, pulls, strict=True), 2):
        # one below 0 is not believed: of 20 patients it is known to within 0.2
        variance += 2 * a * b * max(0.0, correlation(one, other))
    return Mean(float(np.mean(deltas)), sqrt(variance / len(deltas) ** 2 + draws / len(references)))


def variance_of_draws(columns: Sequence[Column]) -> float:
    """Of the mean normalised score of a random copy from draw to draw, the same for all systems."""
    scores = [
        [np.mean([c.normalised(draw) for c in columns]) for draw in draws_of(system)]
        for system in SYSTEMS
    ]
    return float(np.var(scores, axis=1, ddof=1).mean())


def draws_of(system: str) -> list[str]:
    """The random copies of a system's architecture."""
    return [f"random_{system}{draw}" for draw in DRAWS]


def table(header: list[str], lines: list[list[str]]) -> str:
    """Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(path: Path) -> None:
    """Print the tables."""
    engine = db.connect(f"sqlite:///{path.absolute()}")
    linear, dense = ([Column(engine, q) for q in questions] for questions in (LINEAR, DENSE))
    columns = [*linear, *dense]
    larger = [c for c in columns if c.n_test >= LARGER]
    shown = [*columns, Column(engine, FEW_SHOT)]
    floors = [name for name in FLOORS if any(name in c.rows for c in columns)]
    models = [*(f"{s}_tiny" for s in SYSTEMS), *floors]
    models += [draw for system in SYSTEMS for draw in draws_of(system)]
    groups = {"all": columns, f"n >= {LARGER}": larger, "linear": linear, "dense": dense}

    def mean(model: str, over: Sequence[Column]) -> str:
        scores = [c.normalised(model) for c in over if model in c.rows]
        return f"{np.mean(scores):.3f}" if len(scores) == len(over) else "-"

    def score(column: Column, model: str) -> str:
        row = column.rows.get(model)
        return "-" if row is None else f"{row.score:.3g} [{row.low:.3g}, {row.high:.3g}]"

    lines = [
        [m, *(mean(m, over) for over in groups.values()), *(score(c, m) for c in shown)]
        for m in models
    ]
    lines.sort(key=lambda line: -1.0 if line[1] == "-" else float(line[1]), reverse=True)
    means = [f"mean of {len(over)}, {name}" for name, over in groups.items()]
    titles = [f"{c.question.title} (n={c.n_test})" for c in shown]
    print(table(["model", *means, *titles], lines), end="\n\n")  # noqa: T201

    asked = [*groups.values(), *([c] for c in shown)]
    spreads = [variance_of_draws(over) for over in asked]
    lines, wholes = [], []
    for system in SYSTEMS:
        found = [
            mean_difference(over, f"{system}_tiny", draws_of(system), spread)
            for over, spread in zip(asked, spreads, strict=True)
        ]
        wholes.append(found[0])
        lines.append([system, *map(str, found)])
    for line, p in zip(lines, holm([found.p for found in wholes]), strict=True):
        line.insert(2, f"{p:.3f}")
    header = [f"trained - mean of {len(DRAWS)} random", means[0], "p (Holm)", *means[1:], *titles]
    print(table(header, lines), end="\n\n")  # noqa: T201

    lines = []
    for system in SYSTEMS:
        found = [
            mean_difference([c for c in columns if f in c.rows], f"{system}_tiny", [f])
            for f in floors
        ]
        lines.append([system, *map(str, found)])
    told = [f"{f} ({sum(f in c.rows for c in columns)} tasks)" for f in floors]
    print(table(["trained - floor, mean", *told], lines))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))

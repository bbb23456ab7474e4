"""A board with realistic rows for the tests of the site; the numbers are made up."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
from sqlalchemy import Engine

from tomoprobe.benchmark import evaluate
from tomoprobe.benchmark.predictions import HEADLINE, Provenance, to_parquet
from tomoprobe.benchmark.types import (
    Budget,
    Change,
    EncoderCard,
    Grid,
    Kind,
    MinMax,
    Result,
    TaskCard,
    Window,
)
from tomoprobe.leaderboard import db
from tomoprobe.leaderboard.records import StoredRow
from tomoprobe.leaderboard.settings import Current, Settings

PARQUET = b"PAR1 predictions"


FLOORS = ("intensity", "texture", "patches", "mind", "nothing")
"""Models that learn nothing."""


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def task_card(name: str, metric: str = "auroc", **changes: object) -> TaskCard:
    kind: Kind = "regression" if metric == "mae" else "classification"
    card = TaskCard(
        name=name,
        version=1,
        title=f"The task {name}",
        kind=kind,
        modality="CT",
        anatomy="abdomen",
        metric=metric,
        license="CC BY 4.0",
        source="https://example.org/data",
        citation="Doe et al., A data set, 2021",
        counts={"cases": 300, "patients": 300},
        classes=("no", "yes") if kind == "classification" else (),
        unit="mm3" if kind == "regression" else "",
    )
    return replace(card, **changes)


def model_card(name: str, **changes: object) -> EncoderCard:
    card = EncoderCard(
        name=name,
        title=f"The model {name}",
        grid=Grid((96, 96, 96), (1.5, 1.5, 2.0)),
        intensity={"HU": Window(-1000, 1000), "scanner": MinMax()},
        width=512,
        parameters=0 if name in FLOORS else 14_360_000,
        license="Apache-2.0",
        pretraining=("TotalSegmentator",),
        authors="A. Author",
        source="https://example.org/model",
    )
    return replace(card, **changes)


def result(model: str = "a", task: str = "t", score: float | None = 0.8, **changes: object):
    """One row; ``low`` and ``high`` lie 0.05 around the score unless given."""
    row = Result(
        model=model,
        model_sha=sha(model),
        task=task,
        task_version=1,
        probe="linear",
        probe_version=1,
        metric="auroc",
        shots=None,
        seed=0,
        score=score,
        low=None if score is None else score - 0.05,
        high=None if score is None else score + 0.05,
        spread=0.01,
        n_test=120,
        subset=False,
        seconds=12.5,
        device="cpu: x86_64",
        software="python 3.11; tomoprobe 0.1.0",
        dataset_sha=sha(f"data of {task}"),
        split_sha=sha(f"split of {task}"),
    )
    return replace(row, **changes)


def stored(id: int, row: Result, flags: tuple[str, ...] = ()) -> StoredRow:
    return StoredRow(id, row, True, flags, "2026-01-01T00:00:00Z")


def add(
    engine: Engine,
    rows: Sequence[Result],
    card: TaskCard | None = None,
    encoder: EncoderCard | None = None,
    **changes: object,
) -> bool:
    """Store the rows of one unit; the cards are made up unless given."""
    first = rows[0]
    return db.add(
        engine,
        **{
            "model_sha": first.model_sha,
            "model_card": (encoder or model_card(first.model)).as_dict(),
            "manifest": {"name": first.model, "architecture": "resnet10"},
            "task_card": (card or task_card(first.task, first.metric)).as_dict(),
            "results": rows,
            "parquet": PARQUET,
            "flags": [()] * len(rows),
            "added": datetime(2026, 1, 1, tzinfo=UTC),
        }
        | changes,
    )


def fresh(where: Path | str) -> Engine:
    """An empty, migrated database at a URL, or as a file in a folder."""
    engine = db.connect(where if isinstance(where, str) else f"sqlite:///{where / 'board.db'}")
    db.migrate(engine)
    return engine


# --- a whole board -----------------------------------------------------------------------------

REAL_TASKS = (
    task_card(
        "adrenal_mnist3d",
        title="Adrenal mass or normal gland",
        anatomy="adrenal gland",
        counts={"cases": 1584, "patients": 1584, "train": 1188, "val": 98, "test": 298},
        note="Published as masks at 28 x 28 x 28 voxels: size alone reaches an AUROC of 0.69.",
        classes=("normal", "mass"),
    ),
    task_card(
        "sarcoma_ct_sex",
        title="Sex from a CT of the thigh",
        anatomy="soft tissue",
        counts={"cases": 51, "patients": 51},
        classes=("female", "male"),
    ),
    task_card(
        "sarcoma_mr_sex",
        title="Sex from an MR of the thigh",
        anatomy="soft tissue",
        modality="MR",
        counts={"cases": 51, "patients": 51},
    ),
    task_card(
        "msd_hippocampus_volume",
        "mae",
        title="Volume of the hippocampus",
        anatomy="hippocampus",
        modality="MR",
        license="CC BY-SA 4.0",
    ),
    task_card(
        "sarcoma_ct_age",
        "mae",
        title="Age from a CT of the thigh",
        anatomy="soft tissue",
        unit="years",
        counts={"cases": 51, "patients": 51},
    ),
)

SMOKE_TASKS = (
    task_card(
        "smoke_lesion",
        title="Lesion present",
        modality="MR",
        anatomy="brain",
        evidence=False,
        note="One template brain, semi-synthetic, never evidence.",
    ),
    task_card(
        "smoke_ventricles",
        "mae",
        title="Volume of the ventricles",
        modality="MR",
        anatomy="brain",
        evidence=False,
        note="One template brain, semi-synthetic, never evidence.",
    ),
)

LEVELS = {  # quality in 0..1, from which the scores are made
    "swin_unetr_btcv": 0.95,
    "resnet18_mae": 0.90,
    "vit_base_dino": 0.80,
    "texture": 0.55,
    "random_resnet10": 0.50,
    "random_swin": 0.45,
    "random_slices": 0.40,
    "intensity": 0.20,
}

_SCALES = {
    "msd_hippocampus_volume": (180.0, 640.0),
    "sarcoma_ct_age": (6.0, 15.0),
    "smoke_ventricles": (310.0, 1650.0),
}
"""MAE of a perfect and of a useless model."""

FEW = "few_positives"


def fill(engine: Engine, tasks: Sequence[TaskCard] = (*REAL_TASKS, *SMOKE_TASKS)) -> None:
    """Eight models on all tasks, but with gaps, a subset and an undefined score."""
    for k, (name, level) in enumerate(LEVELS.items()):
        for t, card in enumerate(tasks):
            if name == "vit_base_dino" and card.name == "sarcoma_mr_sex":
                continue
            rows = _rows(name, card, level, k, t)
            if name == "texture" and card.name == "sarcoma_ct_sex":
                rows = [replace(r, subset=True, n_test=20, dataset_sha=sha("half")) for r in rows]
            if name == "intensity" and card.name == "sarcoma_mr_sex":
                rows = [replace(r, score=None, low=None, high=None) for r in rows]
            few = [(FEW,) if r.metric == "auroc" and "sarcoma" in card.name else () for r in rows]
            add(engine, rows, card, flags=few)
            if name in ("texture", "intensity"):
                add(engine, [replace(r, probe="knn") for r in rows], card, flags=few)


def _rows(name: str, card: TaskCard, level: float, k: int, t: int) -> list[Result]:
    wobble = ((k * 7 + t * 5) % 11 - 5) / 100
    n_test = card.counts.get("test", 90)
    seed = "all" if card.counts["patients"] < 200 else 0
    if card.kind == "regression":
        best, worst = _SCALES[card.name]
        mae = worst - (worst - best) * (level + wobble)
        numbers = {
            "mae": (mae, mae * 0.87, mae * 1.16),
            "r2": (level - 0.2, level - 0.31, level - 0.1),
            "pearson": (level - 0.03, level - 0.09, level + 0.02),
        }
    else:
        auroc = min(1.0, 0.5 + 0.5 * (level + wobble) ** 1.5)
        numbers = {
            "auroc": (auroc, max(0.0, auroc - 0.062), min(0.9996, auroc + 0.048)),
            "average_precision": (auroc - 0.1, auroc - 0.2, auroc),
            "balanced_accuracy": (auroc - 0.08, auroc - 0.15, auroc - 0.02),
            "brier": (0.3 - auroc / 5, 0.25 - auroc / 5, 0.36 - auroc / 5),
            "ece": (0.08 - level / 20, 0.05 - level / 20, 0.12 - level / 20),
        }
    return [
        result(
            name,
            card.name,
            score,
            metric=metric,
            low=low,
            high=high,
            seed=seed,
            n_test=n_test,
            spread=abs(wobble) * score / 2,
            seconds=40.0 + 3 * k,
        )
        for metric, (score, low, high) in numbers.items()
    ]


# --- training on a few patients ------------------------------------------------------------------

FEW_SHOT = Budget("patients per class", (1, 5, 20), draws=3)
PERCENT = Budget("percent", (1, 10, 100), draws=3, area=True)

BUDGETS = Settings(
    probes={
        "linear": Current(1),
        "few_shot": Current(1, budget=FEW_SHOT),
        "label_efficiency": Current(1, budget=PERCENT),
    }
)
"""What a site knows of the probes."""

NOT_ENOUGH = "class 'mass' has 12 training patients, 20 are needed"


def add_curve(
    engine: Engine,
    model: str,
    level: float,
    card: TaskCard,
    probe: str = "label_efficiency",
    budget: Budget = PERCENT,
    skipped: dict[str, str] | None = None,
    n_test: int = 40,
    cv: bool = False,
    **changes: object,
) -> None:
    """Store a unit with true predictions, the better the higher the level and the size."""
    rng = np.random.default_rng(len(model))
    parts = []
    # of the images: the same at every size and for every model
    noise = np.random.default_rng(0).normal(size=n_test)
    target = np.arange(n_test) % 2
    for k, size in enumerate(s for s in budget.sizes if str(s) not in (skipped or {})):
        for draw in range(1 if size == 100 and not cv else budget.draws):
            signal = level * (0.4 + k / len(budget.sizes)) * (2 * target - 1)
            p1 = 1 / (1 + np.exp(-(signal + noise + 0.3 * rng.normal(size=n_test))))
            parts.append(
                pd.DataFrame(
                    {
                        "repeat": draw,
                        "fold": np.arange(n_test) // 2 % 5 if cv else 0,
                        "refit": HEADLINE,
                        "case": [f"c{i:03d}" for i in range(n_test)],
                        "patient": [f"p{i:03d}" for i in range(n_test)],
                        "target": target,
                        "p0": 1 - p1,
                        "p1": p1,
                        "shots": size,
                    }
                )
            )
    row = replace(result(model, card.name, probe=probe, task_version=card.version), **changes)
    named = {
        name: getattr(row, name)
        for name in Provenance.__dataclass_fields__
        if name not in ("kind", "width", "cv", "area", "skipped")
    }
    about = Provenance(
        **named, kind=card.kind, width=64, cv=cv, area=budget.area, skipped=skipped or {}
    )
    table = pd.concat(parts, ignore_index=True)
    scores = evaluate.score(table, about)
    add(engine, scores.results, card, flags=scores.flags, parquet=to_parquet(table, about))


def fill_curves(engine: Engine, card: TaskCard = REAL_TASKS[0], models: int = 4) -> None:
    """Two probes with a budget on one task; 20 patients per class cannot be drawn."""
    for name, level in list(LEVELS.items())[:models]:
        add_curve(engine, name, level, card)
        add_curve(engine, name, level, card, "few_shot", FEW_SHOT, {"20": NOT_ENOUGH})


# --- all kinds side by side ----------------------------------------------------------------------

KINDS = (
    replace(REAL_TASKS[0], name="kinds_mass", title="Adrenal mass or normal gland"),
    replace(REAL_TASKS[4], name="kinds_age"),
    task_card(
        "kinds_hippocampus",
        "dice",
        kind="segmentation",
        title="Anterior and posterior hippocampus",
        modality="MR",
        anatomy="hippocampus",
        counts={"cases": 260, "patients": 260},
        classes=("background", "anterior", "posterior"),
        lattice_mm=(1.0, 1.0, 1.0),
        tolerance_mm=1.0,
        forward_voxels=4_000_000,
    ),
    task_card(
        "kinds_pairs",
        "warped_dice",
        kind="registration",
        title="One brain onto another",
        modality="MR",
        anatomy="brain",
        classes=(),
        lattice_mm=(2.0, 2.0, 2.0),
    ),
    task_card(
        "kinds_known_warp",
        "epe",
        kind="registration",
        title="A brain onto itself, warped by a known deformation",
        modality="MR",
        anatomy="brain",
        classes=(),
        lattice_mm=(2.0, 2.0, 2.0),
        evidence=False,
    ),
    task_card(
        "kinds_tumours",
        "cpm",
        kind="detection",
        title="Where the tumour is",
        anatomy="soft tissue",
        classes=(),
        lattice_mm=(3.0, 3.0, 3.0),
        counts={"cases": 51, "patients": 51},
    ),
    task_card(
        "kinds_marks",
        "cpm",
        kind="candidates",
        title="Which marks are nodules",
        anatomy="lung",
        classes=(),
        lattice_mm=(2.0, 2.0, 2.0),
        counts={"cases": 888, "patients": 888},
    ),
    task_card(
        "kinds_follow_up",
        "concordance",
        kind="survival",
        title="Time until the disease returns",
        anatomy="soft tissue",
        classes=(),
        counts={"cases": 51, "patients": 51},
    ),
)
"""A task of each kind, and a second registration with an error in mm."""

PROTOCOLS = Settings(
    probes={
        "linear": Current(
            2,
            (Change(2, "the solver was exchanged."),),
            kinds=("classification", "regression"),
            standard=("classification", "regression"),
            title="Logistic or ridge regression on the embedding",
            cost="Under a second per fit on 2 cores; the GPU only embeds the images.",
        ),
        "knn": Current(1, kinds=("classification",), title="Nearest neighbours by cosine"),
        "retrieve": Current(
            1, metric="map", kinds=("classification",), on_request=True, title="Similar scans"
        ),
        **{
            name: Current(1, kinds=(kind,), standard=(kind,), title=f"The standard of {kind}")
            for name, kind in (
                ("segment_linear", "segmentation"),
                ("register", "registration"),
                ("detect", "detection"),
                ("score_candidates", "candidates"),
                ("survival", "survival"),
            )
        },
    }
)
"""What a site is told of the probes of ``fill_kinds``."""

_OF_KIND = {
    "kinds_mass": {"auroc": (0.5, 0.95), "brier": (0.25, 0.1)},
    "kinds_age": {"mae": (15.0, 6.0)},
    "kinds_hippocampus": {"dice": (0.45, 0.85), "nsd": (0.5, 0.97), "hd95": (9.0, 1.4)},
    "kinds_pairs": {
        "warped_dice": (0.4, 0.78),
        "warped_hd95": (7.0, 2.1),
        "sd_log_jacobian": (0.12, 0.05),
        "folding": (0.021, 0.0004),
    },
    "kinds_known_warp": {"epe": (6.0, 0.8), "folding": (0.02, 0.0)},
    "kinds_tumours": {"cpm": (0.1, 0.8)},
    "kinds_marks": {"cpm": (0.3, 0.9)},
    "kinds_follow_up": {"concordance": (0.5, 0.74)},
}
"""Scores of a useless and of a perfect model."""

_FLOOR_OF = {
    "segmentation": ("patches", "intensity"),
    "registration": ("mind", "nothing", "intensity"),
}


def fill_kinds(engine: Engine) -> None:
    """Models on a task of every kind by its standard probe; `retrieve` on the classification.

    In each kind ``intensity`` or another floor is better than ``random_swin``.
    """
    levels = {"swin_unetr_btcv": 0.95, "resnet18_mae": 0.8, "random_swin": 0.3, "intensity": 0.4}
    probes = {kind: name for name, known in PROTOCOLS.probes.items() for kind in known.standard}
    for k, card in enumerate(KINDS):
        floors = _FLOOR_OF.get(card.kind, ())
        for name, level in (levels | {f: 0.5 - 0.1 * i for i, f in enumerate(floors)}).items():
            shift = ((len(name) * 3 + k) % 5 - 2) / 100
            probe = probes[card.kind]
            rows = [
                result(
                    name,
                    card.name,
                    score := worst + (best - worst) * (level + shift),
                    metric=metric,
                    low=score * 0.93,
                    high=score * 1.05,
                    probe=probe,
                    probe_version=PROTOCOLS.probes[probe].version,
                    seconds=10.0 * (k + 1) + len(name),
                    device="cuda: NVIDIA H100" if name == "swin_unetr_btcv" else "cpu: x86_64",
                )
                for metric, (worst, best) in _OF_KIND[card.name].items()
            ]
            add(engine, rows, card)
            if card.kind == "classification":
                found = replace(rows[0], probe="retrieve", metric="map", probe_version=1)
                add(engine, [found, replace(found, metric="recall_1", score=0.9)], card)


# --- asking the site -----------------------------------------------------------------------------


class Visitor:
    """Asks an application in this process; exceptions of the application pass through."""

    def __init__(self, app) -> None:
        self._app = app

    def get(self, path: str, **headers: str) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://board") as client:
                return await client.get(path, headers=headers)

        return asyncio.run(ask())

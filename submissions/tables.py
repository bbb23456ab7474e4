"""Tables and JSON of what is not a score: cards, probes, the cache, plans, recomputations."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from ..benchmark.probes import STANDARD
from ..benchmark.studies import AnyProbe, cost_of, on_request
from ..benchmark.types import EncoderCard
from . import baselines
from .terminal import out

if TYPE_CHECKING:
    from ..benchmark.cache import CacheEntry
    from .dry_runs import Plan
    from .rescoring import Rescored
    from .upkeep import Recomputed


def _print(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if column in _NUMBERS else "left", no_wrap=i == 0)
    for row in rows:
        table.add_row(*[escape(str(cell)) for cell in row])
    out.print(table)


_NUMBERS = {"cases", "patients", "width", "parameters", "MB", "volumes", "forwards", "n"}


def print_json(value: Any) -> None:
    """Machine-readable, one document."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_tasks(cards: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """The task cards."""
    if as_json:
        print_json(list(cards))
        return
    _print(
        f"{len(cards)} tasks",
        ("name", "kind", "modality", "anatomy", "metric", "cases", "patients", "license"),
        [
            (
                c["name"],
                c["kind"],
                c["modality"],
                c["anatomy"],
                c["metric"],
                c["counts"]["cases"],
                c["counts"]["patients"],
                c["license"],
            )
            for c in cards
        ],
    )


def print_encoders(
    cards: Sequence[EncoderCard], architectures: Mapping[str, str], as_json: bool
) -> None:
    """The baselines, and the architectures for manifests."""
    if as_json:
        baselines = [card.as_dict() for card in cards]
        print_json({"baselines": baselines, "architectures": dict(architectures)})
        return
    _print(
        "Baselines (--encoder NAME)",
        ("name", "what", "width", "parameters", "accepts"),
        [
            (c.name, c.title, c.width, f"{c.parameters:,}", ", ".join(sorted(c.intensity)))
            for c in cards
        ],
    )
    _print(
        "Architectures (--encoder NAME --arguments JSON --weights FILE.safetensors)",
        ("name", "what"),
        list(architectures.items()),
    )


def print_probes(probes: Sequence[AnyProbe], as_json: bool) -> None:
    """The protocols."""
    rows = [
        {
            "name": p.name,
            "version": p.version,
            "kinds": list(p.kinds),
            "standard_for": [kind for kind in p.kinds if STANDARD[kind] == p.name],
            "metric": getattr(p, "metric", "") or None,
            "on_request": on_request(p),
            "title": p.title,
            "cost": cost_of(p),
        }
        for p in probes
    ]
    if as_json:
        print_json(rows)
        return
    _print(
        f"{len(rows)} probes",
        ("name", "version", "serves", "ranks by", "runs", "what", "cost"),
        [
            (
                r["name"],
                r["version"],
                ", ".join(r["kinds"]),
                r["metric"] or "the task's metric",
                "on request" if r["on_request"] else "always",
                r["title"],
                r["cost"],
            )
            for r in rows
        ],
    )


def print_cache(folder: Path, entries: Sequence[CacheEntry], as_json: bool) -> None:
    """The cached embeddings and maps."""
    if as_json:
        print_json([{**vars(e), "path": str(e.path)} for e in entries])
        return
    total = sum(e.bytes for e in entries) / 1e6
    _print(
        f"{len(entries)} files, {total:.1f} MB in {folder}",
        ("data set", "model", "what", "n", "width", "MB", "written"),
        [
            (
                e.data_set,
                e.model,
                e.what,
                e.n,
                e.width,
                f"{e.bytes / 1e6:.2f}",
                datetime.fromtimestamp(e.modified, UTC).strftime("%Y-%m-%d %H:%M UTC"),
            )
            for e in entries
        ],
    )


def print_freed(freed: int) -> None:
    """What cleaning gained."""
    out.print(f"{freed / 1e6:.1f} MB freed")


def print_plan(plans: Sequence[Plan]) -> None:
    """The cost of a run."""
    _print(
        "Dry run: nothing was stored",
        ("encoder", "task", "what", "volumes", "forwards", "peak memory", "time", "from"),
        [
            (
                p.encoder,
                p.task,
                p.what,
                p.volumes,
                "cached" if p.cached else p.forwards,
                f"{p.memory_mb:,.0f} MB",
                f"{p.seconds:,.0f} s",
                f"{p.sampled} cases",
            )
            for p in plans
        ],
    )


def print_rescored(found: Iterable[Rescored], dry_run: bool) -> None:
    """What became of every unit of an older version; what is to be done by hand last."""
    counts = Counter[str]()
    rows, waiting = [], {}
    for one in found:
        counts[one.fate] += 1
        rows.append((one.model, one.unit.task, one.unit.probe, one.fate, one.why))
        if one.fate in ("queued", "waiting"):
            waiting.setdefault(one.model, set()).add((one.unit.task, one.unit.probe))
    if rows:
        _print("Older versions", ("model", "task", "probe", "what", "why"), rows)
    did = "would be" if dry_run else "were"
    out.print(
        f"{counts['rescored']} units {did} recomputed, {counts['queued']} {did} queued, "
        f"{counts['waiting']} waited before, {counts['left']} {did} left alone."
    )
    for model, units in sorted(waiting.items()):
        names = [f"--task {task}" for task in sorted({task for task, _ in units})]
        names += [f"--probe {probe}" for probe in sorted({probe for _, probe in units})]
        encoder = model if model in baselines.names() else f"<what you gave for '{model}'>"
        command = f"tomoprobe evaluate --encoder {encoder} {' '.join(names)}"
        out.print(f"Features are needed: {escape(command)}", soft_wrap=True)


def print_recomputed(rows: Iterable[Recomputed]) -> int:
    """Say how many stored rows equal their recomputation; return how many do not."""
    total = differing = superseded = 0
    for row in rows:
        if row.superseded:
            superseded += 1
            continue
        total += 1
        if row.equal:
            continue
        differing += 1
        r = row.stored
        again = "no predictions are stored" if row.again is None else f"now {row.again.score!r}"
        line = f"{r.model} {r.task} {r.probe} {r.metric}: stored {r.score!r}, {again}"
        out.print(escape(line))
    out.print(f"{total - differing} of {total} rows equal their recomputation to the last digit")
    if superseded:
        out.print(f"{superseded} superseded rows are of older versions and were not compared")
    return differing

"""``tomoprobe inspect``: what a checkpoint holds, and which registered architecture it fits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..benchmark.errors import ManifestError
from . import architectures
from .blueprints import Blueprint, blueprint
from .checkpoints import Checkpoint, open_checkpoint
from .guessing import COMMON, Guess, guesses
from .layers import Anatomy, anatomy
from .manifest import Manifest, parse
from .weights import bare, match

COUNTER = "num_batches_tracked"
NEAR = 0.5
"""Share of a network's tensors from which on it is called near."""


@dataclass(frozen=True)
class Fit:
    """How a checkpoint compares with one architecture under one guess."""

    guess: Guess
    matched: int
    """Tensors of the network that the file has, by name and shape."""
    wanted: int
    """Tensors of the network."""
    missing: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    """Of the network: in the file, with another shape."""
    unexpected: tuple[str, ...] = ()
    """Of the file: not the network's, nor what it is known to leave out."""
    left_out: int = 0
    """Of the file: known not to be run by this encoder, such as a decoder."""
    exact: bool = False
    """Whether it loads as it is."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Beginnings of names to replace first, ``{old: new}``."""
    parameters: int = 0

    @property
    def share(self) -> float:
        """Of the network's and the file's tensors together, how many match, in [0, 1]."""
        return self.matched / max(self.wanted + len(self.unexpected), 1)


@dataclass(frozen=True)
class Findings:
    """What `inspect` found."""

    checkpoint: Checkpoint
    anatomy: Anatomy
    fits: tuple[Fit, ...]
    """One per architecture with weights, the best first."""

    @property
    def exact(self) -> tuple[Fit, ...]:
        """Those that load as they are, or after renaming."""
        return tuple(fit for fit in self.fits if fit.exact)


def inspect(path: Path, part: str | None = None) -> Findings:
    """Open a checkpoint as data and compare it with every registered architecture.

    Raises:
        IntakeError: see ``checkpoints.open_checkpoint``.
    """
    checkpoint = open_checkpoint(path, part)
    return Findings(checkpoint, anatomy(checkpoint.shapes), tuple(fits(checkpoint.shapes)))


def fits(shapes: Mapping[str, tuple[int, ...]]) -> list[Fit]:
    """The best fit of every architecture that has weights, the best first.

    Args:
        shapes: of the checkpoint's tensors, by name.
    """
    found: list[Fit] = []
    for name in architectures.names():
        tried = [fit for guess in guesses(name, shapes) if (fit := _fit(guess, shapes))]
        if tried:
            found.append(max(tried, key=_rank))
    return sorted(found, key=_rank, reverse=True)


def _rank(fit: Fit) -> tuple[bool, bool, float, bool]:
    return fit.exact, not fit.rename, fit.share, fit.guess.architecture in COMMON


# --- comparing -----------------------------------------------------------------------------------


def _fit(guess: Guess, shapes: Mapping[str, tuple[int, ...]]) -> Fit | None:
    """Compare with the network of a guess; None where there is no such network."""
    architecture = architectures.get(guess.architecture)
    try:
        plan = blueprint(manifest_of(guess, architecture.READOUTS[0]), architecture.build)
    except ManifestError:
        return None
    if not plan.tensors:
        return None
    plain = _compare(guess, plan, shapes, {})
    if plain.exact or not (rename := _renaming(plan, shapes)):
        return plain
    return max(plain, _compare(guess, plan, shapes, rename), key=lambda f: (f.exact, f.share))


def manifest_of(guess: Guess, readout: str) -> Manifest:
    """A manifest that builds the network of a guess; its prose is empty."""
    data: dict[str, Any] = {
        "name": guess.architecture,
        "title": "A guess",
        "authors": "unstated",
        "license": "unstated",
        "pretraining": [],
        "readout": readout,
        "channels": guess.channels,
        "architecture": {"name": guess.architecture, "arguments": dict(guess.arguments)},
        "grid": {"shape": list(guess.shape)},
        "intensity": {"relative": {"type": "Window", "low": 0.0, "high": 1.0}},
    }
    return parse(data, f"guess of {guess.architecture}")


def _compare(
    guess: Guess,
    plan: Blueprint,
    shapes: Mapping[str, tuple[int, ...]],
    rename: Mapping[str, str],
) -> Fit:
    """Pair names as loading does, and count."""
    given = {renamed(key, rename): shape for key, shape in shapes.items()}
    ignore = re.compile("|".join(plan.unused) or r"(?!)")
    wanted = [name for name in plan.tensors if not name.endswith(COUNTER)]
    same: set[str] = set()
    other: set[str] = set()
    unexpected: list[str] = []
    left_out = 0
    for key, shape in given.items():
        name = bare(key, plan.tensors, ignore)
        if name in plan.tensors:
            (same if tuple(plan.tensors[name].shape) == shape else other).add(name)
        elif ignore.match(name):
            left_out += 1
        elif not name.endswith(COUNTER):
            unexpected.append(key)
    missing = [name for name in wanted if name not in same and name not in other]
    exact = not (missing or other or unexpected)
    if not exact and not missing and not other:
        exact = _loads(plan, given)  # a student beside its teacher is left alone
    return Fit(
        guess,
        sum(name in same for name in wanted),
        len(wanted),
        tuple(missing),
        tuple(sorted(other - same)),
        () if exact else tuple(unexpected),
        left_out,
        exact and _loads(plan, given),
        rename,
        plan.parameters,
    )


def _loads(plan: Blueprint, given: Iterable[str]) -> bool:
    try:
        match(given, plan.tensors, plan.unused, Path("checkpoint"))
    except ManifestError:
        return False
    return True


def renamed(key: str, rename: Mapping[str, str]) -> str:
    """A name with its beginning replaced, by the first rule that fits."""
    old = next((old for old in rename if key.startswith(old)), None)
    return key if old is None else rename[old] + key.removeprefix(old)


def _renaming(plan: Blueprint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The one beginning whose replacement brings most names together: what wrappers change.

    Every tensor of the file votes with each tensor of the network that has its shape and the end of
    its name.
    """
    places: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, tensor in plan.tensors.items():
        places.setdefault((_end(name), tuple(tensor.shape)), []).append(name)
    votes: Counter[tuple[str, str]] = Counter()
    for key, shape in shapes.items():
        for name in places.get((_end(key), shape), ()):
            if (pair := _beginnings(key, name)) is not None:
                votes[pair] += 1
    if not votes:
        return {}
    (old, new), count = votes.most_common(1)[0]
    return {old: new} if old != new and count >= NEAR * len(plan.tensors) else {}


def _end(name: str) -> str:
    """The last two parts of a name: module and parameter."""
    return ".".join(name.split(".")[-2:])


def _beginnings(key: str, name: str) -> tuple[str, str] | None:
    """What differs between two names before their longest common end, on whole parts."""
    a, b = key.split("."), name.split(".")
    while a and b and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return "".join(f"{part}." for part in a), "".join(f"{part}." for part in b)

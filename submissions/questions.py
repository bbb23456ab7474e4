"""What a manifest still lacks, asked for one by one, with a default where there is an honest one.

Who made a model, under which licence and from which data has none: it is asked for, or refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..benchmark.errors import ManifestError
from . import architectures
from .guessing import Guess

Ask = Callable[[str, str | None], str]
"""Called with a question and its default, which an empty answer takes; returns the answer."""


@dataclass(frozen=True)
class Question:
    """One thing a manifest says."""

    key: str
    text: str
    flag: str
    """Of ``tomoprobe pack``, which answers it without being asked."""
    read: Callable[[str], Any] = str
    """From the answer to the value; raises ValueError."""


def _numbers(kind: type, count: int) -> Callable[[str], list[Any] | None]:
    def read(answer: str) -> list[Any] | None:
        parts = answer.replace(",", " ").replace("x", " ").split()
        if not parts:
            return None
        if len(parts) not in (1, count):
            raise ValueError(f"one number or {count} are expected")
        values = [kind(part) for part in parts]
        return values if len(values) == count else values * count

    return read


def _names(answer: str) -> list[str]:
    """Names separated by commas; ``none`` for none."""
    found = [part.strip() for part in answer.split(",") if part.strip()]
    if not found:
        raise ValueError("names are expected, or 'none'")
    return [] if [name.lower() for name in found] == ["none"] else found


def _window(answer: str) -> dict[str, Any] | None:
    parts = answer.replace(",", " ").split()
    if not parts or parts == ["none"]:
        return None
    if len(parts) not in (2, 4):
        raise ValueError("'low high' or 'low high out_low out_high' are expected")
    keys = ("low", "high", "out_low", "out_high")
    return {"type": "Window", **{k: float(v) for k, v in zip(keys, parts, strict=False)}}


def _scanner(answer: str) -> dict[str, Any] | None:
    known = {"zscore": {"type": "ZScore"}, "minmax": {"type": "MinMax"}, "none": None, "": None}
    if answer.strip().lower() not in known:
        raise ValueError("'zscore', 'minmax' or 'none' is expected")
    return known[answer.strip().lower()]


_PROSE = (
    Question("name", "Short name (small letters, digits, '-')", "--name"),
    Question("title", "Title for the board", "--title"),
    Question("authors", "Authors", "--authors"),
    Question("license", "License of the weights (SPDX, e.g. Apache-2.0)", "--license"),
    Question(
        "pretraining",
        "Data sets that the weights have seen, separated by commas, or 'none'",
        "--pretraining",
        _names,
    ),
)
_SHAPE = Question("shape", "Voxels of the input along its axes", "--shape", _numbers(int, 3))
_SPACING = Question(
    "spacing",
    "Voxel size in mm (empty: the task's field of view is fitted into the shape)",
    "--spacing",
    _numbers(float, 3),
)
_AXES = Question("axes", "Directions of the input's axes, e.g. RAS or LPS", "--axes")
_HU = Question(
    "HU",
    "CT: window in HU, 'low high' mapped onto 0 to 1, or 'low high out_low out_high' (empty: no "
    "CT)",
    "--hu",
    _window,
)
_SCANNER = Question("scanner", "MR: 'zscore', 'minmax' or 'none'", "--scanner", _scanner)
_READOUT = Question("readout", "Readout", "--readout")


def answered(
    given: Mapping[str, Any], guess: Guess | None, name: str, ask: Ask | None
) -> dict[str, Any]:
    """A manifest's data, complete but for its file.

    Args:
        given: what is known already, as `Manifest` has it.
        guess: of the network; None where there is a graph.
        name: of the file, from which a name is made.
        ask: how to ask; None: what has no default is refused.

    Raises:
        ManifestError: something without a default is missing, or an answer cannot be read.
    """
    data = {key: value for key, value in given.items() if key not in ("grid", "intensity")}
    missing: list[str] = []

    def value(question: Question, known: Any, default: str | None) -> Any:
        if known is not None:
            return known
        if ask is not None:
            return _asked(question, default, ask)
        if default is None:
            missing.append(question.flag)
            return None
        return question.read(default)

    for question in _PROSE:
        default = {"name": slug(name), "title": data.get("name")}.get(question.key)
        data[question.key] = value(question, data.get(question.key), default)
    if guess is not None:
        _network(data, guess)
        readouts = architectures.get(data["architecture"]["name"]).READOUTS
        about = Question("readout", f"Readout ({', '.join(readouts)})", _READOUT.flag)
        data["readout"] = value(about, data.get("readout"), readouts[0])
    data["grid"] = _grid(given.get("grid", {}), guess, value)
    data["intensity"] = _intensity(given.get("intensity"), value)
    if not data["intensity"]:
        missing.append(f"{_HU.flag} or {_SCANNER.flag}")
    if missing:
        raise ManifestError(
            f"The submission lacks {', '.join(missing)}. Give them, or leave out --yes to be asked."
        )
    return data


def merge(data: dict[str, Any], answers: Mapping[str, str]) -> None:
    """Put answers that were given as text into a manifest's data.

    Args:
        data: changed in place.
        answers: by `Question.key`.

    Raises:
        ManifestError: one cannot be read.
    """
    for key, answer in answers.items():
        question = _STRUCTURED[key]
        try:
            value = question.read(answer)
        except ValueError as error:
            raise ManifestError(f"{question.flag} '{answer}': {error}.") from error
        table = {"pretraining": None, "HU": "intensity", "scanner": "intensity"}.get(key, "grid")
        target = data if table is None else data.setdefault(table, {})
        if value is None:
            target.pop(key, None)
        else:
            target[key] = value


_STRUCTURED = {
    question.key: question for question in (_PROSE[-1], _SHAPE, _SPACING, _AXES, _HU, _SCANNER)
}


def _asked(question: Question, default: str | None, ask: Ask) -> Any:
    answer = ask(question.text, default)
    try:
        return question.read(answer.strip())
    except ValueError as error:
        raise ManifestError(
            f"{question.text}: {error} (found '{answer}'). Start again, or use {question.flag}."
        ) from error


def _network(data: dict[str, Any], guess: Guess) -> None:
    """Name the architecture; given arguments count for more than guessed ones."""
    table = data.get("architecture", {})
    arguments = {**guess.arguments, **table.get("arguments", {})}
    data["architecture"] = {"name": table.get("name", guess.architecture), "arguments": arguments}
    if guess.channels != 1:
        data.setdefault("channels", guess.channels)


def _grid(
    given: Mapping[str, Any],
    guess: Guess | None,
    value: Callable[[Question, Any, str | None], Any],
) -> dict[str, Any]:
    guessed = " ".join(map(str, guess.shape)) if guess is not None else None
    grid = dict(given)
    for question, default in ((_SHAPE, guessed), (_SPACING, ""), (_AXES, "RAS")):
        found = value(question, given.get(question.key), default)
        if found is not None:
            grid[question.key] = found
    return grid


def _intensity(
    given: Mapping[str, Any] | None, value: Callable[[Question, Any, str | None], Any]
) -> dict[str, Any]:
    """Per unit; where one is given the others are taken to be meant as they are."""
    if given:
        return dict(given)
    found = {question.key: value(question, None, "") for question in (_HU, _SCANNER)}
    return {unit: how for unit, how in found.items() if how is not None}


def slug(name: str) -> str:
    """A name that a manifest takes, made from any other.

    >>> slug("My Net (fold 1)")
    'my-net-fold-1'
    """
    plain = re.sub(r"[^a-z0-9_.]+", "-", name.lower()).strip("-_.")
    return plain[:64].strip("-_.") or "model"

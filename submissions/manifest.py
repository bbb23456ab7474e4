"""What a submission says about itself: TOML at the edge, a frozen `Manifest` inside.

A manifest names a network (a registered architecture with arguments) and where its weights come
from (a safetensors file, or a seed for random initialisation), or an ONNX graph, which has both;
and the facts of its card. Reading one imports neither torch nor any architecture: what only the
network can tell is checked by `load`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, JsonValue, ValidationError, model_validator

from ..benchmark.errors import ManifestError
from ..benchmark.hashing import sha_of
from ..benchmark.types import EncoderCard, Unit
from . import architectures
from .manifest_tables import (
    ArchitectureTable,
    Count,
    GridTable,
    IntensityTable,
    Line,
    Name,
    OnnxTable,
    Table,
    Text,
    WeightsTable,
)

MAX_BYTES = 1 << 20
"""A manifest is a page of text: anything larger is not one. 1 MiB."""

_TAGS = ("Window", "ZScore", "MinMax")

_SHOWN = 5
"""How many faults an error message lists before it counts the rest."""


ONNX_READOUT = "embedding"
"""The readout of every ONNX graph: its output of that name. Another readout is another graph."""


class Manifest(Table):
    """A submission's declaration. Field names are the keys of the TOML file."""

    name: Name
    title: Line
    authors: Line
    license: Line
    """SPDX identifier of the weights."""
    version: Count = 1
    readout: Line
    """Which layers become the embedding: one of the architecture's readouts; of a graph,
    ``embedding``."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    """Of a random initialisation. Never together with weights."""
    width: Count | None = None
    """Length of the embedding. This and the next two are facts of the network; they may be stated,
    so that the card is complete without building it, and are then checked."""
    strides: tuple[Count, ...] | None = None
    """Voxels of the grid per voxel of each map, fine to coarse."""
    parameters: Annotated[int, Field(ge=0)] | None = None
    channels: Count = 1
    region: bool = False
    """Whether the mask of the case's region comes as one more channel; see `EncoderCard`."""
    tiling: Literal["crop", "tiles"] = "crop"
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25
    pool: Literal["mean", "max"] = "mean"
    pretraining: tuple[Line, ...]
    """Names of the data sets that the weights have seen; an empty list for none."""
    source: Text = ""
    citation: Text = ""
    note: Text = ""
    architecture: ArchitectureTable | None = None
    onnx: OnnxTable | None = None
    """Instead of architecture and weights."""
    weights: WeightsTable | None = None
    grid: GridTable
    intensity: Annotated[dict[Unit, IntensityTable], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_origin(self) -> Manifest:
        if self.weights is not None and self.seed is not None:
            raise ValueError(
                "weights and seed exclude each other: a model is trained or randomly initialised"
            )
        return self

    @model_validator(mode="after")
    def _one_network(self) -> Manifest:
        if (self.architecture is None) == (self.onnx is None):
            raise ValueError("exactly one of architecture and onnx is expected")
        if self.onnx is not None and (self.weights is not None or self.seed is not None):
            raise ValueError("an onnx graph has its weights inside: remove weights and seed")
        if self.onnx is not None and self.readout != ONNX_READOUT:
            raise ValueError(f"an onnx graph has one readout: readout = '{ONNX_READOUT}'")
        return self

    @model_validator(mode="after")
    def _region_in_one_piece(self) -> Manifest:
        if self.region and self.tiling == "tiles":
            raise ValueError(
                "region needs tiling = 'crop': a tile beside the region would look like a case "
                "that has none"
            )
        return self

    @property
    def registered(self) -> ArchitectureTable:
        """The architecture of a manifest that names one.

        Raises:
            ManifestError: it has a graph instead.
        """
        if self.architecture is None:
            raise ManifestError(f"Manifest '{self.name}' has an ONNX graph, no architecture.")
        return self.architecture

    def card(self, width: int, strides: tuple[int, ...], parameters: int) -> EncoderCard:
        """The encoder's card, with the facts that only its network knows.

        Args:
            width: length of the embedding.
            strides: voxels of the grid per voxel of each map.
            parameters: how many the network has.
        """
        return EncoderCard(
            name=self.name,
            title=self.title,
            grid=self.grid.as_type(),
            intensity={unit: how.as_type() for unit, how in self.intensity.items()},
            width=width,
            channels=self.channels,
            region=self.region,
            strides=strides,
            tiling=self.tiling,
            overlap=self.overlap,
            pool=self.pool,
            readout=self.readout,
            parameters=parameters,
            license=self.license,
            pretraining=self.pretraining,
            authors=self.authors,
            source=self.source,
            citation=self.citation,
            note=self.note,
        )


# --- reading and writing ----------------------------------------------------------------------


def read(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        ManifestError: missing or too large a file, not TOML, an unknown or missing key, a value of
            the wrong type or range, or an unknown architecture.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ManifestError(
            f"Manifest '{path}' cannot be read ({error.strerror}). Give the path of a .toml file."
        ) from error
    if len(raw) > MAX_BYTES:
        raise ManifestError(
            f"Manifest '{path}' is larger than {MAX_BYTES} bytes. A manifest is a page of text; "
            "weights belong into a .safetensors file beside it."
        )
    try:
        data = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also a number of 5000 digits
        raise ManifestError(
            f"Manifest '{path}' is not a TOML file in UTF-8: {error}. Correct it there."
        ) from error
    return parse(data, str(path))


def parse(data: Mapping[str, Any], where: str) -> Manifest:
    """Check a manifest that is already a mapping.

    Args:
        data: the keys of the TOML file.
        where: what to call it in an error message.

    Raises:
        ManifestError: as `read`.
    """
    try:
        text = json.dumps(data, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ManifestError(
            f"Manifest '{where}' holds a value that is neither text, number, truth value, list nor "
            f"table: {error}. Dates, 'inf' and 'nan' have no place in it."
        ) from error
    try:
        # As JSON, so that a list may stand for a tuple while every other type stays strict.
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise ManifestError(_explain(error, where, Manifest)) from error
    known = architectures.names()
    name = None if manifest.architecture is None else manifest.architecture.name
    if name is not None and name not in known:
        raise ManifestError(
            f"Manifest '{where}': architecture.name: no architecture is called "
            f"'{name}'.{did_you_mean(name, known)} "
            f"Known: {', '.join(known)}."
        )
    return manifest


def write(manifest: Manifest, path: Path) -> None:
    """Write a manifest as TOML; `read` gives an equal one back."""
    data = manifest.model_dump(mode="json", exclude_none=True)
    if manifest.architecture is not None:
        data["architecture"]["arguments"] = manifest.architecture.arguments
    path.write_text(toml(data), encoding="utf-8")


def toml(data: Mapping[str, JsonValue]) -> str:
    """A manifest as TOML: plain values first, then a table for each mapping."""
    plain = {key: value for key, value in data.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in data.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in plain.items()]
    for key, table in tables.items():
        lines += ["", f"[{key}]", *(f"{_key(name)} = {_toml(v)}" for name, v in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: JsonValue) -> str:
    """One value in TOML; a nested table inline, on one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            # A JSON string is a TOML string, but for DEL, which TOML wants escaped.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case int() | float():
            return repr(value)
        case list():
            return f"[{', '.join(_toml(item) for item in value)}]"
        case dict():
            return f"{{{', '.join(f'{_key(k)} = {_toml(v)}' for k, v in value.items())}}}"
        case _:
            raise ManifestError("TOML has no null: leave the argument out instead.")


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else _toml(name)


# --- errors ------------------------------------------------------------------------------------


def did_you_mean(name: str, known: list[str]) -> str:
    """`` Did you mean 'x'?``, or nothing."""
    near = get_close_matches(name, known, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The faults pydantic found, each as ``where: what``, the first few of them."""
    faults: list[str] = []
    for fault in error.errors(include_url=False, include_context=False):
        # The tag of a union is not a key that the author wrote.
        path = [str(part) for part in fault["loc"] if part not in _TAGS]
        where = ".".join(path) or "the file as a whole"
        if fault["type"] == "extra_forbidden":
            known = list(model.model_fields) if len(path) == 1 else []
            hint = f" Known: {', '.join(known)}" if known else ""
            faults.append(f"{where}: unknown key.{did_you_mean(path[-1], known)}{hint}")
        elif fault["type"] == "missing":
            faults.append(f"{where}: missing")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            given = json.dumps(fault["input"], default=str)
            shown = f" (found {given[:80]})" if path else ""
            faults.append(f"{where}: {message}{shown}")
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return "; ".join(faults[:_SHOWN]) + more


def _explain(error: ValidationError, where: str, model: type[BaseModel]) -> str:
    return f"Manifest '{where}': {explain(error, model)}. Correct the file and try again."


# --- identity -----------------------------------------------------------------------------------

_IDENTITY = ("grid", "intensity", "width", "channels", "strides", "tiling", "overlap", "pool")
"""The part of a card that decides the features. Names, prose and declarations are left out: they
may be corrected later, and a model under another name is the same model."""


def canonical(
    manifest: Manifest, architecture_version: int, weights_sha: str | None, card: EncoderCard
) -> dict[str, Any]:
    """What decides the features of a registered architecture, as plain JSON.

    Args:
        manifest: with the architecture's arguments complete (defaults filled in).
        architecture_version: of the architecture's file.
        weights_sha: sha256 of the tensors that the network runs on (not of the file, whose header
            and unused tensors change nothing). None: random initialisation, or no parameters.
        card: of the encoder.
    """
    return {
        "architecture": {
            "name": manifest.registered.name,
            "version": architecture_version,
            "arguments": dict(manifest.registered.arguments),
        },
        "weights": weights_sha,
        "seed": manifest.seed,
        "readout": card.readout,
        "card": card_identity(card),
    }


def canonical_onnx(graph_sha: str, card: EncoderCard) -> dict[str, Any]:
    """What decides the features of an ONNX graph, as plain JSON.

    Args:
        graph_sha: sha256 of the file, which holds network and weights.
        card: of the encoder.
    """
    return {"onnx": graph_sha, "readout": card.readout, "card": card_identity(card)}


def card_identity(card: EncoderCard) -> dict[str, Any]:
    """The fields of a card that decide the features, as plain JSON."""
    whole = card.as_dict()
    region = {"region": True} if card.region else {}  # older than the field: most identities
    return {field: whole[field] for field in _IDENTITY} | region


def model_sha(identity: Mapping[str, Any]) -> str:
    """sha256 of the canonical manifest as canonical JSON, in hex; the order of keys is irrelevant.

    >>> model_sha({"a": 1, "b": 2}) == model_sha({"b": 2, "a": 1})
    True
    """
    return sha_of(dict(identity))

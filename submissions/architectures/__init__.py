"""The networks that a manifest may name: one file each, listed by the folder, imported on use.

A file of this folder (but for names that begin with ``_``) is an architecture. It has

    VERSION: int     raised whenever the same arguments and weights could give other features
    SUMMARY: str     one sentence
    EXTRA: str       the extra of this package that it needs, if any
    DENSE: str       why it is left out where embeddings alone are compared, if it is
    READOUTS: tuple  the names of its readouts; the first is the default
    BLIND: bool      True if it says the same of every volume, on purpose
    def build(*, shape, channels, readout, <arguments with types and defaults>) -> Network

``build`` gets the card's grid shape, its channels (with the region's mask, if it wants one) and
readout, and the manifest's arguments by name.
Its signature is what a manifest's arguments are checked against, limits included
(``Annotated[int, Field(ge=1)]``). Listing costs no import: this file stays light.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from ...benchmark.errors import UnknownNameError

if TYPE_CHECKING:
    import torch


class Network(Protocol):
    """What a built network offers. It is also a `torch.nn.Module`, in eval mode when it is run."""

    width: int
    """F, the length of the embedding."""
    strides: tuple[int, ...]
    """Voxels of the grid per voxel of each map, fine to coarse. A map's shape is the grid's
    divided by the stride, rounded up."""
    unused: tuple[str, ...]
    """Regular expressions of the keys that a published checkpoint of the whole network holds and
    this encoder does not run (a decoder, a classifier). Only these are ever left out."""

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, F)."""
        ...

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, X, Y, Z) -> one (B, C_i, x_i, y_i, z_i) per stride, fine to coarse."""
        ...


class Architecture(Protocol):
    """What a file of this folder exposes."""

    VERSION: int
    SUMMARY: str
    READOUTS: tuple[str, ...]
    build: Callable[..., Network]


def names() -> list[str]:
    """The registered architectures, in alphabetical order; imports none."""
    here = Path(__file__).parent
    return sorted(file.stem for file in here.glob("*.py") if not file.stem.startswith("_"))


def constant(name: str, what: str) -> str:
    """A text constant of an architecture's file, such as its ``SUMMARY``; empty if it has none.

    Read from the file's text, because importing it would import torch.
    """
    text = (Path(__file__).parent / f"{name}.py").read_text()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id == what for t in targets) and node.value:
                return str(ast.literal_eval(node.value))
    return ""


def get(name: str) -> Architecture:
    """Import one architecture.

    Raises:
        UnknownNameError: there is no such file.
    """
    if name not in names():
        raise UnknownNameError.of("architecture", name, names())
    return cast("Architecture", import_module(f".{name}", __name__))

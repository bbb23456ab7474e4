"""Reference models. A baseline is a submission that we wrote: a manifest, like anybody's."""

from __future__ import annotations

from pathlib import Path

from ...benchmark.errors import ManifestError, UnknownNameError
from ...benchmark.types import EncoderCard
from ..manifest import read

_HERE = Path(__file__).parent


def names() -> list[str]:
    """The baselines, in alphabetical order: the manifests of this folder."""
    return sorted(file.stem for file in _HERE.glob("*.toml"))


def path(name: str) -> Path:
    """The manifest of a baseline.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in names():
        raise UnknownNameError.of("baseline", name, names())
    return _HERE / f"{name}.toml"


def cards() -> list[EncoderCard]:
    """The cards of all baselines, without importing torch.

    Raises:
        ManifestError: a baseline's manifest does not declare the facts of its network, or is called
            otherwise than its file.
    """
    found: list[EncoderCard] = []
    for name in names():
        manifest = read(path(name))
        width, strides, parameters = manifest.width, manifest.strides, manifest.parameters
        if width is None or strides is None or parameters is None or manifest.name != name:
            raise ManifestError(
                f"Baseline '{name}' has to declare width, strides and parameters, and to be called "
                "like its file."
            )
        found.append(manifest.card(width, strides, parameters))
    return found

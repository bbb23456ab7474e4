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

    They are as declared: ``strides`` and ``parameters``, which only the network knows, are empty.

    Raises:
        ManifestError: a baseline's manifest does not declare its width, or is called otherwise
            than its file.
    """
    found: list[EncoderCard] = []
    for name in names():
        manifest = read(path(name))
        if manifest.width is None or manifest.name != name:
            raise ManifestError(
                f"Baseline '{name}' has to declare its width, and to be called like its file."
            )
        found.append(manifest.card(manifest.width))
    return found

"""Protocols: how frozen features become predictions. One per file, each exposing ``PROBES``."""

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module

from ..errors import UnknownNameError
from ..studies import AnyProbe, on_request
from ..types import Kind

__all__ = ["STANDARD", "default", "for_kind", "get", "names"]

STANDARD: Mapping[Kind, str] = {
    "classification": "linear",
    "regression": "linear",
    "segmentation": "segment_linear",
    "registration": "register",
    "detection": "detect",
    "candidates": "score_candidates",
    "survival": "survival",
}
"""The probe that a board shows where none is asked for: of each kind the one with the fewest
choices of its own, so that the features decide."""


@cache
def _probes() -> dict[str, AnyProbe]:
    """Every probe by name: the folder is the list; files with an underscore are shared parts."""
    found: dict[str, AnyProbe] = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            for probe in import_module(f".{module.name}", __name__).PROBES:
                found[probe.name] = probe
    return dict(sorted(found.items()))


def names() -> list[str]:
    """All probes, sorted."""
    return list(_probes())


def get(name: str) -> AnyProbe:
    """The probe of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in _probes():
        raise UnknownNameError.of("probe", name, _probes())
    return _probes()[name]


def default() -> list[str]:
    """The probes that run where none is named, sorted."""
    return [name for name, probe in _probes().items() if not on_request(probe)]


def for_kind(kind: Kind) -> list[AnyProbe]:
    """The probes that answer this kind of question."""
    return [probe for probe in _probes().values() if kind in probe.kinds]

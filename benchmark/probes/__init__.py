"""Protocols: how frozen features become predictions. One per file, each exposing ``PROBES``."""

import pkgutil
from functools import cache
from importlib import import_module

from ..errors import UnknownNameError
from ..types import Kind, Probe

__all__ = ["for_kind", "get", "names"]


@cache
def _probes() -> dict[str, Probe]:
    """Every probe by name: the folder is the list; files with an underscore are shared parts."""
    found: dict[str, Probe] = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            for probe in import_module(f".{module.name}", __name__).PROBES:
                found[probe.name] = probe
    return dict(sorted(found.items()))


def names() -> list[str]:
    """All probes, sorted."""
    return list(_probes())


def get(name: str) -> Probe:
    """The probe of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in _probes():
        raise UnknownNameError.of("probe", name, _probes())
    return _probes()[name]


def for_kind(kind: Kind) -> list[Probe]:
    """The probes that answer this kind of question."""
    return [probe for probe in _probes().values() if kind in probe.kinds]

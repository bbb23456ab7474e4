"""What there is to choose from. Imports neither torch nor monai."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from .. import tasks as registry
from ..benchmark import probes as protocols
from ..benchmark import splits
from ..benchmark.errors import UnknownNameError
from ..benchmark.types import EncoderCard, Kind, Modality, Probe, Unit
from ..tasks import suites
from . import architectures as networks
from . import baselines


def tasks(
    kind: str | None, modality: str | None, anatomy: str | None, suite: str | None
) -> list[dict[str, Any]]:
    """Cards as JSON types, with the hash of the complete set's split, sorted by name."""
    _known("kind", kind, get_args(Kind))
    _known("modality", modality and modality.upper(), get_args(Modality))
    wanted = suites.get(suite) if suite else registry.names()
    found = []
    for name in sorted(wanted):
        task = registry.get(name)
        card = task.card
        if (
            kind in (None, card.kind)
            and (modality is None or modality.upper() == card.modality)
            and (anatomy is None or anatomy.lower() in card.anatomy.lower())
        ):
            seats = splits.assign(card, task.roster())
            found.append(splits.published_card(card, seats))
    return found


def encoders(accepts: str | None) -> list[EncoderCard]:
    """Cards of the baselines, sorted by name; ``accepts`` is a ``types.Unit``."""
    _known("unit", accepts, get_args(Unit))
    return [card for card in baselines.cards() if accepts is None or accepts in card.intensity]


def architectures() -> Mapping[str, str]:
    """Architectures that a manifest may name, with one sentence each."""
    return {name: _summary(name) for name in networks.names()}


def _summary(name: str) -> str:
    """The architecture's ``SUMMARY``, read from its text: importing it would import torch."""
    text = (Path(networks.__file__).parent / f"{name}.py").read_text()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id == "SUMMARY" for t in targets) and node.value:
                return str(ast.literal_eval(node.value))
    return ""


def probes(kind: str | None) -> list[Probe]:
    """Protocols, sorted by name."""
    _known("kind", kind, get_args(Kind))
    found = [protocols.get(name) for name in protocols.names()]
    return [probe for probe in found if kind is None or kind in probe.kinds]


def _known(what: str, name: str | None, known: tuple[str, ...]) -> None:
    """Refuse a slip of the pen instead of listing nothing."""
    if name is not None and name not in known:
        raise UnknownNameError.of(what, name, known)

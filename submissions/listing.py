"""What there is to choose from. Imports neither torch nor monai."""

from collections.abc import Mapping
from typing import Any, get_args

from .. import tasks as registry
from ..benchmark import probes as protocols
from ..benchmark import splits
from ..benchmark.errors import UnknownNameError
from ..benchmark.studies import AnyProbe
from ..benchmark.types import EncoderCard, Kind, Modality, Unit
from ..tasks import suites
from . import architectures as networks
from . import baselines


def tasks(
    kind: str | None, modality: str | None, anatomy: str | None, suite: str | None
) -> list[dict[str, Any]]:
    """Cards as JSON types, with the hash of the complete set's split, sorted by name."""
    _known("kind", kind, get_args(Kind))
    modality = _known("modality", modality, get_args(Modality))
    wanted = suites.get(suite) if suite else registry.names()
    found = []
    for name in sorted(wanted):
        task = registry.get(name)
        card = task.card
        if (
            kind in (None, card.kind)
            and modality in (None, card.modality)
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
    return {name: networks.constant(name, "SUMMARY") for name in networks.names()}


def probes(kind: str | None) -> list[AnyProbe]:
    """Protocols, sorted by name."""
    _known("kind", kind, get_args(Kind))
    found = [protocols.get(name) for name in protocols.names()]
    return [probe for probe in found if kind is None or kind in probe.kinds]


def _known(what: str, name: str | None, known: tuple[str, ...]) -> str | None:
    """The name as it is written; refuses a slip of the pen instead of listing nothing."""
    if name is None:
        return None
    for one in known:
        if one.casefold() == name.casefold():
            return one
    raise UnknownNameError.of(what, name, known)

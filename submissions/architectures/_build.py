"""From a manifest's arguments to a network: checked by the signature of ``build``, seeded."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ConfigDict, ValidationError, create_model

from ...benchmark.errors import ManifestError
from ..manifest import Manifest, explain
from ..manifest_tables import ArchitectureTable
from . import Network

GIVEN_BY_CARD = ("shape", "channels", "readout")
"""Parameters of ``build`` that come from the card, not from the manifest's arguments."""


def complete_arguments(manifest: Manifest, build: Callable[..., Any]) -> Manifest:
    """The manifest with its architecture's arguments checked and the defaults filled in.

    Raises:
        ManifestError: an unknown argument, or one of the wrong type or range.
    """
    parameters = inspect.signature(build, eval_str=True).parameters
    fields: dict[str, Any] = {
        name: (p.annotation, ... if p.default is inspect.Parameter.empty else p.default)
        for name, p in parameters.items()
        if name not in GIVEN_BY_CARD
    }
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    model = create_model("Arguments", __config__=config, **fields)
    given = manifest.registered.arguments
    try:
        # As JSON for the same reason as the manifest itself: a list may stand for a tuple.
        checked = model.model_validate_json(json.dumps(given))
    except ValidationError as error:
        raise ManifestError(
            f"Manifest '{manifest.name}': architecture.arguments of "
            f"'{manifest.registered.name}': {explain(error, model)}. Correct them."
        ) from error
    table = ArchitectureTable(
        name=manifest.registered.name, arguments=checked.model_dump(mode="json")
    )
    return manifest.model_copy(update={"architecture": table})


def build_network(manifest: Manifest, build: Callable[..., Any]) -> Network:
    """Call an architecture with arguments that `complete_arguments` has checked."""
    arguments = {
        # JSON's lists become the tuples that the signature speaks of.
        name: tuple(value) if isinstance(value, list) else value
        for name, value in manifest.registered.arguments.items()
    }
    try:
        with _seeded(manifest.seed or 0):
            return build(
                shape=manifest.grid.shape,
                channels=manifest.channels + manifest.region,
                readout=manifest.readout,
                **arguments,
            )
    except ManifestError as error:
        raise ManifestError(f"Manifest '{manifest.name}': {error}") from error
    except ValueError as error:
        raise ManifestError(
            f"Manifest '{manifest.name}': architecture '{manifest.registered.name}' cannot be "
            f"built with these arguments: {error}"
        ) from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random initialisation that depends on the seed alone and leaves no trace.

    The default device and floating point type are global state too, and change what is drawn.
    """
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.set_default_dtype(torch.float32)
        # Not torch.manual_seed: it would also reseed the accelerators, which are not forked.
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)

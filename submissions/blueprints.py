"""A network without its numbers: names, shapes and sizes at no cost, whatever the arguments are.

On torch's meta device tensors have a shape and no memory, so that a manifest that asks for a
network of a terabyte is measured in milliseconds, and refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..benchmark.errors import ManifestError
from .architectures import Network
from .architectures._build import complete_arguments
from .headers import shown
from .manifest import Manifest


@dataclass(frozen=True)
class Blueprint:
    """What a network would be."""

    tensors: Mapping[str, torch.Tensor]
    """Its state dict, on the meta device."""
    unused: tuple[str, ...]
    """See `Network`."""
    width: int
    strides: tuple[int, ...]
    parameters: int
    bytes: int
    """Of all parameters and buffers in memory, those included that no file holds."""


def blueprint(manifest: Manifest, build: Callable[..., Network]) -> Blueprint:
    """Lay out the network of a manifest.

    Args:
        manifest: its arguments need not be complete.
        build: of its architecture.

    Raises:
        ManifestError: arguments that are refused, or that no network can be built with.
    """
    complete = complete_arguments(manifest, build)
    arguments = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in complete.registered.arguments.items()
    }
    try:
        with torch.device("meta"), _Scalars():
            network = build(
                shape=manifest.grid.shape,
                channels=manifest.channels + manifest.region,
                readout=manifest.readout,
                **arguments,
            )
    except ManifestError:
        raise
    except Exception as error:  # a stranger's arguments in the code of networks that check few
        raise ManifestError(
            f"Architecture '{manifest.registered.name}' cannot be built with the arguments "
            f"{shown(json.dumps(arguments))}: {type(error).__name__}: {shown(str(error))}. "
            "Correct them."
        ) from error
    module = cast("nn.Module", network)  # so say the contract of `Network` and its test
    parameters = list(module.parameters())
    held = [*parameters, *module.buffers()]
    return Blueprint(
        dict(module.state_dict()),
        tuple(network.unused),
        network.width,
        tuple(network.strides),
        sum(p.numel() for p in parameters),
        sum(t.numel() * t.element_size() for t in held),
    )


class _Scalars(TorchFunctionMode):
    """Keeps ``linspace`` on the CPU, from which networks read rates of drop path by ``item``."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.linspace and given.get("device") is None:
            given["device"] = "cpu"
        return func(*args, **given)

"""From a name to a frozen encoder: the one door through which every model comes in.

A *spec* is the name of a baseline, the path of a manifest, the name of a registered architecture
(then its arguments and weights are given beside it), or ``package.module:factory`` for a Python
object on this machine. Weights are only ever read from safetensors files and ONNX graphs.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..benchmark.errors import EncoderError, InstallationError, ManifestError, UnknownNameError
from ..benchmark.types import EncoderCard
from . import architectures, baselines
from .architectures._build import build_network, complete_arguments
from .manifest import (
    Manifest,
    canonical,
    canonical_onnx,
    card_identity,
    model_sha,
    parse,
    read,
)
from .manifest_tables import NAME_PATTERN, OnnxTable
from .python_objects import modules_of, resolve, source_sha, values_sha
from .weights import file_sha, load_into, state_sha


@dataclass(frozen=True)
class LoadedEncoder:
    """A frozen encoder with its identity. Satisfies `Encoder`."""

    card: EncoderCard
    model_sha: str
    manifest: Mapping[str, Any]
    """The canonical manifest: plain JSON, of which ``model_sha`` is the hash."""
    module: nn.Module | None
    """What holds the weights and buffers, in eval mode; None where there is nothing to hold."""
    device: str
    _embed: Callable[[torch.Tensor], torch.Tensor] = field(repr=False)
    _maps: Callable[[torch.Tensor], Sequence[torch.Tensor]] | None = field(repr=False)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) on any device -> (B, F) on the encoder's device, without gradients."""
        with torch.no_grad():
            return self._embed(x.to(self.device))

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, X, Y, Z) -> maps (B, C_i, x_i, y_i, z_i), fine to coarse, one per stride.

        Raises:
            EncoderError: the encoder has no maps.
        """
        if self._maps is None:
            raise EncoderError(
                f"Encoder '{self.card.name}' has no maps, only an embedding. Dense tasks need "
                "maps(x) and the strides on the card."
            )
        with torch.no_grad():
            return list(self._maps(x.to(self.device)))


def load(
    spec: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    weights: Path | None = None,
    device: str = "cpu",
) -> LoadedEncoder:
    """Load an encoder, frozen and on its device.

    Args:
        spec: see the module.
        arguments: of an architecture (where ``readout``, ``seed``, ``shape``, ``spacing``,
            ``channels`` and ``region`` of a bare card may be given, too), or of a Python factory.
        weights: a safetensors file for an architecture, or a file instead of the one that a
            manifest names: safetensors, or the ONNX graph.
        device: as torch spells it.

    Raises:
        UnknownNameError: the spec names nothing.
        ManifestError: the manifest, arguments or weights do not fit.
        IntakeError: the ONNX graph of a manifest is refused.
        EncoderError: a Python object that is no encoder.
        InstallationError: no such device or library here.
    """
    _check_device(device)
    if spec.endswith(".toml"):
        _no_arguments(spec, arguments)
        return _from_manifest(read(Path(spec)), Path(spec).parent, weights, device)
    if ":" in spec:
        if weights is not None:
            raise ManifestError(
                f"'{spec}' is a Python object, which loads its own weights. Leave the weights out, "
                "or pass their path as an argument of the factory."
            )
        return _from_object(spec, arguments or {}, device)
    bare = not arguments and weights is None
    if spec in baselines.names() and (bare or spec not in architectures.names()):
        _no_arguments(spec, arguments if weights is None else {"weights": weights})
        path = baselines.path(spec)
        return _from_manifest(read(path), path.parent, None, device)
    if spec in architectures.names():
        return _from_architecture(spec, arguments or {}, weights, device)
    raise UnknownNameError.of("encoder", spec, {*baselines.names(), *architectures.names()})


# --- manifests -------------------------------------------------------------------------------


def _from_manifest(
    manifest: Manifest, folder: Path, weights: Path | None, device: str
) -> LoadedEncoder:
    """Build, fill, check and freeze the network of a manifest."""
    if manifest.onnx is not None:
        return _from_graph(manifest, manifest.onnx, weights or folder / manifest.onnx.file, device)
    file = weights
    if manifest.weights is not None:
        file = weights or folder / manifest.weights.file
        _check_sha(manifest, manifest.weights.sha256, file)
    elif weights is not None and manifest.seed is not None:
        raise ManifestError(
            f"Manifest '{manifest.name}' is a random initialisation (seed {manifest.seed}), but "
            "weights are given. Remove the seed or the weights."
        )
    architecture = architectures.get(manifest.registered.name)
    complete = complete_arguments(manifest, architecture.build)
    network = build_network(complete, architecture.build)
    module = cast("nn.Module", network)  # so say the contract of `Network` and its test
    has_weights = bool(module.state_dict())
    if has_weights and file is None and manifest.seed is None:
        raise ManifestError(
            f"Manifest '{manifest.name}': architecture '{manifest.registered.name}' has weights. "
            "Give a safetensors file, or a seed for random initialisation."
        )
    if not has_weights and (file is not None or manifest.seed is not None):
        raise ManifestError(
            f"Manifest '{manifest.name}': architecture '{manifest.registered.name}' has no "
            "weights. Remove weights and seed."
        )
    if file is not None:
        load_into(module, file, network.unused)
    _check_facts(manifest, network.width, network.strides, _count(module))
    card = manifest.card(network.width, network.strides, _count(module))
    trained = state_sha(module) if file is not None else None
    identity = canonical(complete, architecture.VERSION, trained, card)
    _freeze(module, device)
    return LoadedEncoder(
        card,
        model_sha(identity),
        identity,
        module,
        device,
        network.embed,
        network.maps if network.strides else None,
    )


def _from_graph(manifest: Manifest, table: OnnxTable, file: Path, device: str) -> LoadedEncoder:
    """Check and load the ONNX graph of a manifest."""
    from .onnx_encoder import OnnxNetwork

    _check_sha(manifest, table.sha256, file)
    network = OnnxNetwork(file, device)
    facts = network.facts
    wanted = (manifest.channels + manifest.region, manifest.grid.shape)
    if (facts.channels, facts.shape) != wanted:
        raise ManifestError(
            f"Manifest '{manifest.name}': the graph takes {facts.channels} channels of "
            f"{facts.shape} voxels, the manifest's card gives {wanted[0]} of {wanted[1]}. Correct "
            "grid.shape, channels and region, or export the graph for them."
        )
    _check_facts(manifest, facts.width, facts.strides, facts.parameters)
    card = manifest.card(facts.width, facts.strides, facts.parameters)
    identity = canonical_onnx(facts.sha256, card)
    return LoadedEncoder(
        card,
        model_sha(identity),
        identity,
        None,
        device,
        network.embed,
        network.maps if facts.strides else None,
    )


def _check_sha(manifest: Manifest, promised: str | None, file: Path) -> None:
    if promised is not None and promised != (found := file_sha(file)):
        raise ManifestError(
            f"'{file}' has the sha256 {found}, manifest '{manifest.name}' promises "
            f"{promised}. Get the file again, or correct the manifest."
        )


def _check_facts(manifest: Manifest, width: int, strides: tuple[int, ...], parameters: int) -> None:
    """Compare what a manifest states about its network with what is so."""
    for name, fact in {"width": width, "strides": strides, "parameters": parameters}.items():
        if getattr(manifest, name) not in (None, fact):
            network = (
                "of this graph it is"
                if manifest.onnx is not None
                else f"with these arguments and readout '{manifest.readout}' it is"
            )
            raise ManifestError(
                f"Manifest '{manifest.name}': {name}: {getattr(manifest, name)} is declared, "
                f"{network} {fact}. Correct it or leave it out."
            )


# --- bare architectures ------------------------------------------------------------------------

_BARE = {
    "title": "An architecture without a manifest",
    "authors": "unstated",
    "license": "unstated",
    "pretraining": [],
    "intensity": {
        # The soft-tissue display window of CT: level 40 HU, width 400 HU.
        "HU": {"type": "Window", "low": -160.0, "high": 240.0},
        "scanner": {"type": "ZScore"},
        "relative": {"type": "Window", "low": 0.0, "high": 1.0},
    },
}
_BARE_SHAPE = [96, 96, 96]
"""The patch of MONAI's SwinUNETR and of most 3D self-supervised checkpoints."""


def _from_architecture(
    name: str, arguments: Mapping[str, Any], weights: Path | None, device: str
) -> LoadedEncoder:
    """A registered architecture on a default card."""
    rest = dict(arguments)
    architecture = architectures.get(name)
    data: dict[str, Any] = {
        **_BARE,
        "name": name,
        "readout": rest.pop("readout", architecture.READOUTS[0]),
        "grid": {"shape": rest.pop("shape", _BARE_SHAPE)},
        "architecture": {"name": name},
    }
    if "spacing" in rest:
        data["grid"]["spacing"] = rest.pop("spacing")
    for key in ("seed", "channels", "region"):
        if key in rest:
            data[key] = rest.pop(key)
    data["architecture"]["arguments"] = rest
    manifest = parse(data, f"arguments of {name}")
    loaded = _from_manifest(manifest, Path(), weights, device)
    # Two such models differ by nothing that a reader sees, so the name carries the identity.
    return replace(loaded, card=replace(loaded.card, name=f"{name}-{loaded.model_sha[:8]}"))


# --- Python objects ------------------------------------------------------------------------------


def _from_object(spec: str, arguments: Mapping[str, Any], device: str) -> LoadedEncoder:
    """Any encoder on this machine: an `Encoder`, or an ``nn.Module`` with a card."""
    target = resolve(spec)
    made = isinstance(target, type) or (callable(target) and not hasattr(target, "card"))
    if arguments and not made:
        raise EncoderError(f"'{spec}' is an object, not a factory: it takes no arguments.")
    encoder = _make(spec, target, arguments) if made else target
    card = getattr(encoder, "card", None)
    embed = getattr(encoder, "embed", encoder if isinstance(encoder, nn.Module) else None)
    if not isinstance(card, EncoderCard) or not callable(embed):
        raise EncoderError(
            f"'{spec}' gives {type(encoder).__name__}, which is no encoder. It needs card (an "
            "EncoderCard) and embed(x): (B, C, X, Y, Z) -> (B, F); an nn.Module may do without "
            "embed, then its forward is called."
        )
    if not re.fullmatch(NAME_PATTERN, card.name):
        raise EncoderError(
            f"'{spec}': the card is called '{card.name}'. Small letters, digits, '_', '.' and '-' "
            "are expected, because files and addresses are named after it."
        )
    maps = getattr(encoder, "maps", None) if card.strides else None
    if card.strides and not callable(maps):
        raise EncoderError(
            f"'{spec}': the card states strides {card.strides}, but there is no maps(x). Add it, "
            "or leave strides empty."
        )
    module = modules_of(encoder)
    parameters = 0
    if module is not None:
        _freeze(module, device)
        parameters = _count(module)
    if card.parameters not in (0, parameters) and module is not None:
        raise EncoderError(
            f"'{spec}': the card states {card.parameters} parameters, the network has "
            f"{parameters}. Correct the card, or leave it at 0."
        )
    card = replace(card, parameters=card.parameters or parameters)
    identity = {
        "object": spec,
        "arguments": json.loads(json.dumps(dict(arguments), default=str)),
        "source": source_sha(target, encoder, *(() if module is None else module.modules())),
        "weights": None if module is None else state_sha(module),
        "values": values_sha(encoder),
        "readout": card.readout,
        "card": card_identity(card),
    }
    return LoadedEncoder(
        card,
        model_sha(identity),
        identity,
        module,
        device,
        cast("Callable[[torch.Tensor], torch.Tensor]", embed),
        cast("Callable[[torch.Tensor], Sequence[torch.Tensor]] | None", maps),
    )


def _make(spec: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a factory; what it raises itself is the author's to see, with its traceback."""
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise EncoderError(
            f"'{spec}' cannot be called with the arguments {sorted(arguments)}: {error}. Its "
            f"signature is {inspect.signature(factory)}."
        ) from error
    return factory(**arguments)


# --- common --------------------------------------------------------------------------------------


def _freeze(module: nn.Module, device: str) -> None:
    module.eval()
    module.requires_grad_(False)
    module.to(device)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _no_arguments(spec: str, arguments: Mapping[str, Any] | None) -> None:
    if arguments:
        raise ManifestError(
            f"'{spec}' is a complete manifest and takes no {', '.join(sorted(arguments))}. Name "
            "the architecture instead, or change a copy of the manifest."
        )


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InstallationError(
            f"Device '{device}' cannot be used here ({str(error).splitlines()[0]}). Use 'cpu', or "
            "one that torch finds."
        ) from error

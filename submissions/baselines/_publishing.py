"""From a trained network to a submission: weights in half precision, and a manifest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save
from torch import nn

from ...benchmark.errors import StorageError, TrainingError
from .. import architectures
from ..architectures._build import build_network, complete_arguments
from ..manifest import parse, toml
from ._pretraining import Preset, Pretext

WEIGHTS, MANIFEST = "model.safetensors", "manifest.toml"


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that it is there whole or, as before, not at all.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    # torch wraps what the system says about a write in a RuntimeError
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            part.unlink()
        cause = error if isinstance(error, OSError) else error.__context__ or error
        raise StorageError(
            f"{path} cannot be written: {getattr(cause, 'strerror', None) or cause}. What was "
            "there before is kept. Free some space and run the same command again."
        ) from error


def publish(
    pretext: Pretext,
    preset: Preset,
    name: str,
    encoder: nn.Module,
    out: Path,
    story: str,
    data_sets: Sequence[str] = (),
) -> None:
    """Write ``model.safetensors`` and ``manifest.toml``, which ``load`` opens.

    Args:
        pretext: the system.
        preset: that was trained.
        name: of the submission.
        encoder: the trained network.
        out: folder.
        story: what was trained on what for how long.
        data_sets: names of what was seen; none: those of the built-in source, which the card has.

    Raises:
        TrainingError: a weight that half precision cannot hold.
        ManifestError: the system's card breaks the contract of a manifest.
        StorageError: the folder cannot be written.
    """
    tensors = {key: _half(key, value) for key, value in encoder.state_dict().items()}
    content = save(tensors)
    card = dict(pretext.card(preset))
    if data_sets:
        card["pretraining"] = list(data_sets)
    table: dict[str, Any] = {
        "name": name,
        "authors": "tomoprobe",
        "license": "Apache-2.0",
        "readout": preset.readout,
        **card,
        "note": " ".join(filter(None, (card.get("note", ""), story))),
        "architecture": {"name": pretext.architecture, "arguments": dict(preset.architecture)},
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(content).hexdigest()},
        "grid": {"shape": list(preset.shape), **card.get("grid", {})},
    }
    table = json.loads(json.dumps(table))  # tuples become lists
    manifest = parse(table, f"the card of {pretext.name}")
    build = architectures.get(pretext.architecture).build
    network = build_network(complete_arguments(manifest, build), build)
    table["width"], table["strides"] = network.width, list(network.strides)
    table["parameters"] = sum(p.numel() for p in network.parameters())  # type: ignore[attr-defined]
    write_whole(out / WEIGHTS, lambda file: file.write(content))
    text = toml(table)
    write_whole(out / MANIFEST, lambda file: file.write(text.encode()))


def _half(key: str, value: torch.Tensor) -> torch.Tensor:
    value = value.detach().cpu()
    if not value.is_floating_point():
        return value.clone()
    half = value.half().contiguous()
    if not bool(torch.isfinite(half).all()):
        raise TrainingError(
            f"The weight '{key}' holds values that half precision cannot (largest "
            f"{float(value.abs().max()):g}). The training has diverged: lower the learning rate."
        )
    return half.clone()

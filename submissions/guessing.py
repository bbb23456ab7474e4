"""From the shapes of a checkpoint's tensors to the arguments of the architectures it may belong to.

Widths, depths, kernels, patches and heads of windows leave their marks in names and shapes. What
leaves none (strides, pooling, the heads of a plain attention) keeps its default and is named, so
that whoever submits can correct it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..benchmark.types import Shape

SHAPE: Shape = (96, 96, 96)
"""Of a grid that the tensors say nothing about: the patch of MONAI's SwinUNETR."""

COMMON = ("resnet", "segresnet", "slices", "swin_unetr", "vit")
"""Networks that many train. Where the tensors of one are those of a reference system, too (CSPR has
a ResNet's, CoralBay a SwinUNETR's), it is the likelier."""

_VOLUME, _PLANE = 5, 4
"""Dimensions of a convolution's weight: output and input channels, and the kernel's."""


@dataclass(frozen=True)
class Guess:
    """Arguments of one architecture."""

    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    channels: int = 1
    shape: Shape = SHAPE
    untold: tuple[str, ...] = ()
    """Arguments that no tensor tells."""


class Names:
    """The tensors of a checkpoint, found by the end of their names, whatever stands before."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def get(self, name: str, dims: int | None = None) -> tuple[int, ...] | None:
        """The shape of the tensor whose name is or ends with this; with that many dimensions."""
        for key, shape in self.shapes.items():
            fits = key == name or key.endswith(f".{name}")
            if fits and (dims is None or len(shape) == dims):
                return shape
        return None

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def numbers(self, pattern: str) -> set[int]:
        """The different numbers that the pattern's group takes, anywhere in a name."""
        found = (re.search(rf"(?:^|\.){pattern}", key) for key in self.shapes)
        return {int(match[1]) for match in found if match}


def guesses(architecture: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Guess]:
    """What arguments an architecture might have been built with; its defaults come last.

    Args:
        architecture: name of a registered one.
        shapes: of the checkpoint's tensors, by name.
    """
    names = Names(shapes)
    if architecture in _GUESSERS and (guess := _GUESSERS[architecture](names)) is not None:
        yield guess
    yield Guess(architecture)


# --- residual networks ---------------------------------------------------------------------------


def _stages(names: Names) -> tuple[list[int], list[int]] | None:
    """Blocks and widths of ``layer1`` to ``layer4``."""
    depths = [len(names.numbers(rf"layer{stage}\.(\d+)\.")) for stage in range(1, 5)]
    widths = [names.get(f"layer{stage}.0.conv1.weight") for stage in range(1, 5)]
    if not all(depths) or not all(widths):
        return None
    return depths, [shape[0] for shape in widths if shape]


def _residual(names: Names, architecture: str, dims: int) -> Guess | None:
    stem, stages = names.get("conv1.weight", dims), _stages(names)
    # 'layer1.0.conv1.weight' ends like the stem, but comes from no image.
    stem = next((s for k, s in names.shapes.items() if _is_stem(k) and len(s) == dims), stem)
    if stem is None or stages is None:
        return None
    depths, widths = stages
    arguments: dict[str, Any] = {
        "layers": depths,
        "block_inplanes": widths,
        "conv1_t_size": stem[2],
        "bias_downsample": "layer2.0.downsample.0.bias" in names,
    }
    if architecture == "resnet":
        deep = "layer1.0.conv3.weight" in names
        arguments["block"] = "bottleneck" if deep else "basic"
        arguments["shortcut_type"] = "B" if "layer2.0.downsample.0.weight" in names else "A"
    untold = ("conv1_t_stride", "no_max_pool", *(() if dims == _VOLUME else ("axis",)))
    return Guess(architecture, arguments, stem[1], untold=untold)


def _is_stem(key: str) -> bool:
    return bool(re.search(r"(?:^|\.)conv1\.weight$", key)) and not re.search(r"layer\d", key)


def _resnet(names: Names) -> Guess | None:
    return _residual(names, "resnet", _VOLUME)


def _slices(names: Names) -> Guess | None:
    return _residual(names, "slices", _PLANE)


def _cspr(names: Names) -> Guess | None:
    found = _residual(names, "cspr", _VOLUME)
    if found is None:
        return None
    arguments = {
        "layers": found.arguments["layers"],
        "base_channels": found.arguments["block_inplanes"][0],
        "layer1_downsample": "layer1.0.downsample.0.weight" in names,
    }
    return Guess("cspr", arguments, found.channels, untold=("depth_stride",))


def _segresnet(names: Names) -> Guess | None:
    stem = names.get("convInit.conv.weight", _VOLUME)
    if stem is None:
        return None
    stages = sorted(names.numbers(r"down_layers\.(\d+)\."))
    # Member 0 of a stage is what halves the resolution: without tensors in the first stage.
    depths = [len(names.numbers(rf"down_layers\.{s}\.(\d+)\.") - {0}) for s in stages]
    return Guess("segresnet", {"init_filters": stem[0], "blocks_down": depths}, stem[1])


def _anatomix(names: Names) -> Guess | None:
    # One flat sequence: the number of the module is its place.
    kernels = {
        int(found[1]): shape
        for key, shape in names.shapes.items()
        if len(shape) == _VOLUME and (found := re.search(r"(?:^|\.)(\d+)\.weight$", key))
    }
    if not kernels or 0 not in kernels:
        return None
    first, last = kernels[0], kernels[max(kernels)]
    ratio = max(shape[0] for shape in kernels.values()) // max(first[0], 1)
    arguments = {
        "width": first[0],
        "downs": max(ratio.bit_length() - 1, 0),
        "output_channels": last[0],
    }
    return Guess("anatomix", arguments, first[1])


# --- windows -------------------------------------------------------------------------------------


def _windows(names: Names, table: str, dims: int) -> tuple[list[int], int] | None:
    """Heads of each stage and the window's side, from the tables of relative positions.

    A table has a row for each offset between two tokens of a window, (2 w - 1)^dims, and a column
    for each head.
    """
    found = [names.get(table.format(stage=stage, number=stage + 1)) for stage in range(4)]
    shapes = [shape for shape in found if shape is not None]
    if len(shapes) != len(found) or any(len(shape) != 2 for shape in shapes):
        return None
    side = round(shapes[0][0] ** (1 / dims))
    return [shape[1] for shape in shapes], (side + 1) // 2


def _swin_3d(names: Names, architecture: str) -> Guess | None:
    stem = names.get("patch_embed.proj.weight", _VOLUME)
    windows = _windows(names, "layers{number}.0.blocks.0.attn.relative_position_bias_table", 3)
    if stem is None or windows is None:
        return None
    heads, window = windows
    arguments: dict[str, Any] = {
        "feature_size": stem[0],
        "depths": [len(names.numbers(rf"layers{s}\.0\.blocks\.(\d+)\.")) for s in range(1, 5)],
        "num_heads": heads,
        "window_size": window,
        "use_v2": any(".layers1c." in f".{key}" for key in names.shapes),
        "blocks": "encoder1.layer.conv1.conv.weight" in names,
    }
    if architecture == "swin_unetr":
        # Both fit, and this is the architecture's own default: the transformer by itself.
        arguments["blocks"] = False
        return Guess(architecture, arguments, stem[1], untold=("blocks", "merging", "normalize"))
    return Guess(architecture, arguments, stem[1], untold=("merging",))


def _swin_unetr(names: Names) -> Guess | None:
    return _swin_3d(names, "swin_unetr")


def _coralbay(names: Names) -> Guess | None:
    return _swin_3d(names, "coralbay")


def _vismae(names: Names) -> Guess | None:
    stem = names.get("patch_embed.proj.weight", _PLANE)
    windows = _windows(names, "layers.{stage}.blocks.0.attn.relative_position_bias_table", 2)
    if stem is None or windows is None:
        return None
    heads, window = windows
    arguments = {
        "patch": stem[2],
        "embed_dim": stem[0],
        "depths": [len(names.numbers(rf"layers\.{s}\.blocks\.(\d+)\.")) for s in range(4)],
        "num_heads": heads,
        "window": window,
    }
    return Guess("vismae", arguments, untold=("axis",))


# --- plain attention -----------------------------------------------------------------------------


def _vit(names: Names) -> Guess | None:
    conv = names.get("patch_embedding.patch_embeddings.weight", _VOLUME)
    linear = names.get("patch_embedding.patch_embeddings.1.weight", 2)
    positions = names.get("patch_embedding.position_embeddings", 3)
    hidden = names.get("blocks.0.mlp.linear1.weight", 2)
    if hidden is None or positions is None or (conv is None and linear is None):
        return None
    channels = conv[1] if conv else 1
    patch = conv[2] if conv else round((linear or (0, 0))[1] ** (1 / 3))
    cls_token = "cls_token" in names
    arguments = {
        "patch_size": patch,
        "hidden_size": positions[2],
        "mlp_dim": hidden[0],
        "num_layers": len(names.numbers(r"blocks\.(\d+)\.")),
        "num_heads": _heads(positions[2]),
        "proj_type": "conv" if conv else "perceptron",
        "cls_token": cls_token,
        "qkv_bias": "blocks.0.attn.qkv.bias" in names,
    }
    x, y, z = _cuboid(positions[1])
    return Guess(
        "vit", arguments, channels, (x * patch, y * patch, z * patch), untold=("num_heads",)
    )


def _heads(width: int) -> int:
    """64 channels each, as in every ViT of Dosovitskiy et al. (arXiv 2010.11929, table 1)."""
    return width // 64 if width % 64 == 0 else 1


def _cuboid(count: int) -> Shape:
    """Three sides with this product, as near to a cube as they can be."""
    best = (1, 1, count)
    for x in range(1, round(count ** (1 / 3)) + 1):
        for y in range(x, int((count // x) ** 0.5) + 1):
            if count % (x * y) == 0 and count // (x * y) - x < best[2] - best[0]:
                best = (x, y, count // (x * y))
    return best


def _braindino(names: Names) -> Guess | None:
    stem, tokens = names.get("patch_embed.proj.weight", _PLANE), names.get("storage_tokens", 3)
    periods = names.get("rope_embed.periods", 1)
    if stem is None or tokens is None or periods is None:
        return None
    arguments = {
        "patch": stem[2],
        "dim": stem[0],
        "depth": len(names.numbers(r"blocks\.(\d+)\.")),
        # A period turns a pair of channels, for rows and for columns.
        "heads": stem[0] // (4 * periods[0]),
        "storage_tokens": tokens[1],
        "qkv_bias": "blocks.0.attn.qkv.bias" in names,
    }
    side = stem[2] * max(round(96 / stem[2]), 1)
    return Guess("braindino", arguments, shape=(side, side, side), untold=("axis", "rope"))


_GUESSERS: Mapping[str, Callable[[Names], Guess | None]] = MappingProxyType(
    {
        "anatomix": _anatomix,
        "braindino": _braindino,
        "coralbay": _coralbay,
        "cspr": _cspr,
        "resnet": _resnet,
        "segresnet": _segresnet,
        "slices": _slices,
        "swin_unetr": _swin_unetr,
        "vismae": _vismae,
        "vit": _vit,
    }
)
"""An architecture that is not here is compared with its defaults alone."""

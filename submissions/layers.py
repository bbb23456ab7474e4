"""What kind of network a set of tensors is, told from names and shapes, in plain words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .headers import few, shown

Shape = tuple[int, ...]

_VOLUME, _PLANE, _LINE = 5, 4, 3
"""Dimensions of a convolution's weight in 3D, 2D and 1D."""

_TRANSPOSED = re.compile(r"transp|deconv|upconv|upsample|\bup\b", re.IGNORECASE)
_PATCH = re.compile(r"patch_?embed", re.IGNORECASE)
_QUANTISED = ("scale", "zero_point", "packed_params")
_MOST_IMAGE_CHANNELS = 4


@dataclass(frozen=True)
class Anatomy:
    """The parts of a network."""

    kinds: Mapping[str, int]
    """How many layers of each kind."""
    dimensions: int | None
    """3 or 2, of its convolutions; None: it has none."""
    kernels: tuple[Shape, ...]
    """Of its convolutions, most frequent first."""
    stem: str | None
    """The weight that meets the image."""
    channels: int | None
    """Of the image."""
    patch: Shape | None
    """Of a stem that cuts the image into patches."""
    joins: tuple[str, ...]
    """Convolutions that take as many channels as two others give, as skip connections need."""
    families: tuple[str, ...]
    """What the names are typical of."""


def anatomy(shapes: Mapping[str, Shape]) -> Anatomy:
    """Tell the parts of a network.

    Args:
        shapes: of its tensors, by name, in the order of the file.
    """
    modules: dict[str, dict[str, Shape]] = {}
    for key, shape in shapes.items():
        module, _, leaf = key.rpartition(".")
        modules.setdefault(module, {})[leaf] = shape
    kinds = Counter(kind for name, leaves in modules.items() if (kind := _kind(name, leaves)))
    for leaf, what in _PARAMETERS.items():
        if found := sum(key.rpartition(".")[2] == leaf for key in shapes):
            kinds[what] += found
    convolutions = {
        name: leaves["weight"]
        for name, leaves in modules.items()
        if len(leaves.get("weight", ())) in (_VOLUME, _PLANE)
    }
    deep = [s for s in convolutions.values() if len(s) == _VOLUME]
    dims = (3 if deep else 2) if convolutions else None
    own = {n: s for n, s in convolutions.items() if dims and len(s) == dims + 2}
    kernels = Counter(shape[2:] for shape in own.values())
    stem = _stem(own)
    patch = _patch(stem, own[stem]) if stem is not None else None
    return Anatomy(
        dict(kinds.most_common()),
        dims,
        tuple(kernel for kernel, _ in kernels.most_common()),
        f"{stem}.weight" if stem is not None else None,
        own[stem][1] if stem is not None else None,
        patch,
        _joins(own),
        tuple(_families(shapes)),
    )


_PARAMETERS = {
    "relative_position_bias_table": "table of relative positions",
    "pos_embed": "position embedding",
    "position_embeddings": "position embedding",
    "cls_token": "class token",
}


def _kind(name: str, leaves: Mapping[str, Shape]) -> str | None:
    """What a module is, by the parameters it holds itself."""
    weight = leaves.get("weight", leaves.get("weight_v"))
    if any(leaf in leaves for leaf in _QUANTISED):
        return "quantised layer"
    if "running_mean" in leaves:
        return "BatchNorm"
    if "in_proj_weight" in leaves:
        return "MultiheadAttention"
    if weight is None:
        return None
    transposed = "ConvTranspose" if _is_transposed(name, leaves) else "Conv"
    return {
        _VOLUME: f"{transposed}3d",
        _PLANE: f"{transposed}2d",
        _LINE: f"{transposed}1d",
        2: "Linear",
        1: "norm without statistics (Layer-, Group- or InstanceNorm)",
    }.get(len(weight))


def _is_transposed(name: str, leaves: Mapping[str, Shape]) -> bool:
    """Its weight has the input's channels first: the bias tells, or else the name."""
    weight, bias = leaves.get("weight", ()), leaves.get("bias")
    if len(weight) < _LINE:
        return False
    if bias is not None and weight[0] != weight[1]:
        return bias[0] == weight[1]
    return bool(_TRANSPOSED.search(name))


def _stem(convolutions: Mapping[str, Shape]) -> str | None:
    """The convolution with as few input channels as images have; of several the first."""
    few_channels = [
        n for n, s in convolutions.items() if s[1] <= _MOST_IMAGE_CHANNELS and s[1] < s[0]
    ]
    candidates = few_channels or list(convolutions)
    patches = [name for name in candidates if _PATCH.search(name)]
    return next(iter(patches or candidates), None)


def _patch(name: str, shape: Shape) -> Shape | None:
    """The kernel of a stem whose stride is its size: by its name, or by its even width."""
    kernel = shape[2:]
    return kernel if _PATCH.search(name) or all(n % 2 == 0 for n in kernel) else None


def _joins(convolutions: Mapping[str, Shape]) -> tuple[str, ...]:
    """Convolutions whose input is wider than the output before them, by another's output."""
    found: list[str] = []
    outputs: set[int] = set()
    before = 0
    for name, shape in convolutions.items():
        narrows = shape[0] < shape[1]  # on the way up; on the way down a network widens
        if shape[1] - before in outputs and (narrows or shape[1] not in outputs):
            found.append(name)
        outputs.add(shape[0])
        before = shape[0]
    return tuple(found)


def _families(shapes: Iterable[str]) -> Iterable[str]:
    text = "\n".join(shapes)
    signs = (
        (r"relative_position_bias_table", "windowed attention (Swin)"),
        (r"blocks\.\d+\.(attn|self_attn)", "a stack of attention blocks (vision transformer)"),
        (r"layer1\.0\.conv1", "a residual network (ResNet)"),
        (r"denseblock|denselayer", "a densely connected network (DenseNet)"),
        (r"rope|rotary", "rotary positions"),
        (r"decoder|up_layers|upsample|conv_final|seg_layers", "a decoder"),
        (r"(projection|dino|ibot|contrastive)_?head", "a head of self-supervision"),
        (r"(^|\.)(fc|classifier|classification_head)\.", "a classifier"),
    )
    return [what for sign, what in signs if re.search(sign, text, re.MULTILINE)]


# --- words ---------------------------------------------------------------------------------------


def in_words(found: Anatomy) -> list[str]:
    """The anatomy as lines of plain text."""
    lines = [f"Layers: {', '.join(f'{n} {kind}' for kind, n in found.kinds.items()) or 'none'}."]
    if found.dimensions is None:
        lines.append("No convolution: whether it sees volumes or slices cannot be told.")
    else:
        sizes = ", ".join(_times(kernel) for kernel in found.kernels[:4])
        lines.append(f"It is a {found.dimensions}D network; kernels {sizes}.")
    if found.stem is not None and found.channels is not None:
        unit = "voxels" if found.dimensions == 3 else "pixels"
        how = f", in patches of {_times(found.patch)} {unit}" if found.patch else ""
        lines.append(f"It takes {_counted(found.channels, 'channel')}{how}: {shown(found.stem)}.")
    if found.joins:
        lines.append(
            f"{len(found.joins)} convolutions take as many channels as two layers before them give "
            f"together ({few(found.joins, 3)}): skip connections, as in a U-Net or a DenseNet."
        )
    if found.families:
        lines.append(f"Its names are those of {'; '.join(found.families)}.")
    return lines


def _times(sizes: Shape) -> str:
    return "x".join(str(n) for n in sizes)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"

"""The decoder that all encoders share: how maps are read, added up, and predicted in blocks.

Imports torch: probes import this file inside functions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from ..errors import EncoderError
from ..studies import Setting
from ..types import Shape
from ._components import Components
from ._segmentation import points_of, some_of

if TYPE_CHECKING:
    from ..dense import Pyramid
    from ..dense_cache import Pyramids

WIDTH = 16
"""Channels of every scale."""

SCALES = (1, 2, 4, 8, 16)

POINTS = 500
"""Voxels per training case on which components are fitted."""

COMPONENT_CASES = 120
"""At most."""

BLOCK = 128
"""Side of the blocks in which an image is predicted."""

HALO = 32
"""Lattice points around a block. What a point is told comes from up to one voxel of each scale,
that is 16 + 8 + 4 + 2 + 2 points away."""


class Example(NamedTuple):
    """One image as the decoder reads it; everything is a multiple of the coarsest scale in size."""

    levels: tuple[np.ndarray, ...]
    """(k_l, x, y, z) float16 components of each level, on its scale."""
    image: np.ndarray
    """(C, X, Y, Z) float32."""
    shape: Shape
    """Of the lattice, without the padding."""


@dataclass(frozen=True)
class Reader:
    """How maps and image become the decoder's input: fitted on training voxels."""

    components: tuple[Components, ...]
    factors: tuple[int, ...]
    """The scale on which each level is read."""
    mean: float
    sd: float
    """Of the image."""
    least: int
    """Lattice points along each axis, at least: the side of a crop."""

    def __call__(self, pyramid: Pyramid) -> Example:
        """Reduce, standardise and pad with zeros."""
        shape = pyramid.lattice.shape
        whole = [max(self.least, -(-n // SCALES[-1]) * SCALES[-1]) for n in shape]
        levels = []
        for level, component, factor in zip(
            pyramid.levels, self.components, self.factors, strict=True
        ):
            values = component.field(level.values)
            if level.factor % factor:
                raise EncoderError(
                    f"A map is {level.factor} times as coarse as the lattice in one image and "
                    f"{factor} times in others. Maps of one task have one scale: state the "
                    "spacing on the encoder's card."
                )
            for axis in (1, 2, 3):  # a level coarser than the coarsest scale
                values = np.repeat(values, level.factor // factor, axis)
            # a float16 of a voxel that is 65,504 SDs off would be infinite
            half = np.clip(values, -6e4, 6e4).astype(np.float16)
            levels.append(padded(half, [n // factor for n in whole]))
        image = (pyramid.image - self.mean) / self.sd
        return Example(tuple(levels), padded(image.astype(np.float32), whole), shape)


def padded(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """(C, x, y, z) cut or filled with zeros at the far ends."""
    out = np.zeros((len(values), *shape), values.dtype)
    inner = tuple(slice(0, min(n, m)) for n, m in zip(values.shape[1:], shape, strict=True))
    out[(slice(None), *inner)] = values[(slice(None), *inner)]
    return out


def reader_of(
    setting: Setting, rows: Sequence[int] | np.ndarray, pyramids: Pyramids, least: int
) -> Reader:
    """Fit the reader on training cases.

    Args:
        setting: with the cases.
        rows: of the training cases.
        pyramids: their maps.
        least: see ``Reader``.
    """
    channels: list[list[np.ndarray]] = []
    images: list[np.ndarray] = []
    factors: tuple[int, ...] = ()
    for row in some_of(setting, rows, COMPONENT_CASES):
        pyramid = pyramids.of(row)
        points = points_of(setting, row, pyramid.lattice, POINTS)
        channels.append(pyramid.at(points.index))
        images.append(pyramid.image.ravel()[:: max(1, pyramid.image.size // POINTS)])
        factors = tuple(min(level.factor, SCALES[-1]) for level in pyramid.levels)
    values = np.concatenate(images).astype(np.float64)
    components = tuple(Components.fit(level) for level in zip(*channels, strict=True))
    return Reader(components, factors, float(values.mean()), float(values.std()) or 1.0, least)


# --- the network -----------------------------------------------------------------------------


class Decoder(nn.Module):
    """Projections of the levels and of the image, and the decoder that adds them up.

    Args:
        widths: components of each level.
        factors: the scale of each level.
        channels: of the image.
        classes: K.
    """

    def __init__(
        self, widths: Sequence[int], factors: Sequence[int], channels: int, classes: int
    ) -> None:
        super().__init__()
        self.factors = tuple(factors)
        self.projections = nn.ModuleList([nn.Conv3d(n, WIDTH, 1, bias=False) for n in widths])
        self.image = nn.Conv3d(channels, WIDTH, 1, bias=False)
        self.scales = nn.ModuleList([nn.Conv3d(WIDTH, WIDTH, 3, padding=1) for _ in SCALES])
        self.last = nn.Conv3d(WIDTH, WIDTH, 3, padding=1)
        self.head = nn.Conv3d(WIDTH, classes, 1)
        self.act = nn.LeakyReLU(0.1)

    def forward(self, levels: Sequence[torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        """Levels (B, k_l, x, y, z) and image (B, C, X, Y, Z) -> (B, K, X, Y, Z) log-odds."""
        shape = [n // SCALES[-1] for n in image.shape[2:]]
        x = image.new_zeros(len(image), WIDTH, *shape)
        for i in reversed(range(len(SCALES))):
            if SCALES[i] != SCALES[-1]:
                x = _doubled(x)
            for level, factor, projection in zip(
                levels, self.factors, self.projections, strict=True
            ):
                if factor == SCALES[i]:
                    x = x + projection(level)
            if i == 0:
                x = x + self.image(image)
            x = self.act(_normed(self.scales[i](x)))
        return self.head(self.act(_normed(self.last(x))))

    def sizes(self) -> tuple[int, int]:
        """Parameters of the decoder, alike for every encoder, and those of the projections."""
        own = sum(p.numel() for p in [*self.projections.parameters(), *self.image.parameters()])
        return sum(p.numel() for p in self.parameters()) - own, own


def _normed(x: torch.Tensor) -> torch.Tensor:
    """(B, C, x, y, z) scaled to a mean square of about 1 over the channels of each voxel.

    Without it log-odds grow to a hundred within a few steps, where gradients are denormal numbers,
    which are slow and teach nothing.
    """
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-2)


def _doubled(x: torch.Tensor) -> torch.Tensor:
    """(B, C, x, y, z) -> twice as many along each axis, by repetition.

    Its gradient is a plain sum, which unlike that of an interpolation is the same in every run on
    a GPU, too.
    """
    b, c, *shape = x.shape
    wide = x[:, :, :, None, :, None, :, None].expand(b, c, shape[0], 2, shape[1], 2, shape[2], 2)
    return wide.reshape(b, c, *(2 * n for n in shape))


# --- prediction ------------------------------------------------------------------------------


def predicted(model: Decoder, example: Example, device: str, block: int = BLOCK) -> np.ndarray:
    """(K, *lattice.shape) float32 log-odds, block by block.

    Args:
        model: the decoder.
        example: one image.
        device: of the decoder.
        block: side of a block, a multiple of the coarsest scale.
    """
    whole = example.image.shape[1:]
    out: np.ndarray | None = None
    with torch.inference_mode():
        for corner in itertools.product(*(range(0, n, block) for n in whole)):
            low = [max(0, c - HALO) for c in corner]
            high = [min(n, c + block + HALO) for c, n in zip(corner, whole, strict=True)]
            levels, image = tensors([cut(example, model.factors, low, high)], device)
            found = model(levels, image)[0].cpu().numpy()
            if out is None:
                out = np.empty((len(found), *whole), np.float32)
            end = [min(n, c + block) for c, n in zip(corner, whole, strict=True)]
            inner = tuple(slice(c - a, e - a) for c, a, e in zip(corner, low, end, strict=True))
            target = tuple(slice(c, e) for c, e in zip(corner, end, strict=True))
            out[(slice(None), *target)] = found[(slice(None), *inner)]
    assert out is not None  # noqa: S101  every image has a block
    x, y, z = example.shape
    return np.ascontiguousarray(out[:, :x, :y, :z])


def cut(
    example: Example, factors: Sequence[int], low: Sequence[int], high: Sequence[int]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Levels and image of a box of lattice points, all multiples of the coarsest scale."""

    def part(values: np.ndarray, factor: int) -> np.ndarray:
        box = (slice(a // factor, b // factor) for a, b in zip(low, high, strict=True))
        return values[(slice(None), *box)]

    levels = [part(v, f) for v, f in zip(example.levels, factors, strict=True)]
    return levels, part(example.image, 1)


def tensors(
    crops: Sequence[tuple[list[np.ndarray], np.ndarray]], device: str
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Stacked crops as float32."""

    def stack(arrays: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays)).to(device).float()

    levels = [stack(one) for one in zip(*(levels for levels, _ in crops), strict=True)]
    return levels, stack([image for _, image in crops])


@dataclass(frozen=True)
class Trained:
    """A trained decoder."""

    model: Decoder
    reader: Reader
    device: str

    def __call__(self, pyramid: Pyramid) -> np.ndarray:
        """(K, *lattice.shape) float32 probabilities."""
        logits = predicted(self.model, self.reader(pyramid), self.device)
        logits -= logits.max(0)
        np.exp(logits, out=logits)
        logits /= logits.sum(0)
        return logits

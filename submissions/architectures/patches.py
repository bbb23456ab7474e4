"""The floor of dense protocols: each voxel's neighbourhood and its place, nothing else.

Every voxel is described by the intensities of the cube around it and by its coordinates in the
grid. A network whose maps do not beat that has learned nothing that a linear filter and a mean
shape do not know.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from ...benchmark.errors import ManifestError
from ...benchmark.types import Shape
from ._stages import chosen

VERSION = 1
SUMMARY = "Raw neighbourhood of each voxel and its coordinates; no parameters."
READOUTS = ("products", "moments")
DENSE = "for protocols on maps"


class Patches(nn.Module):
    """Neighbourhoods and coordinates, and what they are on average."""

    strides = (1,)
    unused: tuple[str, ...] = ()

    def __init__(self, channels: int, readout: str, side: int) -> None:
        super().__init__()
        self.readout = chosen(readout, READOUTS)
        self.side = side
        n = channels * side**3 + 3
        self.width = {"products": n + n * (n + 1) // 2, "moments": 2 * n}[readout]

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, F): means of the maps, then SDs or mean products of all pairs.

        The products hold the autocorrelation of the image and where its bright parts are.
        """
        rows = self.maps(x)[0].flatten(2)  # (B, n, voxels)
        mean = rows.mean(2)
        if self.readout == "moments":
            return torch.cat([mean, rows.std(2, correction=0)], dim=1)
        products = rows @ rows.transpose(1, 2) / rows.shape[2]  # (B, n, n)
        i, j = torch.triu_indices(*products.shape[1:], device=x.device)
        return torch.cat([mean, products[:, i, j]], dim=1)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, X, Y, Z) -> [(B, C side^3 + 3, X, Y, Z)]: neighbours, then coordinates.

        The border is repeated. Coordinates run from -1 to 1 along each axis of the grid.
        """
        r = self.side // 2
        padded = functional.pad(x, (r,) * 6, mode="replicate")
        shape = x.shape[2:]
        cubes = [
            padded[:, :, i : i + shape[0], j : j + shape[1], k : k + shape[2]]
            for i in range(self.side)
            for j in range(self.side)
            for k in range(self.side)
        ]
        axes = [torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) for n in shape]
        place = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        return [torch.cat([*cubes, place.expand(len(x), -1, -1, -1, -1)], dim=1)]


def build(
    *,
    shape: Shape,
    channels: int,
    readout: str,
    side: Annotated[int, Field(ge=1, le=7)] = 3,
) -> Patches:
    """Build the neighbourhoods.

    Args:
        shape: of the grid; any.
        channels: of the grid.
        readout: ``products``, the mean products of all pairs of maps, or ``moments``, their SDs.
        side: of the cube, in voxels of the grid; odd.

    Raises:
        ManifestError: an even side or an unknown readout.
    """
    del shape
    if side % 2 == 0:
        raise ManifestError(f"arguments.side is {side}: a cube around a voxel has an odd side.")
    return Patches(channels, readout, side)

"""What a radiologist's region of interest gives away by hand-made features: the radiomics control.

First-order statistics, shape and texture by the definitions of the Image Biomarker Standardisation
Initiative (see ``_radiomics.py``), over the case's region, or over the body where it has none.
Nothing learned: a pretrained network that does not beat it adds nothing to classical radiomics.

Grey levels are a fixed number of bins between the region's least and largest value. The IBSI
recommends that for intensities in arbitrary units, as those of MR and of publishers' scaled images
are; a fixed bin size would need units that mean the same in every image.

Shape features are in voxels of the grid. Where the task states a field of view, all its cases have
one isotropic voxel size, so that they compare like mm; a case's region ends where the field of view
does.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import nn

from ...benchmark.errors import ManifestError
from ...benchmark.types import Shape
from . import _radiomics
from ._stages import chosen

VERSION = 1
SUMMARY = "IBSI radiomics features of the region or the body; needs the extra 'radiomics'."
EXTRA = "radiomics"
READOUTS = ("all", "first_order", "morphology", "texture")

_FAMILIES = {
    "all": tuple(_radiomics.FEATURES),
    "first_order": ("stat", "ih"),
    "morphology": ("morph",),
    "texture": ("cm", "rlm", "szm", "dzm", "ngt", "ngl"),
}

AIR = 0.05
"""How bright air may be on average, as a share of the range: the baseline's transforms put it at
the lower end. Measured with them: 0.03 to 0.04 in T1 heads with all the air around them (IXI), 0.02
to 0.03 outside binary shapes (AdrenalMNIST3D), at most 0.04 in CT (soft-tissue sarcoma), against
0.05 to 0.45 for the darker tissue of MR crops without air (sarcoma, hippocampus)."""

PADDING = 1e-4
"""Voxels within this share of the range above its lower end lie on it, but for float32 rounding."""


class RadiomicsFeatures(nn.Module):
    """IBSI features of one region per volume."""

    strides: tuple[int, ...] = ()
    unused: tuple[str, ...] = ()

    def __init__(self, readout: str, bins: int, low: float, high: float) -> None:
        super().__init__()
        self.feature_names = _radiomics.names(_FAMILIES[chosen(readout, READOUTS)])
        self.width = len(self.feature_names)
        self.bins, self.low, self.high = bins, low, high

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 2, X, Y, Z), image and mask -> (B, F), in the order of ``feature_names``."""
        rows = []
        for voxels, mask in x.detach().cpu().numpy():
            region = mask > 0.5
            if not region.any():
                region = body(voxels, self.low, self.high)
            rows.append(_radiomics.describe(voxels, region, self.feature_names, self.bins))
        return torch.from_numpy(np.stack(rows)).to(x.device, x.dtype)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """None: these features are of a region, not of a place."""
        del x
        return []


def body(voxels: np.ndarray, low: float, high: float) -> np.ndarray:
    """The largest connected component that is not air.

    1. What lies on the lower end of the range beyond the last brighter voxel is padding, or air.
    2. Inside the box that is left, Otsu's threshold (IEEE Transactions on Systems, Man, and
       Cybernetics 9, 1979) splits dark from bright. The dark part is air only if it is as dark, on
       average, as air is (`AIR`); otherwise the image shows tissue alone, as a crop from inside the
       body does, and the whole box is body.
    3. Of the rest, the largest part that is connected over the voxels' faces. Lungs are air.

    Args:
        voxels: (X, Y, Z).
        low: lower end of the range onto which the card's intensity transforms map.
        high: upper end.

    Returns:
        (X, Y, Z) bool, never empty: all of it where every voxel lies on the lower end.
    """
    from skimage.filters import threshold_otsu

    above = voxels > low + PADDING * (high - low)
    if not above.any():
        return np.ones(voxels.shape, bool)
    box = _radiomics.bounding_box(above)
    part = voxels[box]
    bright = part > threshold_otsu(part)
    has_air = bright.any() and part[~bright].mean() <= low + AIR * (high - low)
    found = np.zeros(voxels.shape, bool)
    found[box] = _largest(bright) if has_air else True
    return found


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest part of a mask that is connected over its voxels' faces."""
    from scipy import ndimage

    labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=labels)
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax()


def build(
    *,
    shape: Shape,
    channels: int,
    readout: str,
    bins: Annotated[int, Field(ge=2, le=256)] = 32,
    low: float = 0.0,
    high: float = 1.0,
) -> RadiomicsFeatures:
    """Build the features.

    Args:
        shape: of the grid; any.
        channels: two, the image and the region's mask.
        readout: ``all`` families, or the ``first_order``, ``morphology`` or ``texture`` ones.
        bins: grey levels of the histogram and of the texture matrices. 32: the IBSI's reference
            configurations B, D and E (reference manual, chapter 5).
        low: lower end of the range onto which the card's intensity transforms map.
        high: upper end.

    Raises:
        ManifestError: an empty range, an unknown readout, or other channels.
        InstallationError: MIRP is missing or of another version.
    """
    del shape
    if low >= high:
        raise ManifestError(f"arguments.low ({low}) has to be below arguments.high ({high}).")
    if channels != 2:
        raise ManifestError(
            f"'radiomics' takes an image of one channel and a region, not {channels} channels. "
            "Set channels = 1 and region = true."
        )
    network = RadiomicsFeatures(readout, bins, low, high)
    _radiomics.check(network.feature_names)
    return network

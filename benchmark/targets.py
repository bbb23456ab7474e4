"""What is asked of a case where a number does not say it: label maps, pairs, lesions, times.

Standard library only, like ``types``. Nothing is read until ``load`` is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from .types import Triple, Volume


@dataclass(frozen=True)
class Labels:
    """What is where in an image: the target of a segmentation."""

    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    """Label map (X, Y, Z), integers, 0 background and k the task's class k, on the voxels of the
    image; its affine (4, 4)."""
    digest: Callable[[], str]
    """sha256 of the label map's content, as hex."""


@dataclass(frozen=True)
class Pair:
    """A second image, to be brought onto the case's own: the target of a registration.

    The case's image is the fixed one. Of the truths at least one is there.
    """

    load: Callable[[], Volume]
    """The moving image."""
    digest: Callable[[], str]
    """sha256 of the moving image and of all truths, as hex."""
    fixed: Labels | None = None
    moving: Labels | None = None
    """The same structures in both images, under the same labels."""
    displacement: Callable[[], np.ndarray] | None = None
    """(3, X, Y, Z) mm along the axes of the fixed image's array (RAS+): from each voxel of the
    fixed image to its point in the moving image; NaN where that is not known. Of simulated
    pairs."""
    landmarks: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    """(L, 3) points in the fixed and (L, 3) in the moving image, scanner mm (RAS+)."""


@dataclass(frozen=True)
class Lesion:
    """Something to be found: the target of a detection is a tuple of these, perhaps empty."""

    center: Triple
    """Scanner mm, RAS+."""
    diameter_mm: float


@dataclass(frozen=True)
class Suspects:
    """Places that somebody else's detector has marked, each to be told right or wrong."""

    lesions: tuple[Lesion, ...]
    """All there are, also those that no place hits."""
    places: tuple[Triple, ...]
    """Scanner mm, RAS+."""


@dataclass(frozen=True)
class FollowUp:
    """How long a patient was observed: the target of a survival task."""

    years: float
    """Above 0: until the event, or until observation ended."""
    event: bool
    """The event was seen; False: censored."""

"""Bring a second image onto the case's own, by frozen features; nothing is trained."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import DataError, ProbeError
from ..inputs import loaded
from ..studies import Setting, tested_rows
from ..targets import Labels, Pair
from ..types import Answer, Case, Change, Kind, Volume

if TYPE_CHECKING:
    import pandas as pd

    from ..lattice import Lattice

EDGE = 2
"""Points of the lattice along the border of the moving image that do not count: features there are
of the border itself, which is no anatomy."""


@dataclass(frozen=True)
class Register:
    """Maps of both images as descriptors, one convex and one gradient optimisation for all."""

    name: str = "register"
    version: int = 2
    changes: tuple[Change, ...] = (
        Change(2, "Maps coarser than the search's grid are left out, but for the finest."),
    )
    kinds: tuple[Kind, ...] = ("registration",)
    answers: Answer = "registration"
    title: str = (
        "Registration by frozen features: convex optimisation over discrete displacements, then "
        "Adam, with one setting for all encoders (ConvexAdam)"
    )
    cost: str = (
        "Maps of two images per pair; for the optimisation 1 s (60,000 points) to 9 s (430,000 "
        "points) of one CPU core per pair; not measured on a GPU."
    )

    def run(self, setting: Setting) -> pd.DataFrame:
        """Register all tested pairs; see ``studies.Study``.

        The moving image is first resampled onto the voxels of the fixed one, by the coordinates
        that the task gives them. Nobody is trained on: with cross-validation all pairs are tested
        at once, else those of the test side.

        Returns:
            Beside the common columns: ``dice``, ``hd95`` (mm; means over the labels that a pair
            has), ``tre`` and ``epe`` (mm), NaN where the pair has no such truth; the same with
            ``_before`` before registration; ``sd_log_jacobian``; ``folding``, a share; and
            ``forward_voxels``, what the encoder was shown of both images.

        Raises:
            ProbeError: an encoder without maps, or nobody to test.
            EncoderError: the encoder misbehaves, or wants more voxels than the task allows.
            DataError: an image or a label map cannot be used.
        """
        import pandas as pd

        tested = [setting.cases[row] for row in tested_rows(setting.card, setting.cases)]
        if not tested:
            raise ProbeError(
                f"No pair of '{setting.card.name}' is on the test side. Use a larger part of the "
                "data set."
            )
        rows: dict[str, dict[str, object]] = {}
        order = list(tested)
        if getattr(setting.encoder, "shuffled", False):  # a stranger's is not to know which is next
            random.SystemRandom().shuffle(order)
        for done, case in enumerate(order):
            rows[case.id] = _row(setting, case, picture=case is tested[0])
            if setting.progress:
                setting.progress(done + 1, len(tested))
        return pd.DataFrame([rows[case.id] for case in tested])


class _Images(NamedTuple):
    """A pair, on the voxels of the fixed image."""

    fixed: Volume
    moving: Volume
    """As it is stored."""
    before: Volume
    """The moving image on the voxels of the fixed one."""
    seen: np.ndarray
    """(X, Y, Z) bool: where it has voxels there."""


def _row(setting: Setting, case: Case, picture: bool) -> dict[str, object]:
    """Register one pair and score it."""
    from .. import deformations

    pair = case.target
    if not isinstance(pair, Pair):
        raise DataError(
            f"Case '{case.id}' of '{setting.card.name}' has no second image. The target of a "
            "registration is a Pair: correct the task's cases()."
        )
    fixed, moving = loaded(case, "image", case.load), loaded(case, "moving image", pair.load)
    shape = _shape(fixed)
    images = _Images(fixed, moving, *deformations.carried(moving, shape, fixed.affine))
    lattice, found, voxels = _displacement(setting, images)
    sd, folding = deformations.smoothness(deformations.jacobian(found, lattice.spacing))
    moved = deformations.at_voxels(lattice, found)
    truth = _Truth.of(case, pair, images)
    before = truth.scores(np.zeros_like(moved))
    after = truth.scores(moved)
    if picture and setting.pictures is not None:
        _draw(setting, case, images, truth, moved, after)
    return {
        "repeat": 0,
        "fold": 0,
        "refit": -1,
        "case": case.id,
        "patient": case.patient,
        **after,
        **{f"{name}_before": value for name, value in before.items()},
        "sd_log_jacobian": sd,
        "folding": folding,
        "forward_voxels": voxels,
    }


def _displacement(setting: Setting, images: _Images) -> tuple[Lattice, np.ndarray, int]:
    """(3, *lattice.shape) float32 mm, and the voxels that the encoder was shown."""
    from scipy import ndimage
    from threadpoolctl import threadpool_limits

    from ..dense import pyramid
    from ..lattice import labels_on
    from ..registration import register
    from ._descriptors import shared

    one, other = (
        pyramid(volume, setting.encoder, setting.card, setting.device)
        for volume in (images.fixed, images.before)
    )
    seen = labels_on(one.lattice, images.seen)
    seen = ndimage.binary_erosion(seen, iterations=EDGE, border_value=1)
    with threadpool_limits(1):  # sums in another order could choose another neighbour
        descriptors = shared(one, other, seen)
    found = register(*descriptors, seen, one.lattice.spacing, setting.device)
    return one.lattice, found, one.forward_voxels + other.forward_voxels


class _Truth(NamedTuple):
    """What is known of a pair."""

    pair: Pair
    fixed: Volume
    labels: np.ndarray | None
    """(X, Y, Z) of the fixed image."""
    others: tuple[np.ndarray, np.ndarray] | None
    """Those of the moving image and their affine."""

    @classmethod
    def of(cls, case: Case, pair: Pair, images: _Images) -> _Truth:
        """Read the label maps.

        Raises:
            MaskError: they are not on the voxels of their images.
        """
        if pair.fixed is None or pair.moving is None:
            return cls(pair, images.fixed, None, None)
        labels, _ = _read(case, pair.fixed, images.fixed)
        return cls(pair, images.fixed, labels, _read(case, pair.moving, images.moving))

    def pulled(self, displacement: np.ndarray) -> np.ndarray | None:
        """(X, Y, Z): the moving image's labels on the voxels of the fixed one."""
        from ..deformations import pulled_labels

        if self.others is None:
            return None
        return pulled_labels(*self.others, displacement, self.fixed.affine)

    def scores(self, displacement: np.ndarray) -> dict[str, float]:
        """Of a displacement (3, X, Y, Z) in mm."""
        from .. import deformations
        from ..surfaces import measures

        found: dict[str, float] = {name: math.nan for name in ("dice", "hd95", "tre", "epe")}
        pulled = self.pulled(displacement)
        if pulled is not None and self.labels is not None:
            classes = 1 + int(max(self.labels.max(), pulled.max()))
            each = measures(self.labels, pulled, self.fixed.spacing, classes, 0.0)
            for name in ("dice", "hd95"):
                values = [each[f"{name}_{k}"] for k in range(1, classes)]
                counted = [value for value in values if not math.isnan(value)]
                found[name] = float(np.mean(counted)) if counted else math.nan
        if self.pair.displacement is not None:
            found["epe"] = deformations.end_point_error(displacement, self.pair.displacement())
        if self.pair.landmarks is not None:
            points, partners = self.pair.landmarks()
            found["tre"] = deformations.landmark_error(
                points, partners, displacement, self.fixed.affine
            )
        return found


def _read(case: Case, labels: Labels, volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    from ..volumes import check_same_grid

    values, affine = loaded(case, "label map", labels.load)
    check_same_grid(volume, affine, values.shape)
    return values, affine


def _shape(volume: Volume) -> tuple[int, int, int]:
    x, y, z = volume.voxels.shape[1:]
    return (x, y, z)


def _draw(
    setting: Setting,
    case: Case,
    images: _Images,
    truth: _Truth,
    moved: np.ndarray,
    scores: dict[str, float],
) -> None:
    """A checkerboard of the pair before and after, named by the pair's place in the task."""
    from ..deformations import carried
    from ..overlays import checkerboard, optional

    assert setting.pictures is not None  # noqa: S101  asked for
    row = next(place for place, one in enumerate(setting.cases) if one is case)
    known = ", ".join(f"{name} {value:.3g}" for name, value in scores.items() if value == value)
    with optional(f"pair '{case.id}' of '{setting.card.name}'"):
        after = carried(images.moving, _shape(images.fixed), images.fixed.affine, moved)
        checkerboard(
            setting.pictures / f"{row:04d}.png",
            images.fixed.voxels[0],
            after.volume.voxels[0],
            images.before.voxels[0],
            images.fixed.spacing,
            (images.fixed.unit, images.moving.unit),
            fixed_labels=truth.labels,
            moved_labels=truth.pulled(moved),
            before_labels=truth.pulled(np.zeros_like(moved)),
            title=f"{case.id}, {setting.encoder.card.name}: {known}",
        )


PROBES = (Register(),)

"""Cases and identities of shifted images, so that features of them are extracted and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .features import DataIdentity
from .hashing import sha_of
from .shifts import VERSION, View, moved, shifted, shifted_labels
from .types import Case, Region, Volume


def shifted_case(case: Case, how: View | None) -> Case:
    """The same case with its image shifted, or with None moved by a voxel; regions follow.

    Its target is still that of the image as it was: of a segmentation, use ``shifted_labels``.
    """

    def load() -> Volume:
        volume = case.load()
        return moved(volume) if how is None else shifted(volume, how, case.id)

    region = case.region
    if region is not None and (how is None or how.shift.turns):
        region = _following(case, region, how)
    mark = _mark(how)
    return replace(
        case, load=load, digest=lambda: sha_of([mark, case.id, case.digest()]), region=region
    )


def shifted_identity(
    identity: DataIdentity, how: View | None, cases: Sequence[Case]
) -> DataIdentity:
    """Of the shifted images of some of the cases, in any order: what their features are kept by."""
    mark = [_mark(how), sorted(case.id for case in cases)]
    return DataIdentity(
        sha_of([identity.images_sha, mark]),
        sha_of([identity.dataset_sha, mark]),
        sha_of([identity.regions_sha, mark]) if identity.regions_sha else "",
    )


# --- parts -----------------------------------------------------------------------------------


def _mark(how: View | None) -> list[str | float]:
    """What tells shifted images from all others."""
    return ["moved", VERSION] if how is None else [how.shift.name, how.strength, VERSION]


def _following(case: Case, region: Region, how: View | None) -> Region:
    def load() -> tuple[np.ndarray, np.ndarray]:
        mask, affine = region.load()
        frame = Volume(mask[None].astype(np.float32), affine, "relative")
        if how is None:
            there = moved(frame)
            return there.voxels[0] > 0, there.affine
        return shifted_labels(mask, frame, how, case.id), affine

    return Region(load, lambda: sha_of([_mark(how), case.id, region.digest()]))

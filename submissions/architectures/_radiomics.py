"""Radiomics features by the IBSI definitions, computed by MIRP: the only file that touches it.

The definitions are those of the Image Biomarker Standardisation Initiative (Zwanenburg et al.,
Radiology 295, 2020; reference manual: arXiv 1612.07003); MIRP is its authors' own reference
implementation (Zwanenburg and Löck, Journal of Open Source Software 9, 2024). Its entry point
``mirp.extract_features`` sets up the root logger, spends most of its time on one pair of features
(see `FEATURES`) and cannot leave them out; so its feature classes are called here, which are not
part of its public interface. The extra therefore names a range of versions, `build` compares
MIRP's features with `FEATURES`, and a test compares their values with the published ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from ...benchmark.errors import InstallationError

if TYPE_CHECKING:
    from mirp._features.base_feature import Feature

FEATURES = {
    "morph": (
        "volume vol_approx area_mesh av comp_1 comp_2 sph_dispr sphericity asphericity com "
        "integ_int diam vol_dens_conv_hull area_dens_conv_hull vol_dens_aabb area_dens_aabb "
        "pca_maj_axis pca_min_axis pca_least_axis pca_elongation pca_flatness vol_dens_aee "
        "area_dens_aee"
    ),
    "stat": (
        "mean var skew kurt median min p10 p90 max iqr range mad rmad medad cov qcod energy rms"
    ),
    "ih": (
        "mean var skew kurt median min p10 p90 max mode iqr range mad rmad medad cov qcod entropy "
        "uniformity max_grad max_grad_g min_grad min_grad_g"
    ),
    "cm": (
        "joint_max joint_avg joint_var joint_entr diff_avg diff_var diff_entr sum_avg sum_var "
        "sum_entr energy contrast dissimilarity inv_diff inv_diff_norm inv_diff_mom "
        "inv_diff_mom_norm inv_var corr auto_corr clust_tend clust_shade clust_prom info_corr1 "
        "info_corr2"
    ),
    "rlm": (
        "sre lre lgre hgre srlge srhge lrlge lrhge glnu glnu_norm rlnu rlnu_norm r_perc gl_var "
        "rl_var rl_entr"
    ),
    "szm": (
        "sze lze lgze hgze szlge szhge lzlge lzhge glnu glnu_norm zsnu zsnu_norm z_perc gl_var "
        "zs_var zs_entr"
    ),
    "dzm": (
        "sde lde lgze hgze sdlge sdhge ldlge ldhge glnu glnu_norm zdnu zdnu_norm z_perc gl_var "
        "zd_var zd_entr"
    ),
    "ngt": "coarseness contrast busyness complexity strength",
    "ngl": (
        "lde hde lgce hgce ldlge ldhge hdlge hdhge glnu glnu_norm dcnu dcnu_norm dc_perc gl_var "
        "dc_var dc_entr dc_energy"
    ),
}
"""Family to features, as MIRP names them: morphology, intensity statistics, intensity histogram,
GLCM, GLRLM, GLSZM, GLDZM, NGTDM, NGLDM. All that the IBSI defines for these families but two of the
morphological ones, Moran's I and Geary's C: they compare all pairs of voxels, cost more than all
others together, and from 1000 voxels on MIRP only estimates them."""


def available() -> bool:
    """Whether MIRP is installed, without importing it (it brings ITK: hundreds of MB)."""
    return find_spec("mirp") is not None


def names(families: Sequence[str]) -> tuple[str, ...]:
    """The features of some families, in the order of `FEATURES`.

    >>> names(["ngt", "stat"])[-6:]
    ('stat_rms', 'ngt_coarseness', 'ngt_contrast', 'ngt_busyness', 'ngt_complexity', 'ngt_strength')
    """
    return tuple(
        f"{family}_{name}"
        for family, listed in FEATURES.items()
        if family in families
        for name in listed.split()
    )


def check(wanted: Sequence[str]) -> None:
    """Check that MIRP is there and computes the features.

    Raises:
        InstallationError: MIRP is missing, or another version than this file was written for.
    """
    if not available():
        raise InstallationError(
            "Architecture 'radiomics' needs the library MIRP, which is not installed. Install the "
            "extra: pip install 'tomoprobe[radiomics]'."
        )
    try:
        found = [feature.abbr_name for feature in _features(wanted, bins=32)]
    except (ImportError, AttributeError, TypeError) as error:
        raise InstallationError(
            _OTHER_VERSION.format(f"{type(error).__name__}: {error}")
        ) from error
    if found != list(wanted):
        missing = sorted(set(wanted) - {str(name) for name in found})
        raise InstallationError(_OTHER_VERSION.format(f"it lacks {missing[:5]}"))


_OTHER_VERSION = (
    "The installed version of MIRP does not compute the features that architecture 'radiomics' "
    "states ({}). Install the one of the extra: pip install 'tomoprobe[radiomics]'."
)


def describe(
    voxels: np.ndarray, region: np.ndarray, wanted: Sequence[str], bins: int
) -> np.ndarray:
    """Features of a region: lengths in voxels, texture matrices in 3D, all directions merged.

    Args:
        voxels: (X, Y, Z), any unit.
        region: (X, Y, Z) bool, not empty.
        wanted: names, in the order of `FEATURES`.
        bins: grey levels between the region's least and largest value: the IBSI's fixed bin number.

    Returns:
        (len(wanted),) float64, finite: what is not defined is 0 (the flatness of one voxel, the
        GLCM of voxels without neighbors).
    """
    from mirp._images.generic_image import GenericImage
    from mirp._masks.base_mask import BaseMask

    box = bounding_box(region)  # nothing outside has a say
    image_array = voxels[box].transpose().astype(np.float64)  # MIRP's order is z, y, x
    where = {
        "image_origin": (0.0, 0.0, 0.0),
        "image_orientation": np.eye(3),
        "image_spacing": (1.0, 1.0, 1.0),
        "image_dimensions": image_array.shape,
    }
    image = GenericImage(image_data=image_array, **where)
    mask = BaseMask(roi_name="region", image_data=region[box].transpose().astype(bool), **where)
    mask.generate_masks()
    features = _features(wanted, bins)
    # What is not defined for a flat or tiny region warns on its way to NaN.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for feature in features:
            feature.compute(image, mask)
    for feature in features:
        feature.clear_cache()  # texture matrices are kept per class
    values = np.array([np.nan if f.value is None else f.value for f in features], np.float64)
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def bounding_box(region: np.ndarray) -> tuple[slice, slice, slice]:
    """Where a mask (X, Y, Z), not empty, begins and ends along each axis."""
    x, y, z = (np.flatnonzero(region.any(axis=other)) for other in ((1, 2), (0, 2), (0, 1)))
    a, b, c = (slice(int(i[0]), int(i[-1]) + 1) for i in (x, y, z))
    return a, b, c


def _features(wanted: Sequence[str], bins: int) -> list[Feature]:
    from mirp._features.feature_generator import generate_features
    from mirp.settings.feature_parameters import FeatureExtractionSettingsClass

    settings = FeatureExtractionSettingsClass(
        by_slice=False,  # 3D: matrices over all 13 directions are merged
        no_approximation=False,
        base_feature_families="all",
        base_discretisation_method="fixed_bin_number",
        base_discretisation_n_bins=bins,
    )
    return [feature for feature in generate_features(settings) if feature.abbr_name in wanted]

"""Named sets of tasks."""

from ..benchmark.errors import UnknownNameError

SUITES: dict[str, tuple[str, ...]] = {
    "smoke": ("smoke_lesion", "smoke_ventricles"),
    "ct": ("adrenal_mnist3d", "sarcoma_ct_sex", "sarcoma_ct_age"),
    "mr": ("msd_hippocampus_volume", "sarcoma_mr_sex", "sarcoma_mr_age"),
    "core": (
        "adrenal_mnist3d",
        "msd_hippocampus_volume",
        "sarcoma_ct_sex",
        "sarcoma_mr_sex",
        "sarcoma_ct_age",
        "sarcoma_mr_age",
    ),
    "medmnist3d": (
        "organ_mnist3d",
        "nodule_mnist3d",
        "adrenal_mnist3d",
        "fracture_mnist3d",
        "vessel_mnist3d",
        "synapse_mnist3d",
    ),
    "medmnist3d_64": (
        "organ_mnist3d_64",
        "nodule_mnist3d_64",
        "adrenal_mnist3d_64",
        "fracture_mnist3d_64",
        "vessel_mnist3d_64",
        "synapse_mnist3d_64",
    ),
    "ixi": ("ixi_age", "ixi_sex", "ixi_site"),
    "msd": (
        "msd_brain_tumour",
        "msd_heart",
        "msd_liver",
        "msd_hippocampus",
        "msd_hippocampus_volume",
        "msd_prostate",
        "msd_lung",
        "msd_pancreas",
        "msd_hepatic_vessel",
        "msd_spleen",
        "msd_colon",
    ),
    "site_leakage": ("ixi_site", "sarcoma_mr_vendor"),
    "dense": ("msd_hippocampus", "sarcoma_ct_tumour", "sarcoma_mr_tumour"),
    "registration": ("msd_hippocampus_pairs", "sarcoma_ct_mr"),
    "detection": ("sarcoma_ct_tumour_detection", "sarcoma_mr_tumour_detection"),
    "smoke_kinds": (
        "smoke_tissue",
        "smoke_pairs",
        "smoke_lesion_detection",
        "smoke_lesion_candidates",
        "smoke_survival",
    ),
}
"""``core`` holds real tasks, one size per data set, whose downloads are small, and has nothing that
is not evidence; ``smoke`` is the built-in sanity check, ``smoke_kinds`` that of other kinds of
questions; the others are what one publisher, modality or kind offers."""


def get(name: str) -> tuple[str, ...]:
    """The tasks of a suite.

    Raises:
        UnknownNameError: there is no such suite.
    """
    if name not in SUITES:
        raise UnknownNameError.of("suite", name, SUITES)
    return SUITES[name]

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
}
"""``core`` holds the real tasks, one size per data set; ``smoke`` is the built-in sanity check."""


def get(name: str) -> tuple[str, ...]:
    """The tasks of a suite.

    Raises:
        UnknownNameError: there is no such suite.
    """
    if name not in SUITES:
        raise UnknownNameError.of("suite", name, SUITES)
    return SUITES[name]

"""Normal or diseased adrenal gland, from its shape alone: the same set at 64^3 and 1 mm."""

from ._medmnist import task, with_size
from .adrenal_mnist3d import CARD as CARD_28

CARD = with_size(
    CARD_28,
    "adrenal_mnist3d_64",
    (
        "medmnist/adrenalmnist3d_64.npz",
        "https://zenodo.org/records/10519652/files/adrenalmnist3d_64.npz?download=1",
        "17721accfe9fb005146a47d33bc54b2f",
    ),
)

TASK = task(CARD, spacing_mm=1.0)

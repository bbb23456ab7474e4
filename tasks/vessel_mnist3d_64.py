"""Brain artery with an aneurysm or without, from its shape alone: the same set at 64^3."""

from ._medmnist import npz, task, with_size
from .vessel_mnist3d import CARD as CARD_28
from .vessel_mnist3d import SIDE_MM

CARD = with_size(
    CARD_28, "vessel_mnist3d_64", npz("vesselmnist3d_64", "6bb274a8846e1097066dcd64e2c4520f")
)

TASK = task(CARD, spacing_mm=SIDE_MM / 64)

"""Which of eleven organs is in the box? The same set at 64^3."""

from ._medmnist import npz, task, with_size
from .organ_mnist3d import CARD as CARD_28
from .organ_mnist3d import SIDE_MM

CARD = with_size(
    CARD_28, "organ_mnist3d_64", npz("organmnist3d_64", "58a2205adf14a9d0a189cb06dc78bf10")
)

TASK = task(CARD, spacing_mm=SIDE_MM / 64)

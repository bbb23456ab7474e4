"""Kind of a rib fracture on CT: the same set at 64^3 and 1 mm."""

from ._medmnist import npz, task, with_size
from .fracture_mnist3d import CARD as CARD_28
from .fracture_mnist3d import SIDE_MM

CARD = with_size(
    CARD_28, "fracture_mnist3d_64", npz("fracturemnist3d_64", "f01d7e6316aedf4210da0da5b7437b42")
)

TASK = task(CARD, spacing_mm=SIDE_MM / 64)

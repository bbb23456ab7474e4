"""Excitatory or inhibitory synapse on electron microscopy: the same set at 64^3; no radiology."""

from ._medmnist import npz, task, with_size
from .synapse_mnist3d import CARD as CARD_28
from .synapse_mnist3d import SIDE_MM

CARD = with_size(
    CARD_28, "synapse_mnist3d_64", npz("synapsemnist3d_64", "43bd14ebf3af9d3dd072446fedc14d5e")
)

TASK = task(CARD, spacing_mm=SIDE_MM / 64)

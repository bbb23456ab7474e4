"""Where is the center of the soft-tissue sarcoma of the limb? CT; 51 patients, cross-validation."""

from ._sarcoma_detection import task

TASK = task("ct", "Center of a soft-tissue sarcoma on CT", floor=0.21)

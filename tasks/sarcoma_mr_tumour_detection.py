"""Where is the center of the soft-tissue sarcoma? T1-weighted MR; 51 patients, cross-validation."""

from ._sarcoma_detection import task

TASK = task("mr", "Center of a soft-tissue sarcoma on T1 MR", floor=0.34)

"""Age of the patient, from CT of a soft-tissue sarcoma of the limb; 51 patients, 5 x 5 CV."""

from ._sarcoma import age, task

TASK = task("ct", "age", "Age from CT of a limb", "regression", age, unit="years")

"""Age of the patient, from T1 MR of a soft-tissue sarcoma of the limb; 51 patients, 5 x 5 CV."""

from ._sarcoma import age, task

TASK = task("mr", "age", "Age from T1 MR of a limb", "regression", age, unit="years")

"""Sex of the patient, from CT of a soft-tissue sarcoma of the limb; 51 patients, 5 x 5 CV."""

from ._sarcoma import SEXES, sex, task

TASK = task("ct", "sex", "Sex from CT of a limb", "classification", sex, classes=SEXES)

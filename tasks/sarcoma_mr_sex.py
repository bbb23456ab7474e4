"""Sex of the patient, from T1 MR of a soft-tissue sarcoma of the limb; 51 patients, 5 x 5 CV."""

from ._sarcoma import SEXES, sex, task

TASK = task("mr", "sex", "Sex from T1 MR of a limb", "classification", sex, classes=SEXES)

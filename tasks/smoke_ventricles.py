"""How large are the lateral ventricles? Their volume in a simulated head.

Input: 240 warped copies of one template head, 48x56x48 at 4 mm, simulated T1 MR.
Target: volume of the warped ventricle map, ml; about 13 to 35.
Split: 110 / 30 / 100, fixed.
License: of the ICBM152 template; made on this machine, nothing is downloaded.
"""

from ..benchmark.types import TaskCard
from ._smoke import ANATOMY, CITATION, COUNTS, LICENSE, NOTE, SOURCE, task

CARD = TaskCard(
    name="smoke_ventricles",
    version=1,
    title="Volume of the lateral ventricles, simulated",
    kind="regression",
    modality="MR",
    anatomy=ANATOMY,
    metric="mae",
    license=LICENSE,
    source=SOURCE,
    citation=CITATION,
    counts=COUNTS,
    unit="ml",
    data_set="smoke",
    note=NOTE,
    evidence=False,
)

TASK = task(CARD, lambda row: row.ventricle_ml)

"""How soon does the event come? Simulated follow-up of the smoke cohort, about half censored.

Input: 240 warped copies of one template head, 48x56x48 at 4 mm, simulated T1 MR.
Target: years to the event or to the end of observation, and which. The hazard is 0.08 per year
with ventricles of 21 ml; a lesion triples it and 8 ml more fluid double it.
Split: 110 / 30 / 100, fixed.
License: of the ICBM152 template; made on this machine, nothing is downloaded.
"""

from ..benchmark.targets import FollowUp
from ..benchmark.types import TaskCard
from ._smoke import ANATOMY, CITATION, COUNTS, LICENSE, NOTE, SOURCE, task

CARD = TaskCard(
    name="smoke_survival",
    version=1,
    title="Time to a simulated event",
    kind="survival",
    modality="MR",
    anatomy=ANATOMY,
    metric="concordance",
    license=LICENSE,
    source=SOURCE,
    citation=CITATION,
    counts=COUNTS,
    data_set="smoke",
    note=NOTE
    + " Times are drawn at random from the hazard that lesion and ventricles give, so that even "
    "who knows both exactly is far from a concordance of 1.",
    evidence=False,
)

TASK = task(CARD, lambda row: FollowUp(row.followup_years, bool(row.event)))

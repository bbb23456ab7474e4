"""What a dry run counts: embeddings or maps, by what each protocol reads, and both images of pairs.

Nothing of it is stored, so the sessions here have no database.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import sqlalchemy as sa

from tomoprobe.benchmark import probes
from tomoprobe.benchmark.cache import FeatureCache
from tomoprobe.benchmark.features import FrozenEncoder, data_set_of
from tomoprobe.benchmark.types import Task
from tomoprobe.submissions import runner
from tomoprobe.submissions.dry_runs import Plan, plan
from tomoprobe.submissions.session import Session

from . import jobs, study_register, study_retrieve, study_survival, toy, toy_segmentation


@pytest.fixture
def work(tmp_path: Path) -> Session:
    return Session(sa.create_engine("sqlite://"), "", None, "cpu", FeatureCache(tmp_path))


@pytest.fixture
def planned(work: Session) -> Callable[..., list[Plan]]:
    """``planned(task, encoder, *probes)``."""

    def _planned(task: Task, encoder: FrozenEncoder, *names: str) -> list[Plan]:
        asked = [probes.get(name) for name in names or probes.default()]
        return plan(work, {"one": lambda device: encoder}, [task], True, asked)  # type: ignore

    return _planned


def whats(plans: Sequence[Plan]) -> list[str]:
    return [one.what for one in plans]


@pytest.mark.parametrize("toys", [study_survival, study_retrieve])
def test_a_study_on_embeddings_is_planned(planned, toys: ModuleType) -> None:
    name = toys.__name__.rpartition("_")[2]
    task = toys.task()
    (one,) = planned(task, toys.oracle(), name)
    assert (one.what, one.volumes) == ("embeddings", len(task.cases(Path())))
    assert one.forwards >= one.volumes and not one.cached


def test_both_images_of_a_pair_are_counted(planned) -> None:
    (one,) = planned(study_register.task(), study_register.oracle())
    assert (one.what, one.volumes) == ("maps", 2 * study_register.PAIRS)
    assert one.forwards == 2 * study_register.PAIRS, "one grid covers an image"


def test_pairs_that_are_not_tested_are_not_counted(planned) -> None:
    pairs = study_register.task().cases(Path())
    some = [replace(case, split="train" if i else "test") for i, case in enumerate(pairs)]
    counts = {"cases": 4, "patients": 4, "train": 3, "test": 1}
    task = Task(replace(study_register.CARD, counts=counts), lambda root: some)
    (one,) = planned(task, study_register.oracle())
    assert one.volumes == 2


def test_of_a_segmentation_maps_and_embeddings_are_planned_by_what_is_asked(planned) -> None:
    task, encoder = toy_segmentation.task(), toy_segmentation.Digits()
    assert whats(planned(task, encoder)) == ["maps"]
    assert whats(planned(task, encoder, "stability")) == ["embeddings"]
    assert whats(planned(task, encoder, "segment_linear", "stability")) == ["embeddings", "maps"]
    assert planned(task, encoder, "linear") == [], "it does not serve this task"


def test_what_is_cached_is_said_to_be(planned, work: Session) -> None:
    task, encoder = jobs.task("toy"), toy.ToyEncoder()
    opened = runner.open_task(task, None, subset=True)
    assert not planned(task, encoder, "linear")[0].cached
    work.cache.get(
        encoder, data_set_of(task.card), opened.cases, opened.identity, None, work.device
    )
    (one,) = planned(task, encoder, "linear")
    assert one.cached and one.forwards == 0 and one.seconds == 0

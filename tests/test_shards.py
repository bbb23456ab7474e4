"""A run dealt out over machines that share nothing, and brought together again."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from tomoprobe.benchmark.errors import StorageError, UnknownNameError
from tomoprobe.leaderboard import db
from tomoprobe.leaderboard.merging import merge
from tomoprobe.submissions.runner import WHOLE, Shard, parts
from tomoprobe.tasks import get

from .board_data import add, fresh, result, task_card

ENCODERS = ["a", "b", "c"]
TASKS = [get(n) for n in ("sarcoma_ct_sex", "sarcoma_ct_age", "sarcoma_mr_sex", "adrenal_mnist3d")]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 20])
def test_every_task_of_every_encoder_is_in_exactly_one_shard(n: int) -> None:
    shards = [parts(ENCODERS, TASKS, Shard(i, n)) for i in range(1, n + 1)]
    for encoder in ENCODERS:
        names = [name for shard in shards for name in shard[encoder]]
        assert sorted(names) == sorted(task.card.name for task in TASKS)


def test_tasks_on_the_same_images_stay_together_so_that_features_are_extracted_once() -> None:
    for i in (1, 2, 3):
        for names in parts(ENCODERS, TASKS, Shard(i, 3)).values():
            assert ("sarcoma_ct_sex" in names) == ("sarcoma_ct_age" in names)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_shards_extract_equally_often(n: int) -> None:
    def extractions(shard: Shard) -> int:
        found = parts(ENCODERS, TASKS, shard).items()
        return len({(encoder, name[:9]) for encoder, names in found for name in names})

    sizes = [extractions(Shard(i, n)) for i in range(1, n + 1)]
    assert sum(sizes) == 9
    assert max(sizes) - min(sizes) <= 1


def test_no_shard_gets_one_data_set_of_all_encoders() -> None:
    for i in (1, 2, 3):
        having = [names for names in parts(ENCODERS, TASKS, Shard(i, 3)).values()]
        assert sum("adrenal_mnist3d" in names for names in having) == 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", ""])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(UnknownNameError, match="second of four"):
        Shard.parse(text)


def test_a_part_reads_as_it_is_written() -> None:
    assert Shard.parse("2/4") == Shard(2, 4)
    assert Shard.parse("1/1") == WHOLE


# --- merging -------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> list[Engine]:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    return [fresh(tmp_path / "a"), fresh(tmp_path / "b")]


def test_merging_brings_rows_cards_flags_and_predictions(two: list[Engine]) -> None:
    here, there = two
    add(here, [result("a", "t")])
    add(there, [result("b", "t"), result("b", "t", metric="brier")], flags=[("biased",), ()])
    assert merge(here, there) == (1, 0, 0)
    assert {row.result.model for row in db.rows(here)} == {"a", "b"}
    assert [(r.result, r.flags, r.added) for r in db.rows(here)][1:] == [
        (r.result, r.flags, r.added) for r in db.rows(there)
    ]
    assert [m.card for m in db.models(here)][1:] == [m.card for m in db.models(there)]
    (unit,) = db.units(there)
    assert db.parquet(here, unit) == db.parquet(there, unit)


def test_merging_twice_adds_nothing(two: list[Engine]) -> None:
    here, there = two
    add(there, [result("b", "t")])
    assert merge(here, there) == (1, 0, 0)
    assert merge(here, there) == (0, 1, 0)
    assert len(db.rows(here)) == 1


def test_databases_that_mean_different_tasks_are_not_merged(two: list[Engine]) -> None:
    here, there = two
    add(here, [result("a", "t")], task_card("t"))
    add(there, [result("b", "t")], task_card("t", classes=("x", "y", "z")))
    add(there, [result("b", "u")], task_card("u"))
    with pytest.raises(StorageError, match="another classes"):
        merge(here, there)
    assert {row.result.model for row in db.rows(here)} == {"a"}, "nothing was added"

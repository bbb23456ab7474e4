"""Scores of each class and what the answers took, on the task's page and in a run's summary."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tomoprobe.benchmark.predictions import HEADLINE, Provenance, to_parquet
from tomoprobe.leaderboard.details import detail_of
from tomoprobe.leaderboard.site import create_app
from tomoprobe.submissions import console, dense_report, report, runs, session
from tomoprobe.submissions.progress import Tracker

from . import toy_segmentation as toy
from .board_data import KINDS, PROTOCOLS, Visitor, add, fresh, result
from .test_site import Page

HIPPOCAMPUS, PAIRS = KINDS[2], KINDS[3]


def predicted(shots: int | None = None, **columns: object) -> pd.DataFrame:
    """Two cases of a segmentation into two classes; the second class is absent from one."""
    table = pd.DataFrame(
        {
            "repeat": 0,
            "fold": 0,
            "refit": HEADLINE,
            "case": ["a", "b"],
            "patient": ["a", "b"],
            "dice_1": [0.7, 0.8],
            "dice_2": [0.4, np.nan],
            "nsd_1": [0.9, 1.0],
            "nsd_2": [0.5, np.nan],
            "hd95_1": [2.0, 3.0],
            "hd95_2": [9.25, np.nan],
            "mask": [b"x", b"y"],
            "forward_voxels": [1_000_000, 2_000_000],
            **columns,
        }
    )
    return table if shots is None else table.assign(shots=shots)


def store(engine, model: str, card, table: pd.DataFrame | None, **changes: object) -> None:
    row = replace(result(model, card.name, metric=card.metric), **changes)
    named = {
        name: getattr(row, name)
        for name in Provenance.__dataclass_fields__
        if name not in ("kind", "width", "cv", "area", "skipped")
    }
    about = Provenance(**named, kind=card.kind, width=8, cv=False)
    data = {} if table is None else {"parquet": to_parquet(table, about)}
    add(engine, [row], card, **data)


def details(visitor: Visitor, path: str) -> list[list[str]]:
    html = visitor.get(path).text
    (found,) = re.findall(
        r'aria-labelledby="details-caption".*?(<table.*?</table>)', html, re.DOTALL
    )
    return [row for row in Page(found).rows if row]


@pytest.fixture
def engine(tmp_path):
    engine = fresh(tmp_path)
    yield engine
    engine.dispose()


# --- what is read ------------------------------------------------------------------------------


def test_refits_and_other_sizes_do_not_count() -> None:
    refit = predicted(dice_1=0.0, refit=3, forward_voxels=9)
    table = pd.concat([predicted(5), predicted(1, dice_1=0.1), refit.assign(shots=5)])
    found = detail_of(table, 5)
    assert found is not None
    assert found.scores["dice"] == pytest.approx((0.75, 0.4))
    assert found.scores["hd95"] == pytest.approx((2.5, 9.25))
    assert found.forward_voxels == 1_500_000
    assert found.decoder_parameters is None


def test_a_table_of_other_answers_has_no_details() -> None:
    table = predicted()[["repeat", "fold", "refit", "case", "patient"]].assign(p0=0.5, p1=0.5)
    assert detail_of(table, None) is None


# --- the task's page ---------------------------------------------------------------------------


def test_the_page_of_a_segmentation_has_every_class_by_its_name_and_what_it_took(engine) -> None:
    decoded = {"chosen_decoder_parameters": 60_000.0, "chosen_projection_parameters": 1234.0}
    store(engine, "good", HIPPOCAMPUS, predicted(**decoded), probe="segment_decoder")
    head, measures, row = details(
        Visitor(create_app(engine, PROTOCOLS)), f"/tasks/{HIPPOCAMPUS.name}"
    )
    assert head == ["Model", "anterior", "posterior", "Voxels shown", "Decoder", "Projections"]
    assert [text.split()[0].rstrip(",") for text in measures] == ["Dice", "NSD", "HD95"] * 2
    assert "mm" in measures[2] and "↑" in measures[0] and "↓" in measures[2]
    assert row == [
        "good",
        *("0.750", "0.950", "2.50"),
        *("0.400", "0.500", "9.25"),
        *("1,500,000", "60,000", "1,234"),
    ]


def test_the_page_of_a_registration_says_what_was_shown_of_a_pair(engine) -> None:
    table = predicted()[["repeat", "fold", "refit", "case", "patient", "forward_voxels"]]
    store(engine, "mind", PAIRS, table.assign(dice=0.5), probe="register")
    visitor = Visitor(create_app(engine, PROTOCOLS))
    assert details(visitor, f"/tasks/{PAIRS.name}") == [
        ["Model", "Voxels shown"],
        ["mind", "1,500,000"],
    ]
    assert "per pair of images" in Page(visitor.get(f"/tasks/{PAIRS.name}").text).text


def test_predictions_that_cannot_be_read_cost_a_line_and_not_the_page(engine) -> None:
    store(engine, "good", HIPPOCAMPUS, predicted(), probe="segment_linear")
    store(engine, "broken", HIPPOCAMPUS, None, probe="segment_linear")
    visitor = Visitor(create_app(engine, PROTOCOLS))
    *_, row = details(visitor, f"/tasks/{HIPPOCAMPUS.name}")
    assert row[0] == "good"
    text = Page(visitor.get(f"/tasks/{HIPPOCAMPUS.name}").text).text
    assert "Without details" in text and "broken" in text.split("Without details")[1]


def test_a_classification_has_no_such_section(engine) -> None:
    store(engine, "good", KINDS[0], predicted())
    page = Visitor(create_app(engine, PROTOCOLS)).get(f"/tasks/{KINDS[0].name}").text
    assert "details-title" not in page


# --- the summary of a run ----------------------------------------------------------------------


@dataclass(frozen=True)
class Fixed:
    """A study with one answer, and a picture of it."""

    name: str = "segment_linear"
    version: int = 1
    kinds: tuple[str, ...] = ("segmentation",)
    answers: str = "segmentation"
    title: str = "The same for everybody"

    def run(self, setting):
        tested = [case for case in setting.cases if case.split == "test"]
        if setting.pictures is not None:
            for number in range(4):
                Image.new("RGB", (30, 20), (200, 0, 0)).save(setting.pictures / f"{number}.png")
            (setting.pictures / "5.png").write_bytes(b"no picture")
        table = predicted().iloc[[0] * len(tested)].reset_index(drop=True)
        names = [case.id for case in tested]
        return table.assign(case=names, patient=[case.patient for case in tested], dice_2=0.4)


class Nothing(toy.Zeros):
    manifest = {"name": "toy_zeros"}  # noqa: RUF012  a constant


class Digits(toy.Digits):
    manifest = {"name": "toy_digits"}  # noqa: RUF012  a constant


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("summary")
    work = session.open_session(str(folder / "scores.db"), folder, "cpu")
    encoders = {"zeros": lambda device: Nothing(), "digits": lambda device: Digits()}
    study = Fixed()
    ran = runs.evaluate(
        work,
        encoders=encoders,
        tasks=[toy.task()],
        probes=[study],
        subset=False,
        reporter=Tracker(list(encoders), [toy.task()], [study]),
        pictures=folder / "out" / dense_report.FOLDER,
    )
    started = datetime(2026, 11, 23, tzinfo=UTC)
    yield report.write_report(work, ran, folder / "out", "tomoprobe", started)
    work.engine.dispose()


def test_the_summary_has_every_class_by_its_name(page: Path) -> None:
    html = page.read_text("utf-8")
    (found,) = re.findall(r'toy_boxes in detail".*?(<table.*?</table>)', html, re.DOTALL)
    head, measures, *rows = (row for row in Page(found).rows if row)
    assert head == ["Model", "first", "second", "Voxels shown"]
    assert measures == ["Dice", "NSD", "HD95, mm"] * 2
    for row in rows:
        assert row[1:] == ["0.700", "0.900", "2.00", "0.400", "0.500", "9.25", "1,000,000"]
    assert {row[0] for row in rows} == {"toy_zeros", "toy_digits"}


def test_the_summary_embeds_some_pictures_and_counts_the_others(page: Path) -> None:
    text = page.read_text("utf-8")
    shown = re.findall(r'<figure class="panel drawing"><img src="data:image/png;base64,', text)
    assert len(shown) == dense_report.MOST < 8
    assert f"{8 - dense_report.MOST} more pictures of this task are in the folder pictures" in text
    assert "image, truth and prediction of a tested case" in text
    assert '<img src="data:image/png;base64,' in text and "toy_digits</strong> with" in text


def test_the_end_of_a_run_says_where_the_pictures_are(page: Path, capsys) -> None:
    console.print_summary(page)
    said = capsys.readouterr().out
    assert str(page.parent / dense_report.FOLDER) in said
    assert "Pictures (10)" in said


def test_a_page_does_not_grow_without_end(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = type("Scores", (), {"tasks": [_scores(page)]})()
    assert len(dense_report.drawings(page.parent, scores)[toy.CARD.name].shown) == 6
    monkeypatch.setattr(dense_report, "MOST_BYTES", 250)
    few = dense_report.drawings(page.parent, scores)[toy.CARD.name]
    assert 0 < len(few.shown) < 6 and len(few.shown) + few.left_out == 8


def _scores(page: Path):
    """The parts of ``TaskScores`` that say which pictures belong to a run."""
    lines = [
        type("Line", (), {"model": name, "cells": {"segment_linear": None}})()
        for name in ("toy_zeros", "toy_digits")
    ]
    column = type("Column", (), {"probe": "segment_linear"})()
    return type("Scores", (), {"card": toy.CARD, "columns": [column], "lines": lines})()

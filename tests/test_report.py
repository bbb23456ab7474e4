"""The summary of a run, from the true spine on toy tasks."""

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tomoprobe.benchmark import probes as protocols
from tomoprobe.benchmark.errors import EncoderError, StorageError
from tomoprobe.benchmark.statistics import FLAGS
from tomoprobe.benchmark.types import Budget, Case, Task, TaskCard, Volume
from tomoprobe.leaderboard.printing import interval_text, score_text
from tomoprobe.submissions import report, runs, session
from tomoprobe.submissions.pictures import Picture, pictures
from tomoprobe.submissions.progress import Tracker
from tomoprobe.submissions.runs import Ran
from tomoprobe.submissions.session import Session

from .test_browser import CONTRASTS, browser
from .toy import CARD, ENCODER_CARD, ToyEncoder, case, cases

__all__ = ["browser"]  # the fixture, for pytest

HOSTILE = "<script>alert(1)</script>"
STARTED = datetime(2026, 11, 23, 9, 12, tzinfo=UTC)

KNN = protocols.get("knn")
PROBES = (
    # by the name of the probe that is compared; and few sizes and draws: the probes themselves
    # would take a minute
    replace(KNN, name="linear"),
    KNN,
    replace(protocols.get("few_shot"), budget=Budget("patients per class", (1, 5, 20), draws=2)),
    replace(
        protocols.get("label_efficiency"),
        budget=Budget("percent", (5, 50, 100), draws=2, area=True),
    ),
)

CV = replace(CARD, name="toy_cv", counts={"cases": 60, "patients": 60}, note=HOSTILE)
AGE = replace(CARD, name="toy_age", kind="regression", metric="mae", classes=(), unit="years")
ONE_CLASS = replace(CARD, name="toy_one_class", source="javascript:alert(1)")


@dataclass
class Noisy(ToyEncoder):
    """Another model: the mean alone, twice."""

    def embed(self, x):
        return super().embed(x)[:, :1].repeat(1, 2)


def tall(one: Case) -> Case:
    """The same case in slices of 3 mm."""
    volume = replace(one.load(), affine=np.diag([1.0, 1.0, 3.0, 1.0]))
    return replace(one, load=lambda: volume)


def task(card: TaskCard) -> Task:
    def found(root: Path):
        some = cases(card)
        if card is ONE_CLASS:
            return [replace(c, target=1 if c.split == "test" else c.target) for c in some]
        if card is AGE:
            return [replace(tall(c), target=20.0 + i) for i, c in enumerate(some)]
        return some

    return Task(card, found)


def failing(device: str):
    raise EncoderError(f"The weights are missing {HOSTILE}.")


ENCODERS = {
    "intensity": lambda device: ToyEncoder(replace(ENCODER_CARD, name="intensity")),
    "other": lambda device: Noisy(replace(ENCODER_CARD, name="other<b>"), "1" * 64),
    "missing.toml": failing,
}


def made(folder: Path, tasks: list[Task], encoders: list[str], probes: tuple) -> tuple:
    work = session.open_session(str(folder / "scores.db"), folder, "cpu")
    ran = runs.evaluate(
        work,
        encoders={name: ENCODERS[name] for name in encoders},
        tasks=tasks,
        probes=probes,
        subset=False,
        reporter=Tracker(encoders, tasks, probes),
    )
    return work, ran


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Session, Ran, Path]]:
    """Two encoders and one that fails, on four tasks with all kinds of probes; and its page."""
    folder = tmp_path_factory.mktemp("report")
    tasks = [task(card) for card in (CARD, CV, AGE, ONE_CLASS)]
    work, ran = made(folder, tasks, list(ENCODERS), PROBES)
    page = report.write_report(work, ran, folder / "out", f"tomoprobe {HOSTILE}", STARTED)
    yield work, ran, page
    work.engine.dispose()


class Tags(HTMLParser):
    """Every tag with its attributes; fails on one that is closed in the wrong order."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def section(page: Path, name: str) -> str:
    """The part of the page about one task."""
    return page.read_text().split(f'aria-labelledby="task-{name}"')[1].split("</section>")[0]


def test_the_page_is_well_formed_and_needs_nothing_beside_it(whole) -> None:
    text = whole[2].read_text()
    tags = Tags(text).found
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
    assert all(a["src"].startswith("data:image/png;base64,") for _, a in tags if "src" in a)
    styles = re.findall(r"<style>(.*?)</style>", text, re.S)
    assert not re.search(r"url\(|@import", "".join(styles))
    ids = Counter(a["id"] for _, a in tags if "id" in a)
    assert set(ids.values()) == {1}
    named = {i for _, a in tags for i in a.get("aria-labelledby", "").split()}
    assert named <= ids.keys()
    assert len(text) < 400_000


def test_what_cards_models_and_errors_say_is_text_and_never_markup(whole) -> None:
    text = whole[2].read_text()
    assert HOSTILE not in text and "other<b>" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3  # command, note and failure
    assert 'href="javascript' not in text


def test_failures_are_told_with_their_reason(whole) -> None:
    failures = whole[2].read_text().split('class="failures"')[1].split("</section>")[0]
    assert "missing.toml" in failures and "The weights are missing" in failures
    assert "1 failure" in failures


def test_every_number_of_the_task_metric_is_on_the_page_with_its_interval(whole) -> None:
    work, ran, page = whole
    shown = 0
    for row in (stored.result for stored in runs.rows_of(work, ran)):
        card = next(o.task.card for o in ran.tasks if o.task.card.name == row.task)
        if row.metric == card.metric and row.score is not None:
            numbers = row.metric, row.score, row.low, row.high
            part = section(page, row.task)
            assert score_text(*numbers) in part and interval_text(*numbers) in part
            shown += 1
    assert shown >= 40


def test_sizes_that_could_not_be_drawn_say_why(whole) -> None:
    part = section(whole[2], CARD.name)
    assert "20 patients per class" in part
    assert "has 15 training patients, 20 are needed" in part
    assert '<th scope="col">few_shot<span class="sub">5 patients per class</span>' in part
    assert '<th scope="col">label_efficiency<span class="sub">mean over the curve</span>' in part


def test_labels_saved_and_differences_are_against_the_floor(whole) -> None:
    part = section(whole[2], CARD.name)
    assert "Labels needed to reach intensity's full-data score" in part
    assert "minus floor" in part
    labels = part.split("Labels needed on toy")[1]
    assert '<th scope="row">other&lt;b&gt;</th>' in labels.split("</table>")[0]


def test_a_share_of_labels_has_the_footnotes_of_its_interval(whole) -> None:
    part = section(whole[2], CV.name)
    table = part.split("Labels needed on toy_cv")[1].split("</table>")[0]
    (marks,) = re.findall(r"<td>[^<]* %<sup>([\d,]+)</sup><span", table)
    notes = dict(re.findall(r"<p><sup>(\d+)</sup> ([^<]*)</p>", part))
    assert FLAGS["uncalibrated"] in {notes[mark] for mark in marks.split(",")}


def test_a_flag_that_only_a_share_has_is_explained_too(whole, tmp_path, monkeypatch) -> None:
    work, ran, _ = whole
    real = report.compare.label_shares
    monkeypatch.setattr(
        report.compare,
        "label_shares",
        lambda *given: {k: replace(s, flags=("biased",)) for k, s in real(*given).items()},
    )
    part = section(report.write_report(work, ran, tmp_path, "tomoprobe", STARTED), CARD.name)
    table = part.split("Labels needed on toy")[1].split("</table>")[0]
    (mark,) = re.findall(r"<sup>(\d+)</sup>", table)
    assert f"<p><sup>{mark}</sup> {FLAGS['biased']}</p>" in part


def test_a_task_without_a_defined_score_keeps_its_pictures_and_says_why(whole) -> None:
    part = section(whole[2], ONE_CLASS.name)
    assert "<img" in part and "the metric is not defined on this test set" in part
    assert "<svg" not in part


def test_data_and_protocol_are_named(whole) -> None:
    text = whole[2].read_text()
    assert "60 cases of 60 patients: 30 train, 10 val, 20 test" in text
    assert "60 cases of 60 patients; 5 repeats of 5-fold cross-validation by patient" in text
    assert CARD.license in section(whole[2], CARD.name)


def test_curves_and_rows_lie_beside_the_page_and_nothing_else(whole) -> None:
    work, ran, page = whole
    files = {path.name for path in page.parent.iterdir()}
    curves = {
        *(
            f"curves-{name}-{probe}.svg"
            for name in ("toy", "toy_cv")
            for probe in ("few_shot", "label_efficiency")
        ),
        "curves-toy_age-label_efficiency.svg",
    }
    assert files == {"summary.html", "rows.jsonl", *curves}
    for name in curves:
        drawing = ElementTree.parse(page.parent / name)  # noqa: S314
        assert drawing.getroot().tag.endswith("svg")
    lines = (page.parent / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        row.result.as_dict() for row in runs.rows_of(work, ran)
    ]


def test_a_folder_that_cannot_be_written_is_told_and_loses_no_score(whole, tmp_path: Path) -> None:
    work, ran, _ = whole
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match=r"The scores are in the database"):
        report.write_report(work, ran, tmp_path / "taken", "tomoprobe", STARTED)
    with pytest.raises(StorageError, match=r"The scores are in the database"):
        report.write_report(work, ran, tmp_path / "taken" / "below", "tomoprobe", STARTED)


def test_one_encoder_and_one_probe_give_a_page_without_curves(tmp_path: Path) -> None:
    work, ran = made(tmp_path, [task(CARD)], ["other"], (KNN,))
    page = report.write_report(work, ran, tmp_path / "out", "tomoprobe", STARTED)
    text = page.read_text()
    Tags(text)
    for absent in ("minus floor", "Labels needed", 'class="failures"'):
        assert absent not in text
    assert text.count("<svg") == 1
    assert {p.name for p in page.parent.iterdir()} == {"summary.html", "rows.jsonl"}
    work.engine.dispose()


def test_a_run_in_which_everything_failed_gives_a_page(tmp_path: Path) -> None:
    work, ran = made(tmp_path, [task(CARD)], ["missing.toml"], (KNN,))
    page = report.write_report(work, ran, tmp_path / "out", "tomoprobe", STARTED)
    text = page.read_text()
    Tags(text)
    assert "The weights are missing" in text and "No score" in text and "<img" in text
    work.engine.dispose()


# --- pictures ------------------------------------------------------------------------------------


def pixels(picture: Picture) -> dict[str, np.ndarray]:
    """Gray values (rows, columns) of every view."""
    out = {}
    for view in picture.views:
        data = base64.b64decode(view.png.removeprefix("data:image/png;base64,"))
        out[view.plane] = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
    return out


def shown(voxels: np.ndarray, spacing=(1.0, 1.0, 1.0), unit="relative", box=None) -> Picture:
    volume = Volume(voxels[None].astype(np.float32), np.diag([*spacing, 1.0]), unit)
    card = replace(CARD, field_of_view_mm=box)
    return pictures(card, [replace(case(0), load=lambda: volume)])[0]


def half(axis: int) -> np.ndarray:
    """1 in the half toward R, A or S."""
    voxels = np.zeros((20, 20, 20))
    voxels[tuple(slice(10, None) if a == axis else slice(None) for a in range(3))] = 1
    return voxels


@pytest.mark.parametrize(
    ("axis", "bright"),
    [
        (0, {"axial": np.s_[:, :10], "coronal": np.s_[:, :10]}),  # right on the left
        (1, {"axial": np.s_[:10], "sagittal": np.s_[:, :10]}),  # front above, and on the left
        (2, {"coronal": np.s_[:10], "sagittal": np.s_[:10]}),  # head above
    ],
)
def test_slices_hang_as_radiologists_hang_them(axis, bright) -> None:
    views = pixels(shown(half(axis)))
    for plane, part in bright.items():
        assert views[plane][part].min() == 255
        assert views[plane].sum() == views[plane][part].sum()


def test_proportions_are_millimetres() -> None:
    views = {v.plane: v for v in shown(np.zeros((40, 20, 10)), spacing=(1.0, 1.0, 4.0)).views}
    axial, coronal, sagittal = (views[p] for p in ("axial", "coronal", "sagittal"))
    assert axial.width == pytest.approx(2 * axial.height, abs=1)  # 40 x 20 mm
    assert coronal.width == pytest.approx(coronal.height, abs=1)  # 40 x 40 mm
    assert sagittal.height == pytest.approx(2 * sagittal.width, abs=1)  # 20 x 40 mm
    assert axial.width == coronal.width


def test_only_the_task_box_is_shown() -> None:
    voxels = np.ones((40, 40, 40))
    voxels[10:30, 10:30, 10:30] = 0
    picture = shown(voxels, spacing=(2.0, 2.0, 2.0), box=(40.0, 40.0, 40.0))
    assert picture.shown.startswith("40 × 40 × 40 mm")
    assert all(view.max() == 0 for view in pixels(picture).values())


def test_ct_has_a_window_and_lung_a_wide_one() -> None:
    limb = np.full((10, 10, 10), 40.0)
    assert "−160 to 240 HU" in shown(limb, unit="HU").shown
    assert abs(pixels(shown(limb, unit="HU"))["axial"].mean() - 127.5) < 3
    assert "−1000 to 400 HU" in shown(np.full((10, 10, 10), -800.0), unit="HU").shown
    assert "percentiles" in shown(limb, unit="scanner").shown


def test_at_most_four_cases_are_loaded_and_every_class_is_among_them() -> None:
    loaded = []

    def counted(one):
        return replace(one, load=lambda: loaded.append(one.id) or one.load())

    some = [counted(case(i, int(i >= 38))) for i in range(40)]
    found = pictures(CARD, some)
    assert [p.target for p in found] == ["dark", "dark", "bright", "bright"]
    assert len(loaded) == 4
    ages = [replace(case(i), target=float(i)) for i in range(10)]
    assert [p.target for p in pictures(AGE, ages)] == ["0 years", "3 years", "6 years", "9 years"]


def test_a_case_that_cannot_be_loaded_is_told_beside_the_others() -> None:
    def broken():
        raise ValueError("a truncated file")

    found = pictures(CARD, [replace(case(0), load=broken), case(1, 1)])
    assert found[0].views == () and "a truncated file" in found[0].shown
    assert len(found[1].views) == 3


# --- looks ---------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
def test_pictures_keep_their_proportions_at_any_width(whole, browser, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    page.goto(whole[2].as_uri())
    sizes = page.evaluate(
        "[...document.images].map((i) => [i.getBoundingClientRect().width, "
        "i.getBoundingClientRect().height, +i.getAttribute('width'), +i.getAttribute('height')])"
    )
    context.close()
    assert {round(h / w, 1) for _, _, w, h in sizes} == {1.0, 3.0}
    for shown_width, shown_height, wide, high in sizes:
        assert shown_height / shown_width == pytest.approx(high / wide, rel=0.02)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_readable_on_a_telephone_in_light_and_dark(whole, browser, scheme) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    complaints, asked = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(whole[2].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    found = page.evaluate(CONTRASTS)
    assert len(found) > 50
    assert [f for f in found if f[0] < 4.5] == []
    assert all(page.evaluate("[...document.images].map((i) => i.naturalWidth > 0)"))
    context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith("data:")] == [whole[2].as_uri()]

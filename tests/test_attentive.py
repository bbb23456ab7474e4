"""Tokens and gated attention: what they are, what is learnt, and what is hidden from it."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tomoprobe.benchmark import evaluate, predictions
from tomoprobe.benchmark.cache import FeatureCache
from tomoprobe.benchmark.errors import EncoderError, ProbeError
from tomoprobe.benchmark.features import FrozenEncoder, identify
from tomoprobe.benchmark.probes import attentive
from tomoprobe.benchmark.studies import Setting, Trial
from tomoprobe.benchmark.tokens import tokens_of
from tomoprobe.benchmark.types import Case, EncoderCard, Task, Volume

from . import study_attentive
from .study_attentive import CARD, MAPS, Corners
from .toy import ToyEncoder

SIDES = ["train"] * 24 + ["val"] * 8 + ["test"] * 12


def setting(
    folder: Path, encoder: FrozenEncoder, cases: list[Case], card=CARD, seed: int = 0
) -> Setting:
    identity = identify(Task(card, lambda root: cases), cases)
    return Setting(card, cases, encoder, FeatureCache(folder), identity, seed=seed)


def few() -> list[Case]:
    return [study_attentive.corner(i, bool(i % 2), side)[0] for i, side in enumerate(SIDES)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attentive, "EPOCHS", 4)


# --- tokens ----------------------------------------------------------------------------------


def test_positions_are_parts_of_the_coarsest_map_the_last_axis_fastest() -> None:
    case, where = study_attentive.corner(1, True)
    found = tokens_of(Corners(), [case], None)
    assert found.of == "positions" and found.values[0].shape == (8, 2)
    assert int(found.values[0][:, 0].argmax()) == where
    voxels = case.load().voxels[0]
    assert found.values[0][1, 0] == pytest.approx(voxels[:4, :4, 4:].mean(), abs=0.02)


class Image(Corners):
    """The image itself: more positions than are kept."""

    card: EncoderCard = replace(MAPS, strides=(1,))

    def __init__(self) -> None: ...

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]


def test_a_fine_map_is_averaged_to_64_positions() -> None:
    case, _ = study_attentive.corner(0, False)
    values = tokens_of(Image(), [case], None).values[0]
    assert values.shape == (64, 1)
    np.testing.assert_allclose(values.mean(), case.load().voxels.mean(), atol=1e-3)
    assert values[0, 0] == pytest.approx(case.load().voxels[0, :2, :2, :2].mean(), abs=1e-3)


def long(index: int, n: int) -> Case:
    """A scan of 8x8x(8 n) voxels: n tiles, the last brighter."""
    voxels = np.random.default_rng(index).normal(size=(1, 8, 8, 8 * n)).astype(np.float32)
    voxels[..., -8:] += 2
    volume = Volume(voxels, np.eye(4), "relative")
    digest = sha256(voxels.tobytes()).hexdigest()
    return Case(f"c{index}", f"p{index}", index % 2, lambda: volume, lambda: digest, "train")


TILED = replace(MAPS, name="toy_tiled", tiling="tiles", overlap=0.0)


class Tiled(Corners):
    card: EncoderCard = TILED

    def __init__(self) -> None: ...


def test_tiles_are_tokens_where_a_scan_has_several() -> None:
    found = tokens_of(Tiled(), [long(0, 3), long(1, 1)], None)
    assert found.of == "tiles" and [len(v) for v in found.values] == [3, 1]
    assert int(found.values[0][:, 0].argmax()) == 2


def test_where_every_scan_is_one_tile_its_positions_are_tokens() -> None:
    found = tokens_of(Tiled(), [long(0, 1), long(1, 1)], None)
    assert found.of == "positions" and found.values[0].shape == (8, 2)


def test_without_maps_and_tiles_there_is_one_token() -> None:
    case, _ = study_attentive.corner(0, False)
    encoder = ToyEncoder()
    found = tokens_of(encoder, [case], None)
    assert found.of == "whole" and found.values[0].shape == (1, 2)


def test_a_map_that_is_not_finite_is_refused() -> None:
    class Broken(Corners):
        def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [super().maps(x)[0] / 0]

    with pytest.raises(EncoderError, match="NaN or inf"):
        tokens_of(Broken(), [study_attentive.corner(0, False)[0]], None)


def test_the_order_of_the_cases_does_not_reach_the_encoder() -> None:
    class Counting(Corners):
        def __init__(self) -> None:
            object.__setattr__(self, "met", [])

        def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
            self.met.append(float(x.mean()))
            return super().maps(x)

    cases = few()[:8]
    met = []
    for order in (cases, cases[::-1]):
        encoder = Counting()
        values = tokens_of(encoder, order, None).values
        met.append(encoder.met)
        np.testing.assert_allclose(
            values[0], tokens_of(Corners(), [order[0]], None).values[0], atol=1e-6
        )
    assert met[0] == met[1]


# --- the study -------------------------------------------------------------------------------


def test_attention_looks_where_the_answer_is(tmp_path: Path) -> None:
    made = [
        study_attentive.corner(i, bool(i % 2), side, even=False)
        for i, side in enumerate(["train"] * 50 + ["val"] * 20 + ["test"] * 30)
    ]
    cases, where = [case for case, _ in made], {case.id: place for case, place in made}
    table = attentive.AttentiveStudy().run(setting(tmp_path, Corners(), cases))
    bright = table[table["target"] == 1]
    hits = [
        int(np.argmax(a)) == where[c]
        for a, c in zip(bright["attention"], bright["case"], strict=True)
    ]
    assert np.mean(hits) > 0.95
    assert all(sum(a) == pytest.approx(1, abs=1e-5) for a in table["attention"])


def test_three_seeds_are_three_repeats_that_differ(tmp_path: Path, quick: None) -> None:
    table = attentive.AttentiveStudy().run(setting(tmp_path, Corners(), few()))
    assert sorted(set(table["repeat"])) == [0, 1, 2] and set(table["fold"]) == {0}
    by_seed = [part.sort_values("case")["p1"].to_numpy() for _, part in table.groupby("repeat")]
    assert np.abs(by_seed[0] - by_seed[1]).max() > 1e-4
    assert table.groupby("case")["p1"].count().eq(3).all()


def test_several_seeds_are_scored_by_the_crossed_bootstrap(tmp_path: Path, quick: None) -> None:
    table = attentive.AttentiveStudy().run(setting(tmp_path, Corners(), few()))
    about = predictions.Provenance(
        "toy", "0", "toy", 1, "attentive", 1, "classification", 2, False, False, 0.0, "cpu", "",
        "", ""
    )  # fmt: skip
    stored, back = predictions.from_parquet(predictions.to_parquet(table, about))
    assert stored["attention"].map(len).eq(8).all()
    rows = {row.metric: row for row in evaluate.score(stored, back).results}
    from sklearn.metrics import roc_auc_score

    each = [roc_auc_score(part["target"], part["p1"]) for _, part in table.groupby("repeat")]
    brier = rows["brier"]
    assert rows["auroc"].score == pytest.approx(np.mean(each))
    assert brier.low is not None and brier.high is not None and brier.score is not None
    assert brier.low < brier.score < brier.high
    assert brier.spread is not None and brier.spread > 0


def test_under_cross_validation_every_case_is_tested_once_per_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attentive, "EPOCHS", 1)
    card = replace(CARD, counts={"cases": 44, "patients": 44})
    cases = [replace(case, split=None) for case in few()]
    table = attentive.AttentiveStudy().run(setting(tmp_path, Corners(), cases, card))
    assert sorted(set(table["repeat"])) == [0, 1, 2] and table["fold"].nunique() == 5
    assert table.groupby(["repeat", "case"]).size().eq(1).all()
    assert len(table) == 3 * 44


def test_a_value_is_answered_in_its_own_unit(tmp_path: Path) -> None:
    card = replace(CARD, kind="regression", classes=(), metric="mae")
    rng = np.random.default_rng(0)
    cases = []
    for i, side in enumerate(SIDES * 2):
        value = float(rng.normal())
        voxels = np.full((1, 8, 8, 8), value, np.float32)
        voxels += rng.normal(size=voxels.shape).astype(np.float32) * 0.3
        volume = Volume(voxels, np.eye(4), "relative")
        cases.append(
            Case(f"c{i}", f"p{i}", 50 + 10 * value, lambda v=volume: v, lambda i=i: f"{i}", side)  # type: ignore[arg-type]
        )
    table = attentive.AttentiveStudy().run(setting(tmp_path, Corners(), cases, card))
    assert np.abs(table["value"] - table["target"]).mean() < 3 < 0.5 * table["target"].std()


def test_neither_the_targets_of_test_nor_other_test_scans_matter(
    tmp_path: Path, quick: None
) -> None:
    cases = few()
    first = attentive.AttentiveStudy().run(setting(tmp_path, Corners(), cases))
    kept = next(i for i, c in enumerate(cases) if c.split == "test")
    other = [
        replace(study_attentive.corner(500 + i, True)[0], id=c.id, split="test", target=1)
        if c.split == "test" and i != kept
        else c
        for i, c in enumerate(cases)
    ]
    second = attentive.AttentiveStudy().run(setting(tmp_path / "b", Corners(), other))
    one, same = (t[t["case"] == cases[kept].id]["p1"].to_numpy() for t in (first, second))
    np.testing.assert_allclose(one, same, atol=1e-6)


def data(n_classes: int = 2) -> attentive.Data:
    rng = np.random.default_rng(0)
    tokens = [rng.normal(size=(1 + i % 4, 3)).astype(np.float32) for i in range(len(SIDES))]
    return attentive.prepared(
        tokens, np.arange(len(SIDES)) % 2.0, Trial(0, 0, np.array(SIDES)), n_classes
    )


def test_test_targets_are_hidden_and_padding_gets_no_attention(quick: None) -> None:
    made = data()
    assert (made.target[made.test] == -1).all() and (made.target[made.train] >= 0).all()
    assert np.isnan(data(0).target[made.test]).all()
    (found,) = attentive.trained(made, [0])
    lengths = [1 + row % 4 for row in made.test]
    assert [len(a) for a in found.attention] == lengths
    # what lies in the padding reaches nobody
    x = np.where(made.there[..., None], made.x, np.float32(1e3))
    (again,) = attentive.trained(made._replace(x=x), [0])
    np.testing.assert_allclose(again.values, found.values, atol=1e-6)


def test_networks_that_are_trained_side_by_side_are_those_trained_alone(quick: None) -> None:
    made = data()
    together = attentive.trained(made, [0, 1])
    for seed in (0, 1):
        (alone,) = attentive.trained(made, [seed])
        np.testing.assert_allclose(alone.values, together[seed].values, atol=1e-5)
        assert (alone.decay, alone.epoch) == (together[seed].decay, together[seed].epoch)


def test_the_pooling_is_that_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    v, u, w, out = (rng.normal(size=s).astype(np.float32) for s in ((3, 5), (3, 5), (5, 1), (3, 2)))
    h = rng.normal(size=(4, 3)).astype(np.float32)
    score = (np.tanh(h @ v + 0.1) / (1 + np.exp(-(h @ u + 0.2)))) @ w[:, 0]
    a = np.exp(score) / np.exp(score).sum()
    weights = {k: torch.from_numpy(m)[None] for k, m in zip("vuw", (v, u, w), strict=True)}
    weights |= {"out": torch.from_numpy(out)[None], "v_bias": torch.full((1, 1, 5), 0.1)}
    weights |= {"u_bias": torch.full((1, 1, 5), 0.2), "out_bias": torch.full((1, 1, 2), 0.3)}
    x = torch.from_numpy(h)[None, None]
    answer, attention = attentive.pooled(x, torch.ones(1, 1, 4, dtype=torch.bool), weights)
    np.testing.assert_allclose(attention[0, 0], a, rtol=1e-5)
    np.testing.assert_allclose(answer[0, 0], (a @ h) @ out + 0.3, rtol=1e-5)


def test_a_side_without_cases_is_refused() -> None:
    for lacking in ("train", "test"):
        sides = np.array(["val" if s == lacking else s for s in SIDES])
        with pytest.raises(ProbeError, match=f"no {lacking} case"):
            attentive.prepared(
                [np.ones((1, 2), np.float32)] * len(sides),
                np.zeros(len(sides)),
                Trial(0, 0, sides),
                2,
            )


def test_a_table_of_this_study_has_the_columns_of_a_probe(tmp_path: Path, quick: None) -> None:
    table = attentive.AttentiveStudy().run(setting(tmp_path, Corners(), few()))
    assert isinstance(table, pd.DataFrame)
    assert {"p0", "p1", "target", "chosen_decay", "chosen_epoch", "tokens"} <= set(table.columns)
    np.testing.assert_allclose(table["p0"] + table["p1"], 1)
    assert set(table["tokens"]) == {"positions"}

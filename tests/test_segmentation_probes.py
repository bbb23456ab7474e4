"""The segmentation studies: what they learn, what they may see, and what they write down."""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tomoprobe.benchmark import probes
from tomoprobe.benchmark.budgets import plan
from tomoprobe.benchmark.cache import FeatureCache
from tomoprobe.benchmark.dense import Level, Pyramid
from tomoprobe.benchmark.dense_cache import Pyramids
from tomoprobe.benchmark.errors import EncoderError, MaskError, ProbeError
from tomoprobe.benchmark.features import FrozenEncoder, identify
from tomoprobe.benchmark.lattice import lattice_of
from tomoprobe.benchmark.probes._components import LEAST_SHARE, MOST, Components
from tomoprobe.benchmark.probes._decoder import Decoder, Reader, predicted
from tomoprobe.benchmark.probes._layers import best_biases, logistic_maps, merged
from tomoprobe.benchmark.probes._segmentation import Coarse, averaged, dice_of, points_of
from tomoprobe.benchmark.probes.segment_decoder import Recipe, SegmentDecoder, train
from tomoprobe.benchmark.probes.segment_linear import SegmentLinear, fitted
from tomoprobe.benchmark.probes.segment_prototype import BUDGET, prototypes
from tomoprobe.benchmark.studies import Setting, Study, trials
from tomoprobe.benchmark.types import Case, TaskCard
from tomoprobe.leaderboard.details import detail_of
from tomoprobe.submissions.load import load
from tomoprobe.tasks import open_cases

from . import toy_segmentation as toy

SHORT = Recipe(steps=6, crop=16, checkpoints=3, seeds=1)


def setting_of(
    folder: Path,
    cases: Sequence[Case] | None = None,
    encoder: FrozenEncoder | None = None,
    card: TaskCard = toy.CARD,
) -> Setting:
    task = replace(toy.task(), card=card)
    found = open_cases(task, None, subset=True)[0] if cases is None else cases
    return Setting(
        card, found, encoder or toy.Digits(), FeatureCache(folder), identify(task, found)
    )


def blocks(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- components --------------------------------------------------------------------------------


def test_components_are_uncorrelated_and_of_unit_variance():
    x = blocks((3000, 5)) @ blocks((5, 80), 1) + blocks((3000, 80), 2)
    found = Components.fit([x[:1000], x[1000:]])
    z = found.apply(x)
    assert z.shape == (3000, MOST)
    np.testing.assert_allclose(np.cov(z.T, bias=True), np.eye(MOST), atol=1e-3)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-4)


def test_components_do_not_depend_on_a_channels_unit_nor_on_the_order_of_parts():
    x = (blocks((500, 6)) @ blocks((6, 6), 1)).astype(np.float64)
    found = Components.fit([x]).apply(x)
    scaled = x * np.array([1, 100, 1e-3, 5, 2, 1]) + 7
    np.testing.assert_allclose(Components.fit([scaled]).apply(scaled), found, atol=2e-3)
    turned = Components.fit([x[250:], x[:250]]).apply(x)
    np.testing.assert_allclose(turned, found, atol=1e-4)


def test_components_of_dead_channels_and_of_rounding_noise_are_left_out():
    x = blocks((500, 2))
    wide = np.column_stack([x, x, np.ones(500), x.sum(1)]).astype(np.float16)
    assert Components.fit([wide[:, :2]]).count == 2
    assert Components.fit([np.column_stack([x, x @ [[1], [2]]])]).count == 2
    assert np.isfinite(Components.fit([wide]).apply(wide)).all()
    constant = Components.fit([np.full((10, 3), 4.0, np.float32)])
    np.testing.assert_array_equal(constant.apply(np.full((2, 3), 9.0)), 0)
    assert 0 < LEAST_SHARE < 1e-3


def test_components_of_a_field_are_those_of_its_points():
    field = blocks((7, 4, 5, 6))
    found = Components.fit([field.reshape(7, -1).T])
    expected = found.apply(field.reshape(7, -1).T).T.reshape(-1, 4, 5, 6)
    np.testing.assert_allclose(found.field(field), expected, atol=1e-5)


def test_maps_that_are_not_finite_are_refused():
    with pytest.raises(ProbeError, match="finite"):
        Components.fit([np.array([[np.nan, 1.0], [0.0, 1.0]])])


# --- the linear layer --------------------------------------------------------------------------


def test_logistic_maps_are_the_layer_that_made_the_labels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 3))
    w, b = np.array([[0.0, 0, 0], [2, -1, 0], [0, 1, 2]]), np.array([0.0, 0.5, -0.5])
    logits = x @ w.T + b
    label = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    ((found_w, found_b),) = logistic_maps(x, label, np.full(4000, 1 / 4000), [1e5], 3)
    np.testing.assert_allclose(found_w - found_w[0], w, atol=0.25)
    np.testing.assert_allclose(found_b - found_b[0], b, atol=0.25)


def test_a_class_that_training_lacks_is_never_predicted():
    x = blocks((100, 2)).astype(float)
    label = np.where(x[:, 0] > 0, 2, 0)
    ((w, b),) = logistic_maps(x, label, np.full(100, 0.01), [10.0], 4)
    found = (x @ w.T + b).argmax(1)
    assert set(found.tolist()) == {0, 2}
    assert (found == label).mean() > 0.9


def pyramid_of(shape: Sequence[int], channels: Sequence[int], factors: Sequence[int]) -> Pyramid:
    lattice = lattice_of(shape, np.eye(4), toy.CARD)
    levels = tuple(
        Level(blocks((c, *(-(-n // f) for n in shape)), f), f, float(f))
        for c, f in zip(channels, factors, strict=True)
    )
    return Pyramid(lattice, levels, blocks((1, *shape), 9), 0)


def test_layer_on_levels_and_then_interpolation_is_the_layer_on_interpolated_features():
    pyramid = pyramid_of((9, 16, 12), (5, 8), (1, 4))
    index = np.argwhere(np.ones(pyramid.lattice.shape, bool))
    channels = pyramid.at(index)
    components = [Components.fit([x]) for x in channels]
    x = np.concatenate([c.apply(v) for c, v in zip(components, channels, strict=True)], axis=1)
    w, b = blocks((3, x.shape[1]), 5).astype(float), np.array([0.1, 0.2, 0.3])
    logits = x @ w.T + b
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = merged([0, 1], components, w, b)(pyramid)
    np.testing.assert_allclose(found.reshape(3, -1).T, expected, atol=1e-4)


def test_biases_are_those_that_dice_wants():
    rng = np.random.default_rng(0)
    truth = (rng.random(4000) < 0.05).astype(int)
    odds = rng.normal(size=4000) + 2 * truth - 4  # too cautious: hardly one is above 0
    logits = np.stack([np.zeros(4000), odds], 1).astype(np.float32)
    case, weight = np.repeat([0, 1], 2000), np.ones(4000)
    best, biases = best_biases(logits, truth, weight, case, 2)
    assert biases[0] == 0 and biases[1] > 1
    assert best > dice_of(truth, logits.argmax(1), weight, case, 2) + 0.1
    assert best == pytest.approx(dice_of(truth, (logits + biases).argmax(1), weight, case, 2))


def test_dice_counts_a_case_only_for_classes_that_it_has():
    truth = np.array([1, 1, 0, 0, 0, 0, 2, 0])
    predicted = np.array([1, 0, 0, 0, 0, 0, 2, 2])
    case = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    # class 1 in case 0: 2 / 3; class 2 in case 1: 2 / 3; in the others neither
    assert dice_of(truth, predicted, np.ones(8), case, 3) == pytest.approx(2 / 3)
    # a voxel of background that stands for three weighs as much as three
    weight = np.array([1, 1, 1, 1, 1, 1, 1, 3.0])
    assert dice_of(truth, predicted, weight, case, 3) == pytest.approx((2 / 3 + 2 / 5) / 2)


# --- points ------------------------------------------------------------------------------------


def test_points_stand_for_all_voxels_of_their_case_and_are_the_same_in_every_run(tmp_path):
    setting = setting_of(tmp_path)
    lattice = Pyramids(setting).of(0).lattice
    points = points_of(setting, 0, lattice, 400)
    labels = toy.labels_of(0)
    assert (labels[tuple(points.index.T)] == points.label).all()
    counts = np.bincount(points.label)
    assert counts.tolist() == [200, 100, 100]
    stood = np.bincount(points.label, points.weight)
    np.testing.assert_allclose(stood, np.bincount(labels.ravel()))
    again = points_of(setting_of(tmp_path, setting.cases[:1]), 0, lattice, 400)
    np.testing.assert_array_equal(again.index, points.index)


def test_a_label_that_the_task_does_not_have_is_refused(tmp_path):
    wrong = toy.labels_of(0)
    wrong[0, 0, 0] = 3
    setting = setting_of(tmp_path, [toy.case(0, "train", wrong)])
    with pytest.raises(MaskError, match="0 to 3"):
        points_of(setting, 0, Pyramids(setting).of(0).lattice, 100)


# --- what a study may see ------------------------------------------------------------------------


def masks(table: pd.DataFrame) -> list[bytes]:
    kept = table[table["mask"].notna()]
    assert len(kept)
    return kept["mask"].tolist()


def studies() -> list[Study]:
    prototype = probes.get("segment_prototype")
    assert isinstance(prototype, Study)
    return [SegmentLinear(), prototype, SegmentDecoder(recipe=SHORT)]


@pytest.mark.parametrize("study", studies(), ids=lambda s: s.name)
def test_labels_of_test_cases_change_no_prediction(study, tmp_path):
    cases = list(setting_of(tmp_path).cases)
    other = [
        toy.case(i, "test", toy.labels_of(i + 50)) if case.split == "test" else case
        for i, case in enumerate(cases)
    ]
    one = study.run(setting_of(tmp_path, cases))
    two = study.run(setting_of(tmp_path, other))
    assert masks(one) == masks(two)
    chosen = [c for c in one.columns if c.startswith("chosen_")]
    pd.testing.assert_frame_equal(one[chosen], two[chosen])
    assert not np.allclose(one["dice_1"], two["dice_1"]), "the labels were read to score"


def test_val_decides_the_biases_and_is_not_trained_on(tmp_path, monkeypatch):
    from tomoprobe.benchmark.probes import segment_linear

    monkeypatch.setattr(segment_linear, "PENALTIES", np.array([100.0]))
    cases = list(setting_of(tmp_path).cases)
    other = [
        toy.case(i, "val", np.zeros((toy.SIDE,) * 3, np.int32)) if c.split == "val" else c
        for i, c in enumerate(cases)
    ]
    found = []
    for which in (cases, other):
        # a coarse oracle, whose best biases are not 0
        setting = setting_of(tmp_path, which, toy.Digits(toy.COARSE))
        trial = next(iter(trials(setting.card, setting.cases)))
        found.append(fitted(setting, trial, Pyramids(setting)))
    one, two = found
    assert one.chosen != two.chosen
    np.testing.assert_array_equal(one.headline.weights[0], two.headline.weights[0])


def test_val_only_picks_the_decoders_checkpoint(tmp_path, monkeypatch):
    """Whatever val says, the decoder that goes on training is the same."""
    from tomoprobe.benchmark.probes import segment_decoder

    seen: list[list[np.ndarray]] = []

    def watched(scores: Sequence[float]):
        told, states = iter(scores), []
        seen.append(states)

        def _dice(model: Decoder, *_: object) -> float:
            states.append(model.head.weight.detach().numpy().copy())
            return next(told)

        return _dice

    setting = setting_of(tmp_path)
    trial = next(iter(trials(setting.card, setting.cases)))
    kept = []
    for scores in ([0.1, 0.9, 0.3], [0.9, 0.1, 0.3]):
        monkeypatch.setattr(segment_decoder, "_val_dice", watched(scores))
        trained, chosen = train(setting, trial, Pyramids(setting), 0, SHORT)
        kept.append((chosen["step"], trained.model.head.weight.detach().numpy()))
    np.testing.assert_array_equal(seen[0], seen[1])
    assert [step for step, _ in kept] == [4.0, 2.0]
    np.testing.assert_array_equal(kept[0][1], seen[0][1])
    np.testing.assert_array_equal(kept[1][1], seen[0][0])


# --- answers -----------------------------------------------------------------------------------


def test_a_row_keeps_the_label_map_on_the_images_voxels(tmp_path):
    table = SegmentLinear().run(setting_of(tmp_path))
    row = table[(table["refit"] == -1)].iloc[0]
    shape = tuple(map(int, row["shape"].split("x")))
    labels = np.frombuffer(zlib.decompress(row["mask"]), np.uint8).reshape(shape)
    truth = toy.labels_of(int(row["case"].removeprefix("boxes")))
    assert labels.shape == truth.shape
    assert (labels == truth).mean() > 0.99
    assert row["forward_voxels"] >= toy.SIDE**3
    assert sorted(set(table["refit"])) == [-1, 0, 1, 2]
    assert set(table["case"]) == {case.id for case in toy.cases() if case.split == "test"}


def test_a_picture_of_the_first_test_case_is_drawn_where_pictures_are_wanted(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    SegmentLinear().run(replace(setting_of(tmp_path), pictures=folder))
    (picture,) = folder.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_costs_no_score(tmp_path, caplog):
    ready = setting_of(tmp_path)
    table = SegmentLinear().run(replace(ready, pictures=tmp_path / "not" / "there"))
    pd.testing.assert_frame_equal(table, SegmentLinear().run(ready))
    assert "No picture of case 'boxes" in caplog.text


def test_cross_validation_tests_everybody_once(tmp_path):
    card = replace(toy.CARD, name="toy_boxes_cv", counts={"cases": 10, "patients": 10})
    cases = [replace(toy.case(i, "train"), split=None) for i in range(10)]
    table = SegmentLinear().run(setting_of(tmp_path, cases, card=card))
    headline = table[table["refit"] == -1]
    assert sorted(headline["case"]) == sorted(case.id for case in cases)
    assert headline["fold"].nunique() > 1
    assert (headline["dice_1"] > 0.9).all()


@pytest.mark.parametrize("name", ["segment_linear", "segment_prototype", "segment_decoder"])
def test_an_encoder_without_maps_is_refused(name, tmp_path):
    blind = toy.Zeros(replace(toy.CONSTANT, strides=()))
    study = probes.get(name)
    assert isinstance(study, Study)
    with pytest.raises(EncoderError, match="no maps"):
        study.run(setting_of(tmp_path, encoder=blind))


# --- prototypes --------------------------------------------------------------------------------


def test_a_segmentation_draws_volumes_and_not_volumes_per_class():
    card = toy.CARD
    supports = plan(card, toy.cases(), BUDGET).supports
    assert {(s.size, len(s.train)) for s in supports} == {(1, 1), (3, 3), (5, 5)}
    assert {s.draw for s in supports} == set(range(5))


def test_a_class_that_no_volume_shows_is_never_the_nearest(tmp_path):
    setting = setting_of(tmp_path)
    pyramid = Pyramids(setting).of(0)
    points = points_of(setting, 0, pyramid.lattice, 400)
    only = np.flatnonzero(points.label != 2)
    fewer = replace(
        points, index=points.index[only], label=points.label[only], weight=points.weight[only]
    )
    found = prototypes([pyramid.at(fewer.index)], [fewer], 3)(pyramid)
    assert not (found.argmax(0) == 2).any()
    assert ((found.argmax(0) == 1) == (toy.labels_of(0) == 1))[toy.labels_of(0) != 2].all()


# --- the decoder -------------------------------------------------------------------------------


def test_the_decoder_has_the_same_size_whatever_the_encoder():
    many = Decoder([64, 64, 64], [1, 4, 16], 1, 3).sizes()
    none = Decoder([], [], 1, 3).sizes()
    assert many[0] == none[0] > 10 * none[1]
    assert many[1] == none[1] + 3 * 64 * 16


def test_an_image_is_predicted_in_blocks_without_seams():
    import torch

    torch.manual_seed(0)
    pyramid = pyramid_of((90, 20, 20), (3, 4), (2, 32))
    components = tuple(
        Components.fit([level.values.reshape(len(level.values), -1).T]) for level in pyramid.levels
    )
    reader = Reader(components, (2, 16), 0.0, 1.0, 32)
    example = reader(pyramid)
    model = Decoder([c.count for c in components], reader.factors, 1, 3)
    whole = predicted(model, example, "cpu", block=128)
    assert whole.shape == (3, *pyramid.lattice.shape)
    np.testing.assert_allclose(predicted(model, example, "cpu", block=48), whole, atol=1e-4)


def test_constant_maps_leave_the_decoder_the_image(tmp_path):
    blind = toy.Zeros(toy.CONSTANT)
    table = SegmentDecoder(recipe=SHORT).run(setting_of(tmp_path, encoder=blind))
    # 16 for the image, 16 for the one component of the constant
    assert table["chosen_projection_parameters"].iloc[0] == 32
    found = detail_of(table, None)
    assert found is not None and found.projection_parameters == 32
    assert found.decoder_parameters is not None and found.decoder_parameters > 1000
    assert table["dice_1"].between(0, 1).all()


# --- the floor ---------------------------------------------------------------------------------


def test_patches_are_neighbours_and_coordinates():
    import torch

    encoder = load("patches")
    x = torch.from_numpy(blocks((1, 1, *encoder.card.grid.shape)))
    (found,) = encoder.maps(x)
    assert found.shape == (1, 30, *encoder.card.grid.shape)
    around = x[0, 0, 9:12, 19:22, 29:32].flatten()
    torch.testing.assert_close(found[0, :27, 10, 20, 30], around)
    np.testing.assert_allclose(found[0, 27:, 0, -1, 0], [-1, 1, -1])
    products = (found[0].flatten(1) @ found[0].flatten(1).T) / found[0, 0].numel()
    torch.testing.assert_close(
        encoder.embed(x)[0, 30:], products[tuple(torch.triu_indices(30, 30))], atol=1e-4, rtol=1e-3
    )


def test_coarse_maps_are_those_of_4_mm_or_means_over_such_blocks():
    rng = np.random.default_rng(0)
    fine = Level(rng.random((2, 10, 8, 9)).astype(np.float32), 1, 1.0)
    coarse = averaged(fine, (1.0, 1.0, 1.0), 4.0)
    assert (coarse.factor, coarse.mm, coarse.values.shape) == (4, 4.0, (2, 3, 2, 3))
    np.testing.assert_allclose(
        coarse.values[:, 0, 0, 0], fine.values[:, :4, :4, :4].mean((1, 2, 3)), rtol=1e-5
    )


def test_an_encoder_of_fine_maps_alone_has_a_coarse_score_too(tmp_path):
    setting = setting_of(tmp_path)
    made = Coarse(Pyramids(setting), 4.0).of(0)
    assert made.levels and all(level.mm >= 4.0 for level in made.levels)

"""The training loop: the same numbers whatever happens on the way, and honest files."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tomoprobe.benchmark.errors import (
    DataError,
    EncoderError,
    StorageError,
    TrainingError,
    UnknownNameError,
)
from tomoprobe.submissions import pretraining
from tomoprobe.submissions.baselines import _pretraining, _publishing, _training_loop
from tomoprobe.submissions.baselines._batches import Plan, batches
from tomoprobe.submissions.baselines._loss_curve import loss_curve
from tomoprobe.submissions.baselines._optimisation import learning_rate, weight_decay
from tomoprobe.submissions.baselines._synthesis import few_shapes
from tomoprobe.submissions.baselines._synthetic_volumes import SyntheticVolumes
from tomoprobe.submissions.baselines._volumes import axial_slice, volumes
from tomoprobe.submissions.load import load

from . import toy_pretext
from .toy_pretext import PRESET, ToyObjective, ToyPretext, ToySource, run

ROOT = Path(__file__).parents[1]
TIMES = ("samples_per_s", "waited_share")


def script(*arguments, launcher=()):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, "-m", "tests.toy_pretext", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def log(out):
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def state(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)["objective"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- resuming --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_started_again_ends_with_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole, options={"draws": True})
    # between two checkpoints: steps 5 to 7 are in the log and have to be done again
    assert script(killed, "--draws", "--die-at", 7).returncode == -signal.SIGKILL
    assert len(log(killed)) == 7
    assert not (killed / "model.safetensors").exists()
    # what a kill in the middle of a line leaves
    with (killed / "log.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    ended = script(killed, "--draws")
    assert ended.returncode == 0, ended.stderr
    assert log(killed) == log(whole)
    assert same(state(killed), state(whole))
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_seeds_and_draws_of_the_loss_matter(tmp_path):
    first = run(tmp_path / "a", options={"draws": True})
    again = run(tmp_path / "b", options={"draws": True})
    other = run(tmp_path / "c", options={"draws": True}, seed=1)
    without = run(tmp_path / "d")
    assert same(load_file(first.weights), load_file(again.weights))
    assert not same(load_file(first.weights), load_file(other.weights))
    assert log(tmp_path / "a")[0]["loss"] != log(tmp_path / "d")[0]["loss"]
    assert without.steps == 12


def test_a_finished_run_is_not_trained_again(tmp_path):
    run(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    told = []
    run(tmp_path, progress=lambda *step: told.append(step))
    assert told == []
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_another_runs_checkpoint_is_refused_with_what_differs(tmp_path):
    run(tmp_path)
    with pytest.raises(TrainingError, match=r"differs in seed \(seed: 0, now 1\)"):
        run(tmp_path, seed=1)
    with pytest.raises(TrainingError, match="differs in preset"):
        run(tmp_path, learning_rate=0.02)
    assert run(tmp_path, seed=1, resume=False).steps == 12
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 1


def test_a_damaged_checkpoint_is_named(tmp_path):
    run(tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(TrainingError, match=r"checkpoint\.pt cannot be read"):
        run(tmp_path)


# --- failing ---------------------------------------------------------------------------------


def test_a_loss_of_nan_names_its_step_and_keeps_the_checkpoint_before(tmp_path):
    with pytest.raises(TrainingError, match="loss of step 7 of 12 is nan"):
        run(tmp_path, options={"nan_from": 0.5})
    stored = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert stored["step"] == 4
    assert all(torch.isfinite(value).all() for value in stored["objective"].values())


def test_gradients_that_are_not_finite_are_caught_before_they_reach_a_weight(tmp_path, monkeypatch):
    class Exploding(ToyObjective):
        def before_step(self, progress):
            if progress >= 0.5:
                self.head.weight.grad.fill_(torch.inf)

    monkeypatch.setattr(toy_pretext.ToyPretext, "objective", lambda _, preset: Exploding(preset))
    with pytest.raises(TrainingError, match="gradient norm of step 7"):
        run(tmp_path)


def stop_at_5(done, total, record):
    if done == 5:
        raise KeyboardInterrupt


def test_a_full_disk_leaves_no_half_file_and_the_last_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=stop_at_5)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    # files may not grow beyond this: more than the log, less than a checkpoint
    ended = script(tmp_path, "--file-limit", len(before) // 2)
    assert "StorageError" in ended.stderr
    assert "checkpoint.pt cannot be written" in ended.stderr
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert list(tmp_path.glob(".*")) == []
    assert run(tmp_path).steps == 12


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be made"):
        run(tmp_path / "file" / "run")


# --- samples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_samples_depend_on_seed_step_and_place_alone(kind):
    plan = Plan(ToySource(), 0, 2, 5, 4)
    made = [batch["brightness"].tolist() for batch in batches(plan, 2, kind)]
    expected = [
        [float(np.float32(np.random.default_rng([0, t, i]).normal())) for i in range(4)]
        for t in range(2, 5)
    ]
    assert made == expected


def test_two_processes_share_the_samples_of_one_with_twice_the_batch():
    def values(batch, process):
        plan = Plan(ToySource(), 3, 0, 1, batch, process)
        return next(iter(batches(plan, 1)))["brightness"].tolist()

    assert values(2, 0) + values(2, 1) == values(4, 0)


def test_a_source_that_fails_ends_the_run_with_its_own_error(tmp_path):
    class Broken(ToySource):
        def sample(self, rng):
            raise DataError("image 7 is damaged")

    with pytest.raises(DataError, match="image 7"):
        run(tmp_path, source=Broken())


# --- several processes -----------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_of_torchrun_train_one_model_as_one_process_with_twice_the_batch(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = script(tmp_path / "two", "--batch", 2, "--ranks", launcher=launcher)
    assert two.returncode == 0, two.stderr
    run(tmp_path / "one", batch=4)
    ranks = [torch.load(tmp_path / "two" / f"rank{i}.pt", weights_only=True) for i in range(2)]
    assert same(*ranks)
    for a, b in zip(log(tmp_path / "two"), log(tmp_path / "one"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3, abs=1e-5)
    assert log(tmp_path / "two")[0]["loss"] == pytest.approx(log(tmp_path / "one")[0]["loss"])
    assert load(str(tmp_path / "two" / "manifest.toml")).card.name == "toy_tiny"


# --- the optimiser ---------------------------------------------------------------------------


def test_the_learning_rate_rises_linearly_and_falls_as_asked():
    cosine = replace(PRESET, steps=14, warmup=4, learning_rate=2.0, final_rate=0.1)
    rates = [learning_rate(cosine, step) for step in range(15)]
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[9] == pytest.approx(2 * (0.1 + 0.9 / 2))  # half way down
    assert rates[14] == pytest.approx(0.2)
    linear = replace(PRESET, steps=14, warmup=4, learning_rate=2.0, schedule="linear")
    assert learning_rate(linear, 9) == pytest.approx(1.0)
    assert learning_rate(linear, 14) == pytest.approx(0.0)


def test_weight_decay_follows_half_a_cosine():
    assert weight_decay(PRESET, 0) == pytest.approx(0.04)
    assert weight_decay(PRESET, 3) == pytest.approx(0.4 - 0.36 * (1 + math.cos(math.pi / 4)) / 2)
    assert weight_decay(PRESET, 12) == pytest.approx(0.4)


def test_sgd_with_decay_clipping_and_rates_does_the_step_worked_out_by_hand(tmp_path):
    class Line(_pretraining.Objective):
        """Gradient 3 for the matrix, 4 for the vector: norm 5, clipped to 1."""

        def __init__(self):
            super().__init__()
            self.network = ToyObjective(PRESET).network.requires_grad_(False)
            self.matrix = torch.nn.Parameter(torch.full((1, 1), 2.0))
            self.vector = torch.nn.Parameter(torch.full((1,), 2.0))

        def loss(self, batch, progress):
            return 3 * self.matrix.sum() + 4 * self.vector.sum(), {}

        def parameters_to_train(self):
            decayed, plain = super().parameters_to_train()
            return [decayed, {**plain, "rate": 0.5}]

        def encoder(self):
            return self.network

    class LinePretext(ToyPretext):
        def objective(self, preset):
            return Line()

    preset = replace(PRESET, steps=1, warmup=0, learning_rate=0.1, clip=1.0, optimizer="sgd")
    _training_loop.train(LinePretext(), preset, ToySource(), tmp_path, preset_name="tiny")
    trained = state(tmp_path)
    assert trained["matrix"].item() == pytest.approx(2 - 0.1 * (0.6 + 0.04 * 2), rel=1e-5)
    assert trained["vector"].item() == pytest.approx(2 - 0.05 * 0.8, rel=1e-5)
    assert log(tmp_path)[0]["gradient_norm"] == pytest.approx(5.0)


# --- what is left ----------------------------------------------------------------------------


def test_the_run_leaves_a_submission_that_holds_the_teacher_in_half_precision(tmp_path):
    trained = run(tmp_path)
    loaded = load(str(trained.manifest))
    stored = state(tmp_path)
    for key, value in load_file(trained.weights).items():
        assert value.dtype == torch.float16
        assert torch.equal(value, stored[f"teacher.{key}"].half())
    assert loaded.card.title == 'A "toy"'
    assert loaded.card.grid.spacing == (1.0, 1.0, 2.0)
    assert re.search("12 steps, 48 samples of generated cubes; .* on 1 x CPU", loaded.card.note)
    assert "Not the authors' weights" in loaded.card.note
    image = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    objective = ToyObjective(PRESET)
    objective.load_state_dict(stored)
    expected = objective.teacher.embed(image)
    assert torch.allclose(loaded.embed(image), expected, atol=1e-2)


def test_weights_beyond_half_precision_are_refused(tmp_path):
    network = ToyObjective(PRESET).network
    with torch.no_grad():
        next(network.parameters()).fill_(1e6)
    with pytest.raises(TrainingError, match="half precision"):
        _publishing.publish(ToyPretext(), PRESET, "toy_tiny", network, tmp_path, "")
    assert list(tmp_path.iterdir()) == []


def test_the_run_states_its_flops_and_parameters(tmp_path):
    run(tmp_path)
    facts = json.loads((tmp_path / "run.json").read_text())
    objective = ToyObjective(PRESET)
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    assert facts["parameters_trained"] == trained
    # the head alone: 4 samples, 12 features, forward and the gradient of weights and input
    assert facts["flops_per_step_and_process"] > 3 * 2 * 4 * 12


def test_measuring_flops_leaves_no_trace_in_the_training(tmp_path, monkeypatch):
    run(tmp_path / "measured", options={"draws": True})
    monkeypatch.setattr(_training_loop._Run, "_flops", lambda self: None)
    run(tmp_path / "unmeasured", options={"draws": True})
    assert same(state(tmp_path / "measured"), state(tmp_path / "unmeasured"))


def test_the_curve_says_that_it_averages():
    svg = loss_curve([(i + 1, 1.0 / (i + 1)) for i in range(1000)], "toy <1>")
    assert svg.count('class="line"') == 199
    assert "Each point is the mean of 5 steps" in svg
    assert "toy &lt;1&gt;" in svg
    assert "NaN" not in loss_curve([(1, 2.0)], "one step")


# --- volumes ---------------------------------------------------------------------------------

TABLES = {
    "scanner": {"type": "ZScore"},
    "HU": {"type": "Window", "low": -1000.0, "high": 1000.0},
}


def write(path, voxels, spacing=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    nibabel.Nifti1Image(voxels.astype(np.float32), affine).to_filename(path)


def test_ct_and_mr_of_a_folder_are_told_apart_and_scaled_as_on_the_card(tmp_path):
    ct = np.full((6, 6, 6), -1000.0)
    ct[2:4] = 500.0
    write(tmp_path / "a" / "ct.nii.gz", ct)
    write(tmp_path / "b" / "mr.nii.gz", np.random.default_rng(0).uniform(0, 900, (6, 6, 6)))
    (tmp_path / "notes.txt").write_text("no image")
    write(tmp_path / ".hidden.nii.gz", ct)
    source = volumes([tmp_path], intensity=TABLES)
    assert len(source) == 2
    assert sorted(np.unique(source.at(0))) == [0.0, 0.75]
    assert source.at(1).max() < 3
    assert source.describe() == f"2 images of {tmp_path.name}"


def test_volumes_are_resampled_to_one_spacing_and_kept_within_the_bound(tmp_path):
    for i in range(3):
        write(tmp_path / f"{i}.nii", np.random.default_rng(i).uniform(0, 9, (8, 8, 8)), 2.0)
    bound = 2 * 16**3 * 4
    source = volumes([tmp_path], intensity=TABLES, spacing=(1.0, 1.0, 1.0), cache_bytes=bound)
    first = source.at(0)
    assert first.shape == (16, 16, 16)
    assert source.at(0) is first
    source.at(1)
    assert source.at(2) is not source.at(2)  # no room: read anew
    assert np.array_equal(source.at(2), source.at(2))


def test_an_image_of_a_unit_that_the_system_does_not_take_is_named(tmp_path):
    write(tmp_path / "ct.nii", np.full((4, 4, 4), -1000.0))
    source = volumes([tmp_path], intensity={"scanner": {"type": "ZScore"}})
    with pytest.raises(EncoderError, match="in 'HU'"):
        source.at(0)


def test_data_without_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="No image below"):
        volumes([tmp_path], intensity=TABLES)
    with pytest.raises(DataError, match="There is no"):
        volumes([tmp_path / "nothing"], intensity=TABLES)


def test_the_built_in_source_is_of_nobody_scaled_as_the_card_says_and_the_same_for_equal_seeds():
    tables = {"scanner": {"type": "ZScore"}}
    first, again = (SyntheticVolumes.of(tables, (16, 16, 16), 3, 0.5) for _ in range(2))
    one, other = (first.sample(np.random.default_rng(seed)) for seed in (1, 2))
    assert one.shape == (16, 16, 16)
    assert one.dtype == np.float32
    assert np.isfinite(one).all()
    assert not np.array_equal(one, other)
    assert np.array_equal(one, again.sample(np.random.default_rng(1)))


def test_shapes_that_stand_alone_are_shapes_of_the_map():
    labels = torch.arange(8).reshape(2, 2, 2)
    kept = few_shapes(labels, np.random.default_rng(0))
    assert 1 <= len(kept.unique()) - 1 <= 3
    assert bool(((kept == labels) | (kept == 0)).all())
    assert not few_shapes(torch.zeros(2, 2, 2), np.random.default_rng(0)).any()


def test_axial_slices_of_air_are_avoided():
    volume = np.zeros((8, 8, 20), np.float32)
    volume[2:6, 2:6, 5:10] = 1
    rngs = [np.random.default_rng(i) for i in range(50)]
    full = [axial_slice(volume, rng).any() for rng in rngs]
    assert np.mean(full) > 0.85  # one in four slices is, ten are tried: 94 %


# --- commands --------------------------------------------------------------------------------


def test_an_unknown_system_or_preset_is_answered_with_the_nearest(tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match="Did you mean 'coralbay'"):
        pretraining.pretrain("coralbai", "tiny", [], tmp_path, "cpu", 0)
    monkeypatch.setattr(_pretraining, "pretext", lambda name: ToyPretext())
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny'"):
        pretraining.pretrain("toy", "tinny", [], tmp_path, "cpu", 0)


def test_steps_shorten_the_warmup_in_proportion(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_pretraining, "pretext", lambda name: ToyPretext())
    trained = pretraining.pretrain("toy", "tiny", [], tmp_path, "cpu", 0, 4)
    assert trained.steps == 4
    assert json.loads((tmp_path / "run.json").read_text())["preset"]["warmup"] == 1
    assert "toy tiny: step 4 of 4, loss" in capsys.readouterr().err


def test_the_manifest_names_the_folders_that_were_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(_pretraining, "pretext", lambda name: ToyPretext())
    trained = pretraining.pretrain("toy", "tiny", [tmp_path / "my_ct"], tmp_path, "cpu", 0, 2)
    assert load(str(trained.manifest)).card.pretraining == ("my_ct",)

"""What is fit to be evaluated passes the check, as what it is; what only running shows does not."""

import hashlib
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tomoprobe.benchmark.errors import EncoderError, IntakeError, IsolationError
from tomoprobe.benchmark.types import EncoderCard, Grid, MinMax, Window, ZScore
from tomoprobe.submissions import architectures, intake, isolation, onnx_graph, rehearsal
from tomoprobe.submissions._isolated_encoder import IsolatedEncoder
from tomoprobe.submissions.faults import explain
from tomoprobe.submissions.headers import read_header
from tomoprobe.submissions.isolation import Limits
from tomoprobe.submissions.load import load
from tomoprobe.submissions.manifest import parse, write

ARGUMENTS = {"layers": [1, 1, 1, 1], "block_inplanes": [4, 4, 4, 4], "conv1_t_size": 3}


def manifest_text(folder, **changes):
    """TOML of a manifest for a small ResNet."""
    data = {
        "name": "small",
        "title": "Small",
        "authors": "A. Author",
        "license": "MIT",
        "readout": "concat",
        "pretraining": [],
        "architecture": {"name": "resnet", "arguments": ARGUMENTS},
        "weights": {"file": "theirs.safetensors"},
        "grid": {"shape": [16, 16, 16]},
        "intensity": {"HU": {"type": "Window", "low": -1000.0, "high": 1000.0}},
        **changes,
    }
    path = folder / "manifest.toml"
    write(parse({k: v for k, v in data.items() if v is not None}, "test"), path)
    return path.read_text()


def small(dtype=torch.float32):
    torch.manual_seed(0)
    network = architectures.get("resnet").build(
        shape=(16, 16, 16), channels=1, readout="concat", **ARGUMENTS
    )
    return {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).clone()
        for name, tensor in network.state_dict().items()
    }


def test_what_passes_is_the_model_that_is_evaluated(tmp_path):
    text = manifest_text(tmp_path)
    # A decoder of its own, wrappers' prefixes and a name that the server chose change nothing.
    tensors = {f"module.{name}": tensor for name, tensor in small().items()}
    save_file({**tensors, "module.fc.weight": torch.ones(2, 4)}, tmp_path / "upload-1234")
    said = []
    checked = intake.check(
        text, tmp_path / "upload-1234", "weights", isolate=False, log=said.append
    )
    save_file(small(), tmp_path / "theirs.safetensors")
    loaded = load(str(tmp_path / "manifest.toml"))
    assert checked.model_sha == loaded.model_sha
    assert checked.identity == loaded.manifest
    assert checked.card == loaded.card
    assert (
        checked.parameters
        == loaded.card.parameters
        == sum(p.numel() for p in loaded.module.parameters())
    )
    assert checked.manifest.name == "small"
    assert any("dry run passed" in line for line in said)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_pass(dtype, tmp_path):
    save_file(small(dtype), tmp_path / "a.safetensors")
    checked = intake.check(
        manifest_text(tmp_path), tmp_path / "a.safetensors", "weights", isolate=False
    )
    assert checked.card.width == 16


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 3},
        {"architecture": {"name": "intensity"}, "readout": "quantiles"},
    ],
    ids=["seed", "no parameters"],
)
def test_a_model_without_a_file_passes(changes, tmp_path):
    if changes.get("architecture"):
        changes = {**changes, "readout": architectures.get("intensity").READOUTS[0]}
    text = manifest_text(tmp_path, weights=None, **changes)
    checked = intake.check(text, None, "seed", isolate=False)
    assert checked.model_sha == load(str(tmp_path / "manifest.toml")).model_sha


def test_the_promised_sha256_is_compared(tmp_path):
    save_file(small(), tmp_path / "a.safetensors")
    sha = hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    right = manifest_text(tmp_path, weights={"file": "b.safetensors", "sha256": sha})
    assert intake.check(right, tmp_path / "a.safetensors", "weights", isolate=False)
    wrong = right.replace(sha, "0" * 64)
    with pytest.raises(IntakeError) as refused:
        intake.check(wrong, tmp_path / "a.safetensors", "weights", isolate=False)
    assert refused.value.code == "weights-sha256"


def test_values_of_tensors_that_are_not_run_do_not_matter(tmp_path):
    broken = {"fc.weight": torch.full((2, 4), float("nan"))}
    save_file({**small(), **broken}, tmp_path / "a.safetensors")
    text = manifest_text(tmp_path)
    assert intake.check(text, tmp_path / "a.safetensors", "weights", isolate=False)


def test_a_value_in_any_place_of_a_large_tensor_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "_CHUNK", 64)  # bytes: many chunks per tensor
    for place in (0, 15, 16, -1):
        tensors = small()
        tensors["layer4.0.conv1.weight"].view(-1)[place] = float("inf")
        save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(IntakeError) as refused:
            intake.check(
                manifest_text(tmp_path), tmp_path / "a.safetensors", "weights", isolate=False
            )
        assert refused.value.code == "weights-nan"
        assert "layer4.0.conv1.weight" in refused.value.message


@pytest.mark.parametrize(
    "reading", [read_header, onnx_graph.read, lambda path: intake._check_values(path, None, {})]
)
def test_a_disk_that_cannot_be_read_is_not_the_submissions_fault(tmp_path, reading):
    with pytest.raises(OSError, match="No such file") as failed:
        reading(tmp_path / "gone")
    assert explain(failed.value, "check").fault == "platform"


def test_a_machine_that_cannot_isolate_is_not_the_submissions_fault(tmp_path, monkeypatch):
    save_file(small(), tmp_path / "a.safetensors")
    monkeypatch.setattr(isolation, "available", lambda: "no namespaces")
    with pytest.raises(IsolationError, match="no namespaces"):
        intake.check(manifest_text(tmp_path), tmp_path / "a.safetensors", "weights")


@pytest.mark.slow
@pytest.mark.skipif(isolation.available() is not None, reason="no isolation on this machine")
def test_the_dry_run_in_isolation_gives_the_same_model(tmp_path):
    save_file(small(), tmp_path / "a.safetensors")
    text = manifest_text(tmp_path)
    alone = intake.check(text, tmp_path / "a.safetensors", "weights")
    here = intake.check(text, tmp_path / "a.safetensors", "weights", isolate=False)
    assert alone.model_sha == here.model_sha
    assert alone.card == here.card


def test_a_header_says_what_is_in_the_file(tmp_path):
    tensors = {"a.b": torch.ones(2, 3), "c": torch.tensor(1.0), "d": torch.zeros(0, 4).half()}
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    header = read_header(tmp_path / "a.safetensors")
    assert {k: (t.dtype, t.shape) for k, t in header.tensors.items()} == {
        "a.b": ("F32", (2, 3)),
        "c": ("F32", ()),
        "d": ("F16", (0, 4)),
    }
    assert header.metadata == {"format": "pt"}
    assert header.elements == 7
    info = header.tensors["a.b"]
    raw = (tmp_path / "a.safetensors").read_bytes()[header.data_start :]
    assert np.array_equal(np.frombuffer(raw[info.begin : info.end], "<f4"), np.ones(6))


# --- the dry run ----------------------------------------------------------------------------------

CARD = EncoderCard(
    name="toy",
    title="Toy",
    grid=Grid((8, 10, 12)),
    intensity={"HU": Window(-1000, 1000)},
    width=2,
    strides=(4,),
)


class Toy:
    """Mean and SD of each volume; a map of averages."""

    card = CARD

    def embed(self, x):
        flat = x.flatten(1)
        return torch.stack([flat.mean(1), flat.std(1)], dim=1)

    def maps(self, x):
        return [torch.nn.functional.avg_pool3d(x, 4, ceil_mode=True)]


class Noisy(Toy):
    def embed(self, x):
        return super().embed(x) + torch.rand(2)


class BatchNormalised(Toy):
    """As a BatchNorm that was left in training mode: permuting the batch does not show it."""

    def embed(self, x):
        features = super().embed(x)
        return features - features.mean(0)


class InOrder(Toy):
    def embed(self, x):
        return super().embed(x) + torch.arange(len(x))[:, None]


class TooWide(Toy):
    def embed(self, x):
        return super().embed(x).repeat(1, 2)


class NotANumber(Toy):
    def embed(self, x):
        return super().embed(x) * float("nan")


class Failing(Toy):
    def embed(self, x):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\nlong details")


class Refusing(Toy):
    def embed(self, x):
        raise EncoderError("no")


class Stopped(Toy):
    def embed(self, x):
        raise IsolationError("the child used 9 GiB")


class Hungry(Toy):
    def embed(self, x):
        raise MemoryError


class NoMaps(Toy):
    def maps(self, x):
        return []


class CoarseMaps(Toy):
    def maps(self, x):
        return [torch.nn.functional.avg_pool3d(x, 5, ceil_mode=True)]


class BrokenMaps(Toy):
    def maps(self, x):
        return [super().maps(x)[0] / 0]


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (Noisy, "dry-run-unstable"),
        (BatchNormalised, "dry-run-batch"),
        (InOrder, "dry-run-batch"),
        (TooWide, "dry-run-shape"),
        (NotANumber, "dry-run-nan"),
        (Failing, "dry-run-failed"),
        (Refusing, "dry-run-failed"),
        (Hungry, "dry-run-stopped"),
        (NoMaps, "dry-run-maps"),
        (CoarseMaps, "dry-run-maps"),
        (BrokenMaps, "dry-run-nan"),
    ],
)
def test_a_model_that_misbehaves_is_refused(model, code):
    with pytest.raises(IntakeError) as refused:
        rehearsal.rehearse(model(), lambda _: None)
    assert refused.value.code == code
    assert refused.value.stage == "check"
    assert "details" not in str(refused.value)


def test_a_graph_is_checked_in_a_process_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    text = manifest_text(
        tmp_path, architecture=None, readout="embedding", weights=None, onnx={"file": "model.onnx"}
    )
    monkeypatch.setattr(onnx_graph, "read_bytes", Mock(side_effect=AssertionError("parsed here")))
    with pytest.raises(IntakeError) as refused:
        intake.check(text, tmp_path / "model.onnx", "onnx")
    assert refused.value.code == "graph-not-onnx"


def test_a_process_that_breaks_is_not_the_models_fault():
    with pytest.raises(IsolationError, match="9 GiB"):
        rehearsal.rehearse(Stopped(), lambda _: None)


def test_an_error_of_our_own_code_is_not_the_models_fault(tmp_path, monkeypatch):
    """What a network does in its process arrives as an EncoderError."""
    manifest_text(tmp_path, weights=None, seed=1)
    isolated = IsolatedEncoder(tmp_path / "manifest.toml", "cpu", Limits(), True, None)
    monkeypatch.setattr(IsolatedEncoder, "card", CARD)
    for error in (ValueError("ours"), MemoryError("ours")):
        monkeypatch.setattr(isolated, "_ask", Mock(side_effect=error))
        with pytest.raises(type(error), match="ours"):
            rehearsal.rehearse(isolated, lambda _: None)
    monkeypatch.setattr(isolated, "_ask", Mock(side_effect=EncoderError("its")))
    with pytest.raises(IntakeError, match="its") as refused:
        rehearsal.rehearse(isolated, lambda _: None)
    assert refused.value.code == "dry-run-failed"


def test_a_model_that_behaves_passes_and_a_blind_one_is_noted():
    said = []
    rehearsal.rehearse(Toy(), said.append)
    assert not any("hardly sees" in line for line in said)

    class Blind(Toy):
        def embed(self, x):
            return torch.ones(len(x), 2)

    rehearsal.rehearse(Blind(), said.append)
    assert any("hardly sees" in line for line in said)


@pytest.mark.parametrize(
    ("how", "low", "high"),
    [(Window(-1000, 1000, -1, 3), -1, 3), (ZScore(), -2, 2), (MinMax(out_high=255.0), 0, 255)],
)
@pytest.mark.parametrize("shape", [(8, 9, 10), (1, 1, 1), (64, 2, 2)])
def test_phantoms_are_on_the_scale_of_the_card(how, low, high, shape):
    card = EncoderCard(
        name="a",
        title="a",
        grid=Grid(shape),
        intensity={"scanner": how},
        width=1,
        channels=2,
        region=True,
    )
    made = rehearsal.phantoms(card)
    assert made.shape == (3, 3, *shape)
    assert made.dtype == np.float32
    image, mask = made[:, :2], made[:, 2]
    assert image.min() >= low
    assert image.max() <= high
    assert set(np.unique(mask)) <= {0.0, 1.0}
    assert all(one.any() for one in mask)
    assert len({one.tobytes() for one in image}) == 3

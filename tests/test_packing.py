"""A checkpoint on its owner's machine: looked into, packed, and never run."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
import typer
from monai.networks.nets import DenseNet121, SegResNet, SwinUNETR, ViT, resnet10, resnet50
from monai.networks.nets.resnet import ResNet
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tomoprobe.benchmark.errors import IntakeError, ManifestError, StorageError, UnknownNameError
from tomoprobe.submissions import architectures, isolation, pack_commands
from tomoprobe.submissions.blueprints import blueprint
from tomoprobe.submissions.checkpoint_report import report
from tomoprobe.submissions.checkpoints import open_checkpoint
from tomoprobe.submissions.guessing import Guess, guesses
from tomoprobe.submissions.inspecting import fits, inspect, manifest_of
from tomoprobe.submissions.load import load
from tomoprobe.submissions.packing import pack
from tomoprobe.submissions.questions import slug

SHARED = Path(__file__).parents[2] / "shared/weights/allconvunet_tcia"

GIVEN = {
    "authors": "A. Author",
    "license": "MIT",
    "pretraining": ["FLARE22"],
    "grid": {"shape": [32, 32, 32], "spacing": [2.0, 2.0, 2.0]},
    "intensity": {"HU": {"type": "Window", "low": -1000.0, "high": 1000.0}},
}

app = typer.Typer()
app.command()(pack_commands.inspect)
app.command()(pack_commands.pack)


@pytest.fixture(autouse=True)
def not_isolated(monkeypatch):
    """Isolation has tests of its own, and costs seconds for each model."""
    monkeypatch.setattr(isolation, "available", lambda: "not in this test")


def small_resnet(dims=3):
    torch.manual_seed(0)
    return ResNet("basic", [1, 1, 1, 1], [4, 4, 8, 8], spatial_dims=dims, n_input_channels=1)


def small_swin():
    torch.manual_seed(0)
    return SwinUNETR(
        in_channels=1, out_channels=2, feature_size=12, depths=(1, 2, 1, 1), use_v2=True
    )


def text_of(path):
    return "\n".join(report(inspect(path)))


# --- inspect --------------------------------------------------------------------------------------


def shapes(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    ("build", "name", "arguments"),
    [
        (
            lambda: resnet10(n_input_channels=2, num_classes=3, conv1_t_size=5),
            "resnet",
            {"layers": [1, 1, 1, 1], "conv1_t_size": 5, "block": "basic"},
        ),
        (
            lambda: resnet50(n_input_channels=1, shortcut_type="A", bias_downsample=False),
            "resnet",
            {"layers": [3, 4, 6, 3], "block": "bottleneck", "bias_downsample": False},
        ),
        (lambda: small_resnet(2), "slices", {"block_inplanes": [4, 4, 8, 8]}),
        (
            small_swin,
            "swin_unetr",
            {"feature_size": 12, "depths": [1, 2, 1, 1], "num_heads": [3, 6, 12, 24]}
            | {"window_size": 7, "use_v2": True},
        ),
        (
            lambda: SegResNet(init_filters=16, in_channels=4, blocks_down=(1, 3, 2)),
            "segresnet",
            {"init_filters": 16, "blocks_down": [1, 3, 2]},
        ),
        (
            lambda: ViT(
                1,
                (32, 32, 48),
                (16, 16, 16),
                hidden_size=128,
                mlp_dim=96,
                num_layers=2,
                num_heads=2,
                classification=True,
                qkv_bias=True,
            ),
            "vit",
            {"patch_size": 16, "hidden_size": 128, "mlp_dim": 96, "num_layers": 2}
            | {"cls_token": True, "qkv_bias": True},
        ),
    ],
    ids=["resnet10", "resnet50", "resnet in 2D", "SwinUNETR", "SegResNet", "ViT"],
)
def test_networks_of_monai_are_recognised_with_their_arguments(build, name, arguments):
    with torch.device("cpu"):
        best = fits(shapes(build()))[0]
    assert best.exact
    assert best.guess.architecture == name
    assert best.matched == best.wanted
    assert {key: best.guess.arguments[key] for key in arguments} == arguments


def other_arguments(name):
    """Arguments of an architecture that no default hides behind."""
    return {
        "anatomix": {"width": 4, "downs": 2, "output_channels": 5},
        "braindino": {"dim": 48, "depth": 2, "heads": 3, "patch": 8, "storage_tokens": 2},
        "coralbay": {"feature_size": 12, "depths": [1, 1, 2, 1], "window_size": 4},
        "cspr": {"layers": [1, 2, 1, 1], "base_channels": 6, "layer1_downsample": True},
        "resnet": {"layers": [1, 1, 2, 1], "block_inplanes": [3, 5, 7, 9], "conv1_t_size": 5},
        "segresnet": {"init_filters": 16, "blocks_down": [2, 1, 3]},
        "slices": {"layers": [1, 1, 2, 1], "block_inplanes": [3, 5, 7, 9]},
        "swin_unetr": {"feature_size": 24, "depths": [1, 1, 1, 1], "window_size": 5},
        "vismae": {"embed_dim": 24, "depths": [1, 2, 1, 1], "window": 5, "patch": 2},
        "vit": {"patch_size": 8, "hidden_size": 64, "num_heads": 1, "num_layers": 2, "mlp_dim": 30},
    }.get(name)


@pytest.mark.parametrize("name", architectures.names())
def test_arguments_are_told_from_the_tensors_they_make(name):
    architecture = architectures.get(name)
    arguments = other_arguments(name)
    if arguments is None:
        try:
            plan = blueprint(manifest_of(Guess(name), architecture.READOUTS[0]), architecture.build)
        except ManifestError:
            return  # wants a region: no network of weights does
        # A new architecture with weights tells how its arguments are seen, and joins the table.
        assert not plan.tensors
        return
    truth = Guess(name, arguments, shape=(64, 64, 64))
    plan = blueprint(manifest_of(truth, architecture.READOUTS[0]), architecture.build)
    names = {f"net.encoder_q.{key}": tuple(tensor.shape) for key, tensor in plan.tensors.items()}
    guessed = next(iter(guesses(name, names)))
    assert {key: guessed.arguments[key] for key in arguments} == arguments
    again = blueprint(manifest_of(guessed, architecture.READOUTS[0]), architecture.build)
    assert {k: v.shape for k, v in again.tensors.items()} == {
        k: v.shape for k, v in plan.tensors.items()
    }
    # That wrapper is none of the usual: the best fit says what to rename, and fits then.
    best = next(fit for fit in fits(names) if fit.guess.architecture == name)
    assert best.exact
    assert len(best.rename) == 1


def test_what_a_training_script_saved_is_told_apart(tmp_path):
    network = small_resnet()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 1, 16, 16, 16)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": {f"module.{k}": v for k, v in network.state_dict().items()},
        "optimizer_states": [optimizer.state_dict()],
        "epoch": 12,
        "hyper_parameters": {"lr": 0.1},
    }
    torch.save(content, tmp_path / "last.ckpt")
    found = inspect(tmp_path / "last.ckpt")
    assert found.checkpoint.part == "state_dict"
    assert found.exact[0].guess.architecture == "resnet"
    said = text_of(tmp_path / "last.ckpt")
    assert "'epoch': 12" in said
    assert "'optimizer_states': list of 1, 0.1 MB of tensors (state of the training)" in said
    assert "All names begin with 'module.'" in said
    assert "3D network" in said
    assert "1 channel" in said
    assert "conv1_t_stride" in said  # leaves no mark: has to be checked
    assert "tomoprobe pack last.ckpt --architecture resnet" in said


def test_of_teacher_and_student_the_teacher_is_taken(tmp_path):
    teacher, student = small_resnet().state_dict(), small_resnet().state_dict()
    student = {k: v + 1 for k, v in student.items()}
    torch.save({"student": student, "teacher": teacher}, tmp_path / "dino.pth")
    checkpoint = open_checkpoint(tmp_path / "dino.pth")
    assert checkpoint.part == "teacher"
    assert checkpoint.others == ("student",)
    assert torch.equal(checkpoint.tensor("conv1.weight"), teacher["conv1.weight"])
    other = open_checkpoint(tmp_path / "dino.pth", "student")
    assert torch.equal(other.tensor("conv1.weight"), student["conv1.weight"])
    with pytest.raises(IntakeError, match="teacher"):
        open_checkpoint(tmp_path / "dino.pth", "techer")


def test_a_network_that_is_not_registered_is_described_and_sent_to_onnx(tmp_path):
    network = DenseNet121(spatial_dims=3, in_channels=1, out_channels=2, block_config=(1, 1, 1, 1))
    torch.save(network.state_dict(), tmp_path / "dense.pt")
    found = inspect(tmp_path / "dense.pt")
    assert not found.exact
    said = text_of(tmp_path / "dense.pt")
    assert "DenseNet" in said
    assert "No registered architecture fits" in said
    assert "pack --onnx package.module:factory" in said


def test_a_near_miss_names_what_differs(tmp_path):
    tensors = small_resnet().state_dict()
    del tensors["layer3.0.bn1.weight"]
    tensors["layer3.0.conv2.weight"] = torch.ones(8, 8, 1, 1, 1)
    tensors["extra.weight"] = torch.ones(3)
    torch.save(tensors, tmp_path / "near.pt")
    best = inspect(tmp_path / "near.pt").fits[0]
    assert best.guess.architecture == "resnet"
    assert not best.exact
    assert best.missing == ("layer3.0.bn1.weight",)
    assert best.reshaped == ("layer3.0.conv2.weight",)
    assert best.unexpected == ("extra.weight",)
    said = text_of(tmp_path / "near.pt")
    assert "fits exactly" in said
    assert "'layer3.0.bn1.weight'" in said


@pytest.mark.skipif(not SHARED.is_dir(), reason="third-party weights are not here")
def test_a_third_party_state_dict_without_its_network_is_described():
    (path,) = SHARED.glob("*.pth")
    found = inspect(path)
    assert len(found.checkpoint.shapes) == 98
    assert found.anatomy.kinds["Conv3d"] == 17
    assert found.anatomy.kinds["BatchNorm"] == 16
    assert found.anatomy.dimensions == 3
    assert found.anatomy.channels == 1
    assert found.anatomy.stem == "conv0.weight"
    assert set(found.anatomy.joins) == {"conv6dU", "conv6cU", "conv6bU", "conv6U", "conv7U"}
    assert not found.exact
    said = text_of(path)
    assert "884,888" in said
    assert "U-Net" in said
    assert "No registered architecture fits" in said
    assert "pack --onnx" in said


# --- files that are refused -----------------------------------------------------------------------


class Payload:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_that_needs_code_is_refused_with_what_to_do(suffix, new, tmp_path):
    content = {"state_dict": small_resnet().state_dict(), "args": Payload(tmp_path / "canary")}
    path = tmp_path / f"model{suffix}"
    torch.save(content, path, _use_new_zipfile_serialization=new)
    with pytest.raises(IntakeError) as refused:
        inspect(path)
    assert refused.value.code == "checkpoint-needs-code"
    assert "torch.save(c['state_dict'], 'clean.pt')" in refused.value.hint
    assert not (tmp_path / "canary").exists()


def zip_file(path, method=zipfile.ZIP_STORED, **files):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(f"model/{name.replace('__', '/').replace('_', '.')}", content)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (
            lambda p: zip_file(p, zipfile.ZIP_DEFLATED, data_pkl=bytes(9 << 20)),
            "checkpoint-compressed",
        ),
        (lambda p: zip_file(p, data_pkl=b".", code__a_py=b"x"), "checkpoint-torchscript"),
        (lambda p: zip_file(p, readme_txt=b"x"), "not-a-checkpoint"),
        (lambda p: zip_file(p, data_pkl=b"garbage", version=b"3"), "checkpoint-"),
        (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(50)), "checkpoint-broken"),
        (lambda p: p.write_bytes(b"\x1f\x8b\x08" + bytes(50)), "not-a-checkpoint"),
        (lambda p: p.write_bytes(b""), "file-empty"),
        (lambda p: p.write_bytes(b"hello"), "checkpoint-"),
        (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "checkpoint-"),
        (lambda p: torch.save({"epoch": 1}, p), "checkpoint-no-tensors"),
        (lambda p: torch.save(torch.ones(3), p), "checkpoint-no-tensors"),
        (lambda p: None, "file-unreadable"),
    ],
    ids=[
        "bomb",
        "TorchScript",
        "other zip",
        "forged",
        "broken zip",
        "gzip",
        "empty",
        "text",
        "plain pickle",
        "no tensors",
        "one tensor",
        "missing",
    ],
)
def test_what_is_no_checkpoint_is_refused(make, code, tmp_path):
    path = tmp_path / "model.pt"
    make(path)
    with pytest.raises(IntakeError) as refused:
        inspect(path)
    assert refused.value.code.startswith(code)
    assert refused.value.hint


def test_a_truncated_checkpoint_is_refused(tmp_path):
    torch.save(small_resnet().state_dict(), tmp_path / "whole.pt")
    raw = (tmp_path / "whole.pt").read_bytes()
    for size in (100, len(raw) // 2, len(raw) - 10):
        (tmp_path / "cut.pt").write_bytes(raw[:size])
        with pytest.raises(IntakeError) as refused:
            inspect(tmp_path / "cut.pt")
        assert refused.value.code == "checkpoint-broken"


# --- pack -----------------------------------------------------------------------------------------


def packed(source, out, **changes):
    return pack(source, out, {**GIVEN, **changes}, ask=None, log=lambda _: None)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
def test_a_packed_resnet_is_the_network_that_was_saved(suffix, tmp_path):
    network = small_resnet().eval()
    path = tmp_path / f"My Net{suffix}"
    if suffix == ".safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save(
            {"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, path
        )
    found = packed(path, tmp_path / "out")
    assert sorted(p.name for p in found.folder.iterdir()) == ["manifest.toml", "model.safetensors"]
    loaded = load(str(found.folder / "manifest.toml"))
    assert loaded.card.name == "my-net"
    assert loaded.model_sha == found.checked.model_sha
    x = torch.rand(2, 1, 32, 32, 32)
    with torch.no_grad():
        last = network.layer4(
            network.layer3(
                network.layer2(
                    network.layer1(network.maxpool(network.act(network.bn1(network.conv1(x)))))
                )
            )
        )
    assert torch.allclose(loaded.embed(x)[:, -8:], last.mean((2, 3, 4)), atol=1e-6)
    kept = load_file(found.folder / "model.safetensors")
    assert not any(name.startswith(("fc.", "module.")) for name in kept)
    # The facts of the network are in the manifest, for who reads it without torch.
    assert found.checked.manifest.width == loaded.card.width
    assert found.checked.manifest.parameters == loaded.card.parameters


def test_a_packed_swin_unetr_leaves_out_the_decoder(tmp_path):
    torch.save(small_swin().state_dict(), tmp_path / "swin.pt")
    found = packed(tmp_path / "swin.pt", tmp_path / "out")
    assert found.checked.manifest.registered.name == "swin_unetr"
    assert found.checked.card.strides == (2, 4, 8, 16, 32)
    kept = load_file(found.folder / "model.safetensors")
    assert all(name.startswith("swinViT.") for name in kept)


def test_weights_under_other_names_are_renamed(tmp_path):
    tensors = {
        f"net.{k.removeprefix('swinViT.')}": v
        for k, v in small_swin().state_dict().items()
        if k.startswith("swinViT.")
    }
    torch.save(tensors, tmp_path / "a.pt")
    found = packed(tmp_path / "a.pt", tmp_path / "out")
    assert found.checked.manifest.registered.name == "swin_unetr"
    odd = {f"weird.{k}": v for k, v in small_resnet().state_dict().items()}
    torch.save(odd | {"other.x": torch.ones(1)}, tmp_path / "b.pt")
    with pytest.raises(ManifestError, match="inspect"):
        packed(tmp_path / "b.pt", tmp_path / "out-b")
    made = pack(
        tmp_path / "b.pt",
        tmp_path / "out-b",
        GIVEN,
        ask=None,
        log=lambda _: None,
        rename={"weird.": "", "other.": "fc."},
    )
    assert made.checked.manifest.registered.name == "resnet"


def test_a_random_initialisation_is_packed_without_a_file(tmp_path):
    table = {"name": "resnet", "arguments": {"layers": [1, 1, 1, 1]}}
    found = packed(None, tmp_path / "out", architecture=table, seed=1, name="random")
    assert [p.name for p in found.folder.iterdir()] == ["manifest.toml"]
    assert load(str(found.folder / "manifest.toml")).model_sha == found.checked.model_sha


def test_what_is_missing_is_listed(tmp_path):
    torch.save(small_resnet().state_dict(), tmp_path / "a.pt")
    with pytest.raises(ManifestError) as refused:
        pack(tmp_path / "a.pt", tmp_path / "out", {}, ask=None, log=lambda _: None)
    for flag in ("--authors", "--license", "--pretraining", "--hu or --scanner"):
        assert flag in str(refused.value)
    assert "--readout" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_asked_for(tmp_path):
    torch.save(small_resnet().state_dict(), tmp_path / "a.pt")
    answers = {
        "Authors": "A. Author",
        "License": "MIT",
        "Data sets": "FLARE22, AMOS",
        "Voxels": "32",
        "Voxel size": "1,1,2.5",
        "CT": "-160 240",
    }
    asked = []

    def ask(question, default):
        asked.append(question)
        return next((a for q, a in answers.items() if question.startswith(q)), default or "")

    found = pack(tmp_path / "a.pt", tmp_path / "out", {}, ask=ask, log=lambda _: None)
    manifest = found.checked.manifest
    assert manifest.pretraining == ("FLARE22", "AMOS")
    assert manifest.grid.shape == (32, 32, 32)
    assert manifest.grid.spacing == (1, 1, 2.5)
    assert set(manifest.intensity) == {"HU"}
    assert any("concat" in question for question in asked)  # the readouts to choose from
    asked.clear()
    packed(tmp_path / "a.pt", tmp_path / "again")
    assert not asked


def spoilt():
    tensors = small_resnet().state_dict()
    tensors["conv1.weight"][0] = float("nan")
    return tensors


@pytest.mark.parametrize(
    ("tensors", "changes", "error"),
    [
        (spoilt, {}, IntakeError),
        (lambda: small_resnet().state_dict(), {"readout": "lst"}, ManifestError),
        (lambda: small_resnet().state_dict(), {"name": "No Spaces"}, ManifestError),
        (
            lambda: small_resnet().state_dict(),
            {"architecture": {"name": "vit", "arguments": {}}},
            ManifestError,
        ),
        (
            lambda: small_resnet().state_dict(),
            {"architecture": {"name": "resnt", "arguments": {}}},
            UnknownNameError,
        ),
    ],
    ids=["NaN", "readout", "name", "another network", "unknown network"],
)
def test_what_the_server_would_refuse_leaves_no_folder(tensors, changes, error, tmp_path):
    torch.save(tensors(), tmp_path / "a.pt")
    with pytest.raises(error):
        packed(tmp_path / "a.pt", tmp_path / "out", **changes)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_an_interruption_leaves_no_folder(tmp_path):
    torch.save(small_resnet().state_dict(), tmp_path / "a.pt")

    def interrupt(line):
        if line.startswith("dry run:"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(tmp_path / "a.pt", tmp_path / "out", GIVEN, ask=None, log=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_folder_with_something_in_it_is_not_touched(tmp_path):
    torch.save(small_resnet().state_dict(), tmp_path / "a.pt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="--out"):
        packed(tmp_path / "a.pt", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["My Net (fold 1)", "..", "ÄÖ", "a" * 200, "-x-", "0.5mm"])
def test_any_file_name_becomes_a_name_of_a_model(name, tmp_path):
    torch.save(small_resnet().state_dict(), tmp_path / "a.pt")
    table = {"name": "resnet", "arguments": {"layers": [1] * 4, "block_inplanes": [4, 4, 8, 8]}}
    found = packed(None, tmp_path / "out", architecture=table, seed=0, name=slug(name))
    assert found.checked.card.name == slug(name)


# --- the commands ---------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_pack_by_flags_alone(tmp_path):
    torch.save(small_resnet().state_dict(), tmp_path / "a.pt")
    done = run(
        "pack", tmp_path / "a.pt", "--out", tmp_path / "out", "--yes", "--authors", "me",
        "--license", "MIT", "--pretraining", "none", "--hu=-160,240", "--scanner", "zscore",
        "--shape", "32", "--spacing", "2", "--arguments", '{"no_max_pool": true}',
        "--architecture", "resnet", "--note", "x",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    manifest = load(str(tmp_path / "out/manifest.toml")).card
    assert manifest.pretraining == ()
    assert set(manifest.intensity) == {"HU", "scanner"}
    assert manifest.strides == (1, 2, 4, 8)
    # The manifest of one serves as the template of the next.
    again = run(
        "pack", tmp_path / "a.pt", "--out", tmp_path / "two", "--yes", "--manifest",
        tmp_path / "out/manifest.toml", "--name", "two",
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    assert load(str(tmp_path / "two/manifest.toml")).card.name == "two"


@pytest.mark.parametrize(
    "flags",
    [
        ["--arguments", "[1]"],
        ["--arguments", "{"],
        ["--rename", "a"],
        ["--shape", "1,2"],
        ["--hu", "wide"],
        ["--scanner", "robust"],
        ["--pretraining", ","],
    ],
)
def test_a_flag_that_cannot_be_read_says_so(flags, tmp_path):
    torch.save(small_resnet().state_dict(), tmp_path / "a.pt")
    done = run("pack", tmp_path / "a.pt", "--yes", *flags)
    assert isinstance(done.exception, ManifestError)


def test_nothing_to_pack_says_what_there_could_be(tmp_path):
    done = run("pack", "--yes", "--out", tmp_path / "out")
    assert isinstance(done.exception, ManifestError)
    assert "--onnx" in str(done.exception)


def test_inspect_prints_its_findings(tmp_path):
    torch.save(small_resnet().state_dict(), tmp_path / "a.pt")
    done = run("inspect", tmp_path / "a.pt")
    assert done.exit_code == 0, done.output
    assert "fits 'resnet' exactly" in done.output


class Slices(torch.nn.Module):
    """No registered architecture: a convolution on slices."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(1, 6, 3, padding=1)

    def embed(self, x):
        planes = x.movedim(4, 1).flatten(0, 1)  # (B n, 1, h, w)
        found = torch.relu(self.conv(planes)).mean((2, 3))
        return found.unflatten(0, (-1, x.shape[4])).mean(1)


def factory():
    return Slices()


@pytest.mark.slow
def test_a_network_in_python_is_packed_as_a_graph(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    done = run(
        "pack", "--onnx", "test_packing:factory", "--out", tmp_path / "out", "--yes", "--authors",
        "me", "--license", "MIT", "--pretraining", "none", "--hu=-160,240", "--shape", "16,16,8",
    )  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    loaded = load(str(tmp_path / "out/manifest.toml"))
    x = torch.rand(2, 1, 16, 16, 8)
    with torch.no_grad():
        assert torch.allclose(loaded.embed(x), factory().embed(x), atol=1e-4)
    shown = run("inspect", tmp_path / "out/model.onnx")
    assert "embedding of 6 numbers" in shown.output
    assert "would be taken" in shown.output

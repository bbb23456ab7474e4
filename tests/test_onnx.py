"""Networks that are no registered architecture, through ONNX: exported, loaded, equal to Python."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from tomoprobe.benchmark.errors import EncoderError, InstallationError, IntakeError, ManifestError
from tomoprobe.benchmark.features import extract
from tomoprobe.benchmark.types import Case, Encoder, EncoderCard, Grid, Volume, Window, ZScore
from tomoprobe.submissions import onnx_encoder, onnx_limits
from tomoprobe.submissions.faults import explain
from tomoprobe.submissions.load import load
from tomoprobe.submissions.manifest import model_sha, parse, read, write
from tomoprobe.submissions.onnx_encoder import OnnxNetwork
from tomoprobe.submissions.onnx_export import export
from tomoprobe.submissions.onnx_graph import validate
from tomoprobe.submissions.slice_adapter import SliceEncoder
from tomoprobe.submissions.weights import file_sha

GRID = (32, 24, 32)
CARD = EncoderCard("any", "Any", Grid(GRID), {"scanner": ZScore()}, width=16)


class Densest(nn.Module):
    """MONAI's DenseNet, down to its pooled features; DenseNet121 by default."""

    def __init__(self, **sizes):
        super().__init__()
        from monai.networks.nets import DenseNet, DenseNet121

        made = DenseNet if sizes else DenseNet121
        net = made(spatial_dims=3, in_channels=1, out_channels=1, **sizes)
        self.features = net.features
        _settle(self)

    def forward(self, x):
        return torch.relu(self.features(x)).mean((2, 3, 4))


class Unet(nn.Module):
    """MONAI's DynUNet: the bottleneck pooled, and two of its maps."""

    def __init__(self):
        super().__init__()
        from monai.networks.nets import DynUNet

        self.net = DynUNet(3, 1, 4, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16])

    def maps(self, x):
        fine = self.net.input_block(x)
        coarse = self.net.bottleneck(self.net.downsamples[0](fine))
        return [self.net(x), coarse]

    def embed(self, x):
        return self.maps(x)[1].mean((2, 3, 4))


def slices():
    """A plain 2D network on axial slices, whose maps are restacked."""
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    )
    return OnSlices(_settle(net))


class OnSlices(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        b, c, w, h, d = x.shape
        maps = self.net(x.movedim(4, 1).reshape(b * d, c, w, h))
        return maps.amax((2, 3)).reshape(b, d, 16).mean(1)


def _settle(net):
    """Statistics of batch norm that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(1)
    for part in net.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
    return net


def small_densest():
    return Densest(init_features=8, growth_rate=4, block_config=(2, 2, 2))


NETWORKS = {"densenet": small_densest, "dynunet": Unet, "slices": slices}


@dataclass
class Sent:
    """An encoder in Python and the manifest of its graph."""

    python: object
    path: object
    manifest: dict = field(default_factory=dict)


def sent(factory, folder, grid=GRID):
    torch.manual_seed(0)
    python = factory()
    exported = export(python, grid, 1, folder / "model.onnx")
    manifest = {
        "name": "mine",
        "title": "My network",
        "authors": "A. Author",
        "license": "MIT",
        "readout": "embedding",
        "pretraining": [],
        "onnx": {"file": "model.onnx", "sha256": exported.facts.sha256},
        "grid": {"shape": list(grid)},
        "intensity": {"scanner": {"type": "ZScore"}},
    }
    write(parse(manifest, "test"), folder / "manifest.toml")
    return Sent(python.eval(), folder / "manifest.toml", manifest)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports by name, each made once."""
    return cache(lambda name: sent(NETWORKS[name], tmp_path_factory.mktemp(name)))


@pytest.fixture(params=NETWORKS)
def any_sent(request, exported):
    return exported(request.param)


@pytest.fixture
def unet(exported):
    return exported("dynunet")


def volumes(n, shape=GRID):
    return torch.randn((n, 1, *shape), generator=torch.Generator().manual_seed(3))


def assert_close(found, wanted):
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


# --- equal to Python ---------------------------------------------------------------------------


def test_a_graph_gives_what_python_gives(any_sent):
    encoder = load(str(any_sent.path))
    assert isinstance(encoder, Encoder)
    x = volumes(5)
    with torch.no_grad():
        wanted = getattr(any_sent.python, "embed", any_sent.python)(x)
    assert_close(encoder.embed(x), wanted)
    assert wanted.std(0).max() > 1e-3  # volumes are told apart
    assert encoder.card.width == wanted.shape[1]
    assert encoder.card.parameters > 1000


def test_a_graph_runs_twice_and_permuted_with_equal_results(any_sent):
    encoder = load(str(any_sent.path))
    x, order = volumes(4), [2, 0, 3, 1]
    once = encoder.embed(x)
    assert torch.equal(once, encoder.embed(x))
    torch.testing.assert_close(once[order], encoder.embed(x[order]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(once[:1], encoder.embed(x[:1]), rtol=1e-5, atol=1e-6)


def test_maps_come_fine_to_coarse_with_their_strides(unet):
    encoder = load(str(unet.path))
    x = volumes(2)
    with torch.no_grad():
        wanted = unet.python.maps(x)
    found = encoder.maps(x)
    assert encoder.card.strides == (1, 4)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other)


def test_features_of_a_graph_are_extracted_like_any_others(unet):
    encoder = load(str(unet.path))
    rng = np.random.default_rng(0)

    def case(k):
        voxels = rng.normal(size=(1, 40, 30, 36)).astype(np.float32)
        return Case(f"c{k}", f"p{k}", k, lambda: Volume(voxels, np.eye(4), "scanner"), str)

    features = extract(encoder, [case(k) for k in range(3)], None)
    assert features.shape == (3, encoder.card.width)
    assert np.isfinite(features).all()


@pytest.mark.slow
def test_the_whole_densenet121_gives_what_python_gives(tmp_path):
    grid = (32, 32, 32)
    made = sent(Densest, tmp_path, grid)
    encoder, x = load(str(made.path)), volumes(2, grid)
    with torch.no_grad():
        assert_close(encoder.embed(x), made.python(x))
    assert encoder.card.width == 1024


def test_an_adapted_2d_network_is_exported(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    exported = export(SliceEncoder(net, CARD, axis=2), GRID, 1, tmp_path / "s.onnx")
    assert exported.facts.width == 4


def test_an_encoder_that_is_no_module_is_exported(tmp_path):
    class Plain:
        def __init__(self):
            self.net = nn.Sequential(nn.Conv3d(2, 4, 3, 2, 1), nn.Dropout(0.5), nn.BatchNorm3d(4))

        def maps(self, x):
            return [self.net(x)]

        def embed(self, x):
            return pooled(self.net(x))

    plain = Plain()
    exported = export(plain, (9, 8, 7), 2, tmp_path / "s.onnx")
    assert exported.facts.strides == (2,)
    assert exported.difference < 1e-5
    assert plain.net.training  # as it was


# --- identity and manifest -----------------------------------------------------------------------


def test_the_identity_is_that_of_the_graph_and_the_card(unet, tmp_path):
    encoder = load(str(unet.path))
    assert encoder.manifest["onnx"] == file_sha(unet.path.with_name("model.onnx"))
    assert encoder.model_sha == model_sha(json.loads(json.dumps(encoder.manifest)))
    other = tmp_path / "other.toml"
    changes = {"name": "yours", "note": "corrected", "intensity": {"scanner": {"type": "MinMax"}}}
    for given, same in ({"name": "yours"}, True), (changes, False):
        write(parse(unet.manifest | given, "test"), other)
        again = load(str(other), weights=unet.path.with_name("model.onnx"))
        assert (again.model_sha == encoder.model_sha) is same


def test_a_manifest_with_a_graph_reads_back_equal(unet):
    manifest = read(unet.path)
    assert manifest == parse(unet.manifest, "test")
    assert manifest.onnx is not None and manifest.architecture is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"onnx": None}, "exactly one of architecture and onnx"),
        ({"architecture": {"name": "resnet"}}, "exactly one of architecture and onnx"),
        ({"seed": 1}, "remove weights and seed"),
        ({"weights": {"file": "a.safetensors"}}, "remove weights and seed"),
        ({"readout": "last"}, "readout = 'embedding'"),
        ({"onnx": {"file": "../model.onnx"}}, "onnx.file"),
        ({"onnx": {"file": "model.pt"}}, "onnx.file"),
        ({"onnx": {"file": "model.onnx", "sha256": "1"}}, "onnx.sha256"),
    ],
)
def test_a_manifest_has_one_network(unet, changes, says):
    given = {k: v for k, v in (unet.manifest | changes).items() if v is not None}
    with pytest.raises(ManifestError) as refused:
        parse(given, "here.toml")
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"width": 3}, "width: 3 is declared"),
        ({"strides": [1]}, "strides"),
        ({"parameters": 3}, "parameters"),
        ({"grid": {"shape": [32, 32, 32]}}, "grid.shape"),
        ({"channels": 2}, "takes 1 channels"),
        ({"region": True}, "takes 1 channels"),
        ({"onnx": {"file": "model.onnx", "sha256": "0" * 64}}, "promises"),
    ],
)
def test_a_manifest_that_does_not_fit_its_graph_is_refused(unet, tmp_path, changes, says):
    (tmp_path / "model.onnx").write_bytes(unet.path.with_name("model.onnx").read_bytes())
    write(parse(unet.manifest | changes, "test"), tmp_path / "m.toml")
    with pytest.raises(ManifestError) as refused:
        load(str(tmp_path / "m.toml"))
    assert says in str(refused.value)


# --- export --------------------------------------------------------------------------------------


class Forward(nn.Module):
    """A network whose forward is given."""

    def __init__(self, forward):
        super().__init__()
        self.forward = forward


def pooled(x):
    return x.mean((2, 3, 4))


@pytest.mark.parametrize(
    ("forward", "error", "says"),
    [
        pytest.param(
            lambda x: torch.linalg.svdvals(x.flatten(3)[:, 0]), EncoderError, "svd", id="svd"
        ),
        pytest.param(
            lambda x: pooled(x) + pooled(torch.rand_like(x)),
            IntakeError,
            "RandomUniform",
            id="random",
        ),
        pytest.param(
            lambda x: pooled(x) if x.sum() > 0 else -pooled(x), EncoderError, "values", id="branch"
        ),
        pytest.param(lambda x: x, EncoderError, "(B, F)", id="not pooled"),
        pytest.param(lambda x: pooled(x)[:1], EncoderError, "one row for each", id="one"),
        pytest.param(lambda x: pooled(x).cumsum(0), EncoderError, "neighbours", id="neighbours"),
        pytest.param(
            lambda x: torch.stack([pooled(v[None])[0] for v in x]),
            EncoderError,
            "one batch size only",
            id="loop over the batch",
        ),
        pytest.param(
            lambda x: {"embedding": pooled(x), "features": x}, EncoderError, "features", id="name"
        ),
        pytest.param(
            lambda x: {"embedding": pooled(x), "map_2": x}, IntakeError, "map_2", id="stride"
        ),
    ],
)
def test_what_cannot_become_a_graph_says_why(tmp_path, forward, error, says):
    with pytest.raises(error) as refused:
        export(Forward(forward), (16, 16, 16), 1, tmp_path / "m.onnx")
    assert says in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_of_one_batch_size_is_refused(tmp_path):
    def fixed(x):
        return pooled(x).reshape(int(x.shape[0]), 1) if x.shape[0] == 3 else pooled(x)[:2]

    with pytest.raises((EncoderError, IntakeError), match=r"batch|one row"):
        export(Forward(fixed), (16, 16, 16), 1, tmp_path / "m.onnx")


def test_an_export_holds_no_path_of_its_author(unet):
    data = unet.path.with_name("model.onnx").read_bytes()
    assert b".py" not in data and b"monai" not in data


def test_small_tensors_that_decide_shapes_are_followed(tmp_path):
    def forward(x):
        n = x.shape[0]
        fine = nn.functional.interpolate(x, scale_factor=2, mode="trilinear")
        tokens = fine.reshape(n, 8, -1).transpose(1, 2).reshape(n * 16, -1).unflatten(0, (n, 16))
        return {
            "map_2": x[..., ::2, ::2, ::2],
            "embedding": torch.cat([tokens.amax(2), pooled(x).expand(n, 3)], 1),
        }

    facts = export(Forward(forward), (8, 8, 8), 1, tmp_path / "m.onnx").facts
    assert (facts.width, facts.strides) == (19, (2,))
    assert OnnxNetwork(tmp_path / "m.onnx").embed(volumes(11, (8, 8, 8))).shape == (11, 19)


def test_a_factory_is_found_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "my_pooling.py").write_text(
        "import torch\nclass Pool(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return torch.nn.functional.avg_pool3d(x, 4).flatten(1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    facts = export("my_pooling:Pool", (8, 8, 8), 2, tmp_path / "pool.onnx").facts
    assert (facts.channels, facts.shape, facts.width, facts.parameters) == (2, (8, 8, 8), 16, 0)
    assert validate(tmp_path / "pool.onnx") == facts


# --- running -------------------------------------------------------------------------------------


def test_an_array_of_another_shape_is_refused(unet):
    network = OnnxNetwork(unet.path.with_name("model.onnx"))
    with pytest.raises(EncoderError, match="takes"):
        network.embed(volumes(1, (32, 32, 32)))


def test_a_device_that_onnxruntime_lacks_is_named():
    with pytest.raises(InstallationError, match="onnxruntime-gpu") as missing:
        onnx_encoder._providers(torch.device("cuda"), ["CPUExecutionProvider"])
    told, fault = explain(missing.value, "check")
    assert (told.code, fault) == ("worker-installation", "platform")


def test_on_a_gpu_the_gpu_is_used():
    providers = onnx_encoder._providers(
        torch.device("cuda:1"), ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    assert providers[0][0] == "CUDAExecutionProvider" and providers[0][1]["device_id"] == 1


def test_a_gpu_that_onnxruntime_silently_goes_without_is_refused(unet, monkeypatch):
    class Fallen:
        """What onnxruntime makes where the libraries of CUDA cannot be loaded."""

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnx_encoder, "_providers", lambda *_: ["CUDAExecutionProvider"])
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: Fallen())
    with pytest.raises(InstallationError, match=r"cannot use 'cuda:0'.*CPUExecutionProvider") as no:
        OnnxNetwork(unet.path.with_name("model.onnx"), "cuda:0")
    assert explain(no.value, "extract").fault == "platform"


def test_memory_that_runs_out_is_told_apart(unet, monkeypatch):
    network = OnnxNetwork(unet.path.with_name("model.onnx"))

    class Full:
        def run(self, *_):
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")

    monkeypatch.setattr(network, "_session", Full())
    with pytest.raises(MemoryError):
        network.embed(volumes(1))
    monkeypatch.setattr(network, "_device", torch.device("cuda"))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        network.embed(volumes(1))


def test_without_onnx_the_extra_is_named(unet, monkeypatch):
    monkeypatch.setattr(onnx_limits, "find_spec", lambda name: None)
    with pytest.raises(InstallationError, match=r"tomoprobe\[onnx\]") as missing:
        load(str(unet.path))
    assert explain(missing.value, "check").fault == "platform"


def test_loading_other_models_imports_no_onnx():
    code = (
        "import sys; from tomoprobe.submissions.load import load; load('intensity');"
        "from tomoprobe.submissions import onnx_graph, onnx_export, onnx_encoder;"
        "print([m for m in ('onnx', 'onnxruntime', 'onnxscript') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_card_is_that_of_the_manifest(unet):
    card = load(str(unet.path)).card
    assert card.grid == Grid(GRID) and card.authors == "A. Author"
    assert card.intensity == {"scanner": ZScore()} != {"scanner": Window(0, 1)}

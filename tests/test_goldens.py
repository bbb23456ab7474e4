"""The reference encoders against numbers of the upstream networks, and what the check catches."""

import json
import os
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from . import goldens
from .goldens import Golden, recipe, recipe_input

SHARED = Path(os.environ.get("TOMOPROBE_GOLDENS", Path(__file__).parents[2] / "shared/goldens"))
FILES = {file.parent.name: file for file in sorted(SHARED.glob("*/golden_public.json"))}


def cases() -> list[Any]:
    """Every case of every file that is there; one skipped test per net where none is."""
    if not FILES:
        absent = pytest.mark.skip(reason=f"no goldens at {SHARED}; set TOMOPROBE_GOLDENS")
        return [pytest.param(net, "", marks=absent, id=net) for net in goldens.NETS]
    return [
        pytest.param(net, case["name"], id=case["name"])
        for net in goldens.NETS
        if net in FILES
        for case in json.loads(FILES[net].read_text())["cases"]
    ]


@pytest.fixture(scope="module")
def opened() -> Iterator[dict[str, Golden]]:
    """The files with our weights, hundreds of megabytes that are not left behind."""

    class Opened(dict[str, Golden]):
        def __missing__(self, net: str) -> Golden:
            if net not in FILES:
                pytest.skip(f"no goldens at {SHARED}; set TOMOPROBE_GOLDENS")
            self[net] = goldens.opened(FILES[net], Path(folder))
            return self[net]

    with tempfile.TemporaryDirectory() as folder:
        yield Opened()


@pytest.mark.parametrize(("net", "case"), cases())
def test_ours_computes_what_upstream_computes(opened, net, case):
    golden = opened[net]
    found = golden.errors(golden.case(case))
    assert found
    assert all(units <= 1 for units in found.values()), found


def test_the_other_patch_merging_is_noticed(opened):
    golden = opened["coralbay"]
    case = golden.case("cube64_merging_legacy")
    found = golden.errors(case, golden.encoder(case, merging="fixed"))
    assert found["map0_encoder1"] <= 1  # it does not depend on the merging
    assert found["embedding_multiscale_1152"] > 100


def test_a_pooling_that_strides_the_depth_is_noticed(opened):
    golden = opened["cspr"]
    case = golden.case("depth_stride_false")
    encoder = golden.encoder(case)
    encoder.module.maxpool.stride = (2, 2, 2)
    assert max(golden.errors(case, encoder).values()) > 100


def test_another_epsilon_is_noticed(opened):
    golden = opened["cspr"]
    case = golden.case("depth_stride_true")
    encoder = golden.encoder(case)
    for module in encoder.module.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eps = 1e-3
    assert max(golden.errors(case, encoder).values()) > 1


# --- the program, on a small golden that MONAI's network gives ------------------------------------


def monais() -> dict[str, Any]:
    """A golden file's content for a small CSPR: isotropic, it is MONAI's ResNet."""
    from monai.networks.nets import resnet

    seed = 7
    network = resnet.ResNet(
        "basic",
        [1, 1, 1, 1],
        [4, 8, 16, 32],
        n_input_channels=1,
        conv1_t_stride=2,
        bias_downsample=False,
        feed_forward=False,
    ).eval()
    state = {k: v for k, v in network.state_dict().items() if v.is_floating_point()}
    state = {k: torch.from_numpy(recipe(k, v.shape, seed)) for k, v in state.items()}
    network.load_state_dict(state, strict=False)  # without counters
    x = recipe_input((2, 1, 32, 40, 48), seed)
    with torch.no_grad():
        y = network(torch.from_numpy(x)).numpy()
    digest = sha256()
    for key in sorted(state):
        digest.update(key.encode() + state[key].numpy().tobytes())
    index = [(1000003 * (k + 1) + 7) % y.size for k in range(16)]
    output = {
        "shape": list(y.shape),
        "mean": float(y.mean(dtype=np.float64)),
        "std": float(y.std(dtype=np.float64)),
        "first16": y.ravel()[:16].tolist(),
        "index16": index,
        "value16": y.ravel()[index].tolist(),
    }
    case = {
        "name": "small",
        "optional": False,
        "build": {"depth_stride": True},
        "input": {"shape": list(x.shape), "sha256": sha256(x.tobytes()).hexdigest()},
        "weights_sha256": digest.hexdigest(),
        "outputs": {"gap_layer4_512": output},
    }
    return {
        "net": "cspr",
        "seed": seed,
        "config": {"depth": 10, "base_channels": 4},
        "cases": [case],
        "fill_check": {key: float(value.flatten()[0]) for key, value in state.items()},
    }


def run(tmp_path, capsys, content, layout=None) -> tuple[int, str]:
    file = tmp_path / "golden.json"
    file.write_text(json.dumps(content))
    if layout is not None:
        (tmp_path / "layout.json").write_text(json.dumps(layout))
    status = goldens.main([file])
    return status, capsys.readouterr().out


def test_the_program_accepts_what_agrees(tmp_path, capsys):
    status, out = run(tmp_path, capsys, monais())
    assert status == 0
    assert "gap_layer4_512" in out
    assert "within the tolerance" in out


def test_the_program_refuses_a_value_beyond_the_tolerance(tmp_path, capsys):
    content = monais()
    output = content["cases"][0]["outputs"]["gap_layer4_512"]
    output["value16"][3] += 0.004 * (abs(output["value16"][3]) + output["std"])
    status, out = run(tmp_path, capsys, content)
    assert status == 1
    assert "ABOVE the tolerance: largest 3.9" in out


def test_the_program_takes_the_networks_arguments_from_the_case(tmp_path, capsys):
    content = monais()
    content["cases"][0]["build"] = {"depth_stride": False}
    assert run(tmp_path, capsys, content)[0] == 1


def test_only_an_optional_case_may_be_declined(tmp_path, capsys):
    content = monais()
    impossible = content["cases"][0] | {"name": "more", "build": {"depth_stride": "both"}}
    for optional in (True, False):
        content["cases"] = [content["cases"][0], impossible | {"optional": optional}]
        status, out = run(tmp_path, capsys, content)
        assert "declined" in out
        assert status == (0 if optional else 1)


def test_a_tensor_that_ours_does_not_offer_is_a_failure(tmp_path, capsys):
    content = monais()
    outputs = content["cases"][0]["outputs"]
    outputs["layer5"] = outputs["gap_layer4_512"]
    status, out = run(tmp_path, capsys, content)
    assert status == 1
    assert "inf" in out


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("net", "swin", "the net 'swin' is unknown"),
        ("seed", 8, "first value"),
        ("fill_check", {"conv9.weight": 0.0}, "conv9.weight"),
    ],
)
def test_a_file_of_other_weights_is_not_compared(tmp_path, capsys, key, value, says):
    status, out = run(tmp_path, capsys, {**monais(), key: value})
    assert status == 2
    assert says in out


@pytest.mark.parametrize("part", ["weights_sha256", "input"])
def test_a_hash_that_differs_is_not_compared(tmp_path, capsys, part):
    content = monais()
    case = content["cases"][0]
    case[part] = "0" * 64 if part == "weights_sha256" else {**case[part], "sha256": "0" * 64}
    status, out = run(tmp_path, capsys, content)
    assert status == 2
    assert "sha256" in out


def test_the_published_layout_has_to_be_ours(tmp_path, capsys):
    content = monais()
    from monai.networks.nets import resnet

    network = resnet.ResNet(
        "basic", [1, 1, 1, 1], [4, 8, 16, 32], n_input_channels=1, bias_downsample=False
    )
    keys = [
        [k, list(v.shape), str(v.dtype).removeprefix("torch.")]
        for k, v in network.state_dict().items()
        if not k.startswith("fc.")
    ]
    layout = {"net": "cspr", "keys": keys, "constant_buffers": []}
    head = {"other_keys_in_the_published_file": [["head.fc.weight", [1000, 32], "float32"]]}
    assert run(tmp_path, capsys, content, layout | head)[0] == 0
    other = {"other_keys_in_the_published_file": [["neck.weight", [3], "float32"]]}
    status, out = run(tmp_path, capsys, content, layout | other)
    assert status == 1
    assert "1 unexpected ('neck.weight')" in out

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoprobe.benchmark.errors import ManifestError
from tomoprobe.benchmark.types import EncoderCard, Grid, MinMax, Window, ZScore
from tomoprobe.submissions import baselines
from tomoprobe.submissions.manifest import canonical, model_sha, parse, read, write

MANIFEST = {
    "name": "mine",
    "title": "My network",
    "authors": "A. Author",
    "license": "MIT",
    "readout": "concat",
    "seed": 0,
    "pretraining": ["FLARE22"],
    "architecture": {"name": "resnet", "arguments": {"layers": [1, 1, 1, 1]}},
    "grid": {"shape": [32, 40, 32], "spacing": [1.5, 1.5, 2.0], "axes": "LPS"},
    "intensity": {
        "HU": {"type": "Window", "low": -160.0, "high": 240.0},
        "scanner": {"type": "ZScore"},
        "relative": {"type": "MinMax", "low_percentile": 1.0, "high_percentile": 99.0},
    },
}


def changed(**changes):
    """The manifest above with dotted keys replaced, or removed where the value is None."""
    data = json.loads(json.dumps(MANIFEST))
    for key, value in changes.items():
        *parents, last = key.split("__")
        table = data
        for parent in parents:
            table = table[parent]
        if value is None:
            del table[last]
        else:
            table[last] = value
    return data


def test_a_manifest_becomes_a_card():
    card = parse(MANIFEST, "test").card(960, (2, 4), 12)
    assert card == EncoderCard(
        name="mine",
        title="My network",
        grid=Grid((32, 40, 32), (1.5, 1.5, 2.0), "LPS"),
        intensity={"HU": Window(-160, 240), "scanner": ZScore(), "relative": MinMax(1, 99)},
        width=960,
        strides=(2, 4),
        parameters=12,
        readout="concat",
        license="MIT",
        authors="A. Author",
        pretraining=("FLARE22",),
    )


def test_a_written_manifest_reads_back_equal(tmp_path):
    manifest = parse(
        changed(
            note='say "hi" \\ \t to\n\x7f é 😀', architecture__arguments={"a b": [{"c": True}]}
        ),
        "test",
    )
    write(manifest, tmp_path / "m.toml")
    assert read(tmp_path / "m.toml") == manifest


JSON = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(arguments=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=6), JSON))
def test_arguments_of_any_shape_survive_the_file(tmp_path_factory, arguments):
    path = tmp_path_factory.mktemp("manifest") / "m.toml"
    manifest = parse(changed(architecture__arguments=arguments), "test")
    write(manifest, path)
    assert read(path).architecture.arguments == manifest.architecture.arguments


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"readuot": "last"}, "readuot: unknown key. Did you mean 'readout'?"),
        ({"title": None}, "title: missing"),
        ({"pretraining": None}, "pretraining: missing"),
        ({"license": ""}, "license"),
        ({"name": "No Spaces"}, "name"),
        ({"seed": "0"}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": -1}, "seed"),
        ({"weights": {"file": "a.safetensors"}}, "weights and seed exclude each other"),
        ({"seed": None, "weights": {"file": "/etc/a.safetensors"}}, "weights.file"),
        ({"seed": None, "weights": {"file": "../a.safetensors"}}, "weights.file"),
        ({"seed": None, "weights": {"file": "a.pt"}}, "weights.file"),
        ({"seed": None, "weights": {"file": "a.safetensors", "sha256": "12"}}, "weights.sha256"),
        ({"architecture__name": "resnt"}, "Did you mean 'resnet'?"),
        ({"grid__shape": [32, 32]}, "grid.shape"),
        ({"grid__shape": [32, 0, 32]}, "grid.shape.1"),
        ({"grid__shape": [32.5, 32, 32]}, "grid.shape.0"),
        ({"grid__spacing": [1.0, 0.0, 1.0]}, "grid.spacing.1"),
        ({"grid__axes": "RAX"}, "grid.axes"),
        ({"grid__axes": "RLS"}, "grid.axes"),
        ({"grid__voxels": 3}, "grid.voxels: unknown key"),
        ({"intensity": {}}, "intensity"),
        ({"intensity": {"hounsfield": {"type": "ZScore"}}}, "intensity.hounsfield"),
        ({"intensity__HU": {"type": "Clip"}}, "intensity.HU"),
        ({"intensity__HU__low": 300.0}, "low < high"),
        ({"intensity__scanner__low_percentile": 101.0}, "intensity.scanner.low_percentile"),
        ({"intensity__relative__high_percentile": 0.5}, "low_percentile < high_percentile"),
        ({"overlap": 1.0}, "overlap"),
        ({"tiling": "tile"}, "tiling"),
        ({"channels": 0}, "channels"),
        ({"note": "x" * 2001}, "note"),
    ],
)
def test_a_bad_manifest_is_refused_and_says_where(changes, says):
    with pytest.raises(ManifestError) as refused:
        parse(changed(**changes), "here.toml")
    assert says in str(refused.value)
    assert "here.toml" in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name = ", "not a TOML file"),
        (b"\xff\xfe", "not a TOML file"),
        (b"x = " + b"[" * 5000, "not a TOML file"),
        (b"name = 2020-01-01", "Dates"),
        (b"overlap = nan", "Dates, 'inf' and 'nan'"),
        (b"#" * (2**20 + 1), "larger than"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path, content, says):
    (tmp_path / "m.toml").write_bytes(content)
    with pytest.raises(ManifestError, match=says):
        read(tmp_path / "m.toml")


def test_a_missing_manifest_is_named():
    with pytest.raises(ManifestError, match=r"nowhere\.toml"):
        read(baselines.path("texture").with_name("nowhere.toml"))


def identity(manifest, weights=None, version=1):
    return canonical(manifest, version, weights, manifest.card(8, (2,), 5))


def test_identity_ignores_order_names_and_prose():
    one = parse(MANIFEST, "test")
    other = parse(
        dict(reversed(changed(name="yours", note="corrected", pretraining=[]).items())), "test"
    )
    assert model_sha(identity(one)) == model_sha(identity(other))


def test_identity_ignores_where_the_weights_lie():
    at = [
        parse(changed(seed=None, weights={"file": f"{name}.safetensors"}), "test")
        for name in ("a", "b")
    ]
    assert model_sha(identity(at[0], "ab" * 32)) == model_sha(identity(at[1], "ab" * 32))


@pytest.mark.parametrize(
    "changes",
    [
        {"readout": "last"},
        {"seed": 1},
        {"channels": 2},
        {"tiling": "tiles"},
        {"overlap": 0.5},
        {"pool": "max"},
        {"grid__shape": [32, 32, 32]},
        {"grid__spacing": [1.5, 1.5, 1.5]},
        {"grid__axes": "RAS"},
        {"intensity__HU__low": -150.0},
        {"intensity__relative": None},
        {"architecture__arguments": {"layers": [2, 1, 1, 1]}},
    ],
)
def test_whatever_can_change_a_feature_changes_the_identity(changes):
    before, after = parse(MANIFEST, "test"), parse(changed(**changes), "test")
    assert model_sha(identity(before)) != model_sha(identity(after))


def test_weights_and_version_are_part_of_the_identity():
    manifest = parse(MANIFEST, "test")
    shas = {
        model_sha(identity(manifest)),
        model_sha(identity(manifest, version=2)),
        model_sha(identity(manifest, weights="ab" * 32)),
        model_sha(identity(manifest, weights="cd" * 32)),
    }
    assert len(shas) == 4


def test_the_identity_is_the_hash_of_its_own_json_round_trip():
    whole = identity(parse(MANIFEST, "test"))
    assert model_sha(json.loads(json.dumps(whole))) == model_sha(whole)


def test_listing_encoders_imports_neither_torch_nor_monai():
    code = (
        "import sys; from tomoprobe.submissions import architectures, baselines;"
        "assert len(baselines.cards()) >= 5 and len(architectures.names()) >= 7;"
        "print([m for m in ('torch', 'monai', 'sklearn', 'nibabel') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_baseline_accepts_every_unit_and_says_whose_it_is():
    for card in baselines.cards():
        assert set(card.intensity) == {"HU", "scanner", "relative"}
        assert card.license == "Apache-2.0"
        assert card.authors == "tomoprobe"
        assert card.width <= 512

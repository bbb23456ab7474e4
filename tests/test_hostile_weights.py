"""What strangers send: each is refused with a code and a reason, none is run, none breaks us."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import zipfile
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from tomoprobe.benchmark.errors import IntakeError, ManifestError
from tomoprobe.submissions import architectures, intake
from tomoprobe.submissions.blueprints import blueprint
from tomoprobe.submissions.headers import DTYPES, read_header
from tomoprobe.submissions.manifest import Manifest, parse
from tomoprobe.submissions.manifest_text import read_manifest

MANIFEST = """
name = "small"
title = "A small network"
authors = "A. Author"
license = "MIT"
readout = "concat"
pretraining = []

[architecture]
name = "resnet"
arguments = {layers = [1, 1, 1, 1], block_inplanes = [4, 4, 4, 4], conv1_t_size = 3}

[weights]
file = "model.safetensors"

[grid]
shape = [16, 16, 16]

[intensity]
HU = {type = "Window", low = -1000.0, high = 1000.0}
"""


def weights():
    """The tensors of the network above."""
    torch.manual_seed(0)
    architecture = architectures.get("resnet")
    network = architecture.build(
        shape=(16, 16, 16),
        channels=1,
        readout="concat",
        layers=(1, 1, 1, 1),
        block_inplanes=(4, 4, 4, 4),
        conv1_t_size=3,
    )
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


WEIGHTS = weights()
FILE = save(WEIGHTS, {"format": "pt"})


class Payload:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path):
    """The file that no test may bring to life."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def reached(*_args, **_kwargs):
    raise AssertionError("a pickle was about to be opened")


class Unpickler(pickle.Unpickler):
    """Others derive from it when they are imported; using it is what is forbidden."""

    __init__ = load = reached


@pytest.fixture(autouse=True)
def nothing_unpickles(monkeypatch):
    """Whatever could run a pickle raises, as in server and worker it must never be reached."""
    monkeypatch.setattr(pickle, "Unpickler", Unpickler)
    for module, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (torch, "load"),
        (torch.jit, "load"),
        (joblib, "load"),
    ):
        monkeypatch.setattr(module, name, reached)


def test_the_payload_would_fire_and_the_guard_stops_it(tmp_path, monkeypatch):
    raw = pickle.dumps(Payload(tmp_path / "fired"))
    for opens in (pickle.loads, torch.load, pickle.Unpickler, joblib.load, torch.jit.load):
        with pytest.raises(AssertionError, match="about to be opened"):
            opens(io.BytesIO(raw))
    monkeypatch.undo()
    pickle.loads(raw)  # noqa: S301
    assert (tmp_path / "fired").exists()


def test_the_honest_submission_passes(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILE)
    checked = intake.check(MANIFEST, path, "weights", isolate=False)
    assert checked.card.name == "small"
    assert checked.card.width == 16


def refuse(path, manifest=MANIFEST, kind="weights"):
    """The refusal of a submission, which is complete and fit to be shown."""
    with pytest.raises(IntakeError) as refused:
        intake.check(manifest, path, kind, isolate=False)
    error = refused.value
    assert error.code.replace("-", "").replace("256", "").isalpha()
    assert error.code == error.code.lower()
    assert error.message and error.hint
    assert error.stage in ("upload", "check")
    assert str(error).isprintable()
    assert len(str(error)) < 3000
    return error


# --- what is no safetensors file ------------------------------------------------------------------


def torch_archive(payload):
    buffer = io.BytesIO()
    torch.save({"state_dict": WEIGHTS, "more": payload}, buffer)
    return buffer.getvalue()


def legacy_archive(payload):
    buffer = io.BytesIO()
    torch.save(payload, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def joblib_file(payload):
    buffer = io.BytesIO()
    joblib.dump(payload, buffer)
    return buffer.getvalue()


def numpy_objects(payload):
    buffer = io.BytesIO()
    np.save(buffer, np.array([payload], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


FOREIGN = {
    **{
        f"a pickle of protocol {protocol}": (
            lambda payload, protocol=protocol: pickle.dumps(payload, protocol)
        )
        for protocol in range(6)
    },
    "a PyTorch archive": torch_archive,
    "an old PyTorch file": legacy_archive,
    "a TorchScript archive": lambda _: zipped(model__code__a="x", model__constants_pkl=b"."),
    "a joblib file": joblib_file,
    "NumPy objects": numpy_objects,
    "a zip bomb": lambda _: zipped(a=bytes(64 << 20)),
    "a zip bomb within a zip": lambda _: zipped(a=zipped(a=bytes(32 << 20))),
    "a gzip bomb": lambda _: gzip.compress(bytes(64 << 20)),
    "a gzip whose magic is a length": lambda _: (
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00{" + bytes(600_000)
    ),
    "a bzip2 bomb": lambda _: bz2.compress(bytes(16 << 20)),
    "an xz bomb": lambda _: lzma.compress(bytes(16 << 20)),
    "gzipped weights": lambda _: gzip.compress(FILE),
    "an executable": lambda _: b"\x7fELF" + bytes(100),
    "a script": lambda _: b"#!/bin/sh\ntouch canary\n",
    "a web page": lambda _: b"<html><script>alert(1)</script></html>",
    "HDF5": lambda _: b"\x89HDF\r\n\x1a\n" + bytes(100),
    "a pointer of Git LFS": lambda _: b"version https://git-lfs.github.com/spec/v1\n",
    "JSON without a length": lambda _: b'{"a": 1}' * 10,
    "zeros": lambda _: bytes(1000),
    "text": lambda _: "ａ".encode() * 100,
}


@pytest.mark.parametrize("what", FOREIGN)
def test_another_format_is_refused_without_opening_it(what, tmp_path, canary):
    path = tmp_path / "model.safetensors"
    path.write_bytes(FOREIGN[what](Payload(canary)))
    assert refuse(path).code in ("not-safetensors", "header-size")


@pytest.mark.parametrize(
    "suffix", [".pt", ".pth", ".ckpt", ".bin", ".pkl", ".joblib", ".npy", ".onnx", ".toml", ""]
)
def test_a_pickle_is_refused_under_every_name(suffix, tmp_path, canary):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(torch_archive(Payload(canary)))
    assert refuse(path).code == "not-safetensors"
    with pytest.raises(IntakeError, match="zip archive"):
        read_header(path)


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path / "missing.safetensors", tmp_path):
        # whose fault that is only the caller knows
        with pytest.raises(OSError, match=r"No such file|directory"):
            read_header(path)
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IntakeError) as refused:  # and is not waited for
        read_header(tmp_path / "pipe")
    assert refused.value.code == "file-kind"


# --- headers that lie -----------------------------------------------------------------------------


def parts(file=FILE):
    """Header as data, and the tensors' bytes."""
    length = struct.unpack("<Q", file[:8])[0]
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def forged(header, data):
    """A file with this header, as data or as text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def with_header(change):
    """The honest file after a change to its header, in place."""
    header, data = parts()
    change(header)
    return forged(header, data)


def changed(name=None, **entry):
    """The honest file with another entry for one tensor, by default the first."""

    def change(header):
        header[name or first(header)].update(entry)

    return with_header(change)


def first(header):
    return min((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"])


def renamed(new):
    def change(header):
        header[new] = header.pop(first(header))

    return with_header(change)


def added(name, **entry):
    return with_header(lambda header: header.update({name: entry}))


def twice():
    header, data = parts()
    name = first(header)
    text = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}"
    return forged(text.encode(), data)


def spaced(length):
    """A header that is padded with spaces to a length."""
    header, data = parts()
    return forged(json.dumps(header).encode().ljust(length), data)


def grown(field):
    """The last tensor's end, and with it its size, moved by one byte."""

    def change(header):
        last = max(
            (k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"]
        )
        header[last]["data_offsets"][field] += 1

    return with_header(change)


def overlapping():
    header, data = parts()
    names = sorted(
        (k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"]
    )
    a = next(n for n in names if header[n]["shape"] == [4])
    b = next(n for n in names if header[n]["shape"] == [4] and n != a)
    header[b]["data_offsets"] = header[a]["data_offsets"]
    return forged(header, data)


def with_hole():
    header, data = parts()
    del header[first(header)]
    return forged(header, data)


def many(count):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return forged({f"{i:x}": entry for i in range(count)}, b"")


def raw(text):
    return forged(text, b"")


def zip_behind():
    """A zip archive hidden in the last tensor, where programs that open zips look for it."""
    archive = zipped(data_pkl=b"cos\nsystem\n(S'true'\ntR.")
    entry = {"dtype": "U8", "shape": [len(archive)], "data_offsets": [0, len(archive)]}
    return forged({"a": entry}, archive)


SCALAR = {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}

LIES = {
    "a length of 2^63": (struct.pack("<Q", 1 << 63) + FILE[8:], "header-size"),
    "a length of 2^64 - 1": (struct.pack("<Q", (1 << 64) - 1) + FILE[8:], "header-size"),
    "a length of 200 MB": (struct.pack("<Q", 200_000_000) + FILE[8:], "header-size"),
    "a length beyond the file": (struct.pack("<Q", 1_000_000) + FILE[8:2000], "file-truncated"),
    "a length too short": (struct.pack("<Q", 100) + FILE[8:], "header-json"),
    "a length of 0": (bytes(8) + FILE[8:], "not-safetensors"),
    "a length of 1": (struct.pack("<Q", 1) + FILE[8:], "not-safetensors"),
    "a header of 2 MiB of spaces": (spaced(2 << 20), "header-size"),
    "nothing": (b"", "file-empty"),
    "four bytes": (FILE[:4], "not-safetensors"),
    "eight bytes": (FILE[:8], "not-safetensors"),
    "half a header": (FILE[:1000], "file-truncated"),
    "half the tensors": (FILE[: len(FILE) - 5000], "file-truncated"),
    "one byte less": (FILE[:-1], "file-truncated"),
    "one byte more": (FILE + b"\0", "file-trailing"),
    "a pickle behind the tensors": (FILE + pickle.dumps([1]), "file-trailing"),
    "a zip behind the tensors": (FILE + zipped(a=b"1"), "file-polyglot"),
    "a zip in a tensor": (zip_behind(), "file-polyglot"),
    "no JSON": (raw(b"{" + b"x" * 50), "header-json"),
    "two objects": (raw(b"{}{}"), "header-json"),
    "UTF-16": (raw("{}".encode("utf-16-le")), "header-json"),
    "bytes that are no UTF-8": (raw(b'{"\xff\xfe": 1}'), "header-json"),
    "no tensors": (raw(b"{}"), "header-empty"),
    "metadata alone": (raw(b'{"__metadata__": {}}'), "header-empty"),
    "deep lists": (raw(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "header-depth"),
    "deep objects": (raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "header-depth"),
    "900 lists": (raw(b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}"), "header-entry"),
    "a number of 5000 digits": (raw(b'{"a": ' + b"9" * 5000 + b"}"), "header-number"),
    "NaN": (raw(b'{"a": NaN}'), "header-number"),
    "Infinity": (raw(b'{"a": -Infinity}'), "header-number"),
    "a fraction": (raw(b'{"a": 1.5}'), "header-number"),
    "a tensor twice": (twice(), "header-duplicate"),
    "100,000 keys, one twice": (
        raw(b"{" + b",".join(b'"%x":0' % (i % 99_999) for i in range(100_000)) + b"}"),
        "header-duplicate",
    ),
    "a key twice within an entry": (
        raw(b'{"a":{"dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,0]}}'),
        "header-duplicate",
    ),
    "too many tensors": (many(20_001), "header-size"),
    "an empty name": (renamed(""), "header-name"),
    "a name of 600 letters": (renamed("a" * 600), "header-name"),
    "a path as a name": (renamed("../../etc/passwd"), "header-name"),
    "an absolute path as a name": (renamed("/etc/passwd"), "header-name"),
    "a Windows path as a name": (renamed("..\\..\\a"), "header-name"),
    "a NUL in a name": (renamed("a\0b"), "header-name"),
    "an escape sequence in a name": (renamed("\x1b[2Ja"), "header-name"),
    "a line feed in a name": (renamed("a\nb"), "header-name"),
    "a surrogate in a name": (renamed("a\ud800"), "header-name"),
    "turned text in a name": (renamed("a\u202eb"), "header-name"),
    "a surrogate in the metadata": (
        with_header(lambda h: h["__metadata__"].update(a="\udfff")),
        "header-metadata",
    ),
    "a NUL in the metadata": (
        with_header(lambda h: h["__metadata__"].update(a="\0")),
        "header-metadata",
    ),
    "metadata that nest": (
        with_header(lambda h: h["__metadata__"].update(a={"b": "c"})),
        "header-metadata",
    ),
    "metadata that are a list": (
        with_header(lambda h: h.update(__metadata__=["a"])),
        "header-metadata",
    ),
    "an entry that is a list": (with_header(lambda h: h.update(a=[1])), "header-entry"),
    "an entry without a shape": (added("a", dtype="F32", data_offsets=[0, 0]), "header-entry"),
    "an entry with a key too many": (changed(code="import os"), "header-entry"),
    "an unknown type": (changed(dtype="F33"), "header-dtype"),
    "complex numbers": (changed(dtype="C64"), "header-dtype"),
    "a quantised type": (changed(dtype="F8_E4M3"), "header-dtype"),
    "a type that is a list": (changed(dtype=["F32"]), "header-dtype"),
    "a negative shape": (changed(shape=[-1, 4]), "header-shape"),
    "a true shape": (changed(shape=[True, 4]), "header-shape"),
    "a shape that is text": (changed(shape="44"), "header-shape"),
    "a shape of 9 dimensions": (changed(shape=[1] * 9), "header-shape"),
    "a side of 2^63": (changed(shape=[1 << 63]), "header-shape"),
    "a shape whose product wraps to 0": (changed(shape=[1 << 30] * 8), "header-shape"),
    "a shape larger than its bytes": (changed(shape=[4, 4, 4, 4, 4]), "header-length"),
    "a type wider than its bytes": (changed("conv1.weight", dtype="F64"), "header-length"),
    "negative offsets": (changed(data_offsets=[-8, 8]), "header-offsets"),
    "offsets that run back": (changed(data_offsets=[8, 0]), "header-offsets"),
    "three offsets": (changed(data_offsets=[0, 4, 8]), "header-offsets"),
    "an end of 2^64": (changed(data_offsets=[0, 1 << 64]), "header-length"),
    "an end one byte late": (grown(1), "header-length"),
    "a begin one byte late": (grown(0), "header-length"),
    "two tensors on the same bytes": (overlapping(), "header-overlap"),
    "bytes of no tensor": (with_hole(), "header-hole"),
    "a lone scalar far away": (
        forged({"a": {**SCALAR, "data_offsets": [1 << 40, (1 << 40) + 4]}}, bytes(4)),
        "header-hole",
    ),
    "a terabyte": (
        forged(
            {"a": {"dtype": "U8", "shape": [1 << 30, 1 << 6], "data_offsets": [0, 1 << 36]}}, b""
        ),
        "file-truncated",
    ),
    "another network": (forged({"a": SCALAR}, bytes(4)), "weights-names"),
}


@pytest.mark.parametrize("what", LIES)
def test_a_header_that_lies_is_refused(what, tmp_path):
    file, code = LIES[what]
    path = tmp_path / "model.safetensors"
    path.write_bytes(file)
    assert refuse(path).code == code


# --- tensors that do not fit ----------------------------------------------------------------------


def with_tensors(**tensors):
    """The honest tensors with some replaced (dots as double underscores) or, by None, removed."""
    changes = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    kept = {k: v for k, v in WEIGHTS.items() if changes.get(k, v) is not None}
    return save(kept | {k: v for k, v in changes.items() if v is not None})


def spoilt(value, dtype=torch.float32, name="conv1.weight", at=-1):
    tensor = WEIGHTS[name].to(dtype).clone()
    tensor.view(-1)[at] = value
    return with_tensors(**{name.replace(".", "__"): tensor})


MISFITS = {
    "NaN": (spoilt(float("nan")), "weights-nan"),
    "NaN in half precision": (spoilt(float("nan"), torch.float16), "weights-nan"),
    "NaN in bfloat16": (spoilt(float("nan"), torch.bfloat16), "weights-nan"),
    "infinity": (spoilt(float("inf")), "weights-nan"),
    "minus infinity in bfloat16": (spoilt(float("-inf"), torch.bfloat16, at=0), "weights-nan"),
    "1e300, too large for float32": (spoilt(1e300, torch.float64), "weights-nan"),
    "NaN in a running mean": (spoilt(float("nan"), name="bn1.running_mean"), "weights-nan"),
    "a missing tensor": (with_tensors(conv1__weight=None), "weights-names"),
    "a tensor too many": (with_tensors(backdoor=torch.ones(3)), "weights-names"),
    "a tensor under two names": (
        with_tensors(module__conv1__weight=WEIGHTS["conv1.weight"].clone()),
        "weights-names",
    ),
    "a wrong shape": (with_tensors(conv1__weight=torch.ones(4, 2, 3, 3, 3)), "weights-shape"),
    "a shape of as many elements": (
        with_tensors(conv1__weight=WEIGHTS["conv1.weight"].reshape(1, 4, 3, 3, 3)),
        "weights-shape",
    ),
    "integers": (with_tensors(conv1__weight=torch.ones(4, 1, 3, 3, 3).int()), "weights-dtype"),
    "truth values": (with_tensors(bn1__weight=torch.ones(4).bool()), "weights-dtype"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_tensors_that_do_not_fit_are_refused(what, tmp_path):
    file, code = MISFITS[what]
    path = tmp_path / "model.safetensors"
    path.write_bytes(file)
    assert refuse(path).code == code


# --- manifests ------------------------------------------------------------------------------------


def edited(old, new):
    assert old in MANIFEST
    return MANIFEST.replace(old, new)


def arguments(text, name="resnet"):
    start = MANIFEST.index('name = "resnet"')
    end = MANIFEST.index("[weights]")
    return f'{MANIFEST[:start]}name = "{name}"\narguments = {{{text}}}\n\n{MANIFEST[end:]}'


ATTACKS = {
    "a path upwards": (edited("model.safetensors", "../../a.safetensors"), "manifest-invalid"),
    "an absolute path": (edited("model.safetensors", "/etc/a.safetensors"), "manifest-invalid"),
    "a pickle by name": (edited("model.safetensors", "model.pt"), "manifest-invalid"),
    "a Windows path": (edited("model.safetensors", "..\\\\a.safetensors"), "manifest-invalid"),
    "a name that is a path": (edited('"small"', '"../small"'), "manifest-invalid"),
    "a name that is markup": (edited('"small"', '"<b>"'), "manifest-invalid"),
    "an architecture that is a path": (edited('"resnet"', '"../../os"'), "manifest-invalid"),
    "an architecture that is private": (edited('"resnet"', '"_build"'), "manifest-invalid"),
    "an architecture that is a module": (edited('"resnet"', '"os:system"'), "manifest-invalid"),
    "an unknown key": (MANIFEST.replace("[grid]", "[grid]\ncode = 'x'"), "manifest-invalid"),
    "code as a key": ('__import__ = "os"\n' + MANIFEST, "manifest-invalid"),
    "a number of 5000 digits": ("version = " + "9" * 5000 + MANIFEST, "manifest-toml"),
    "a number of 4000 digits": ("version = " + "9" * 4000 + MANIFEST, "manifest-invalid"),
    "an infinite overlap": ("overlap = inf" + MANIFEST, "manifest-invalid"),
    "1e999": ("overlap = 1e999" + MANIFEST, "manifest-invalid"),
    "a date": ("note = 1979-05-27" + MANIFEST, "manifest-invalid"),
    "no TOML": ("{" + MANIFEST, "manifest-toml"),
    "a table twice": (MANIFEST + "[grid]\nshape = [1, 1, 1]", "manifest-toml"),
    "deep lists": ("x = " + "[" * 20_000, "manifest-toml"),
    "30,000 dotted keys": (".".join("a" * 30_000) + " = 1", "manifest-toml"),
    "1500 dotted keys": (".".join("a" * 1500) + " = 1", "manifest-invalid"),
    "too long a text": (MANIFEST + "#" * 70_000, "manifest-size"),
    "a NUL": (edited("A. Author", "A\\u0000"), "manifest-text"),
    "an escape sequence": (edited("A. Author", "\\u001b[2J"), "manifest-text"),
    "turned text": (edited("A. Author", "A\\u202e"), "manifest-text"),
    "a control character in a key": (
        edited("conv1_t_size", '"a\\u0007"'),
        "manifest-text",
    ),
    "a surrogate": (edited("A. Author", "\ud800"), "manifest-toml"),
    "a title of 10,000 letters": (edited("A small network", "a" * 10_000), "manifest-invalid"),
    "a huge grid": (edited("[16, 16, 16]", "[2000, 2000, 2000]"), "grid-size"),
    "a grid of 2^62": (edited("[16, 16, 16]", f"[{2**62}, 16, 16]"), "manifest-invalid"),
    "a grid of 10^4000": (edited("[16, 16, 16]", f"[1{'0' * 4000}, 16, 16]"), "manifest-invalid"),
    "a negative grid": (edited("[16, 16, 16]", "[-16, 16, 16]"), "manifest-invalid"),
    "a million channels": ("channels = 1000000" + MANIFEST, "grid-size"),
    "zero spacing": (
        edited("[16, 16, 16]", "[16, 16, 16]\nspacing = [0.0, 1.0, 1.0]"),
        "manifest-invalid",
    ),
    "58 billion parameters": (
        arguments("layers = [64, 64, 64, 64], block_inplanes = [2048, 2048, 2048, 2048]"),
        "network-size",
    ),
    "16 billion parameters of attention": (
        arguments(
            "hidden_size = 4096, mlp_dim = 16384, num_layers = 64, num_heads = 64, patch_size = 16",
            "vit",
        ).replace('"concat"', '"mean"'),
        "network-size",
    ),
    "tables of 16 GiB": (
        arguments("window_size = 16, depths = [32, 32, 32, 32]", "swin_unetr"),
        "network-size",
    ),
    "too deep": (arguments("layers = [1000000, 1, 1, 1]"), "arguments-invalid"),
    "too wide": (arguments("block_inplanes = [99999999, 1, 1, 1]"), "arguments-invalid"),
    "a negative depth": (arguments("layers = [-1, 1, 1, 1]"), "arguments-invalid"),
    "text for a number": (arguments("conv1_t_size = '7'"), "arguments-invalid"),
    "an unknown argument": (arguments("__class__ = 'os'"), "arguments-invalid"),
    "an argument of the card": (arguments("channels = 3"), "arguments-invalid"),
    "an unknown readout": (edited('"concat"', '"__dict__"'), "arguments-invalid"),
    "seed and weights": ("seed = 0" + MANIFEST, "manifest-invalid"),
    "another sha256": (
        edited('file = "model.safetensors"', f'file = "a.safetensors"\nsha256 = "{"0" * 64}"'),
        "weights-sha256",
    ),
    "a wrong width": ("width = 7" + MANIFEST, "manifest-invalid"),
}


@pytest.mark.parametrize("what", ATTACKS)
def test_a_manifest_that_attacks_is_refused(what, tmp_path):
    text, code = ATTACKS[what]
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILE)
    assert refuse(path, text).code == code


@pytest.mark.parametrize("kind", ["seed", "onnx", "self-run", "pickle", ""])
def test_a_kind_that_the_manifest_is_not_is_refused(kind, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILE)
    assert refuse(path, kind=kind).code == "kind-mismatch"
    assert refuse(None).code == "kind-mismatch"


def test_there_are_at_least_sixty_attacks():
    assert len(FOREIGN) + len(LIES) + len(MISFITS) + len(ATTACKS) >= 150


# --- anything at all ------------------------------------------------------------------------------

RELAXED = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=8)
    | st.sampled_from(["F32", "BF16", "I64", "F32\0"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=10,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "C64"]) | ANY,
        "shape": st.lists(st.integers(0, 3), max_size=3) | ANY,
        "data_offsets": st.tuples(st.integers(0, 40), st.integers(0, 40)) | ANY,
    }
)


def readable(path):
    """Whether a header is taken; anything but a refusal fails the test."""
    try:
        header = read_header(path)
    except IntakeError as error:
        assert error.stage == "upload"
        assert error.code and error.message and error.hint
        return False
    size = path.stat().st_size - header.data_start
    assert sum(info.end - info.begin for info in header.tensors.values()) == size
    return True


@RELAXED
@given(
    header=st.dictionaries(st.text(max_size=6), ENTRY | ANY, max_size=4),
    data=st.binary(max_size=40),
)
def test_any_header_is_read_or_refused(header, data, tmp_path):
    path = tmp_path / "any.safetensors"
    path.write_bytes(forged(json.dumps(header).encode(), data))
    readable(path)


@RELAXED
@given(
    edits=st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, len(FILE)) | st.none(),
)
def test_any_damage_is_read_or_refused(edits, cut, tmp_path):
    file = bytearray(FILE)
    for at, value in edits:
        file[at] = value
    path = tmp_path / "any.safetensors"
    path.write_bytes(file[:cut])
    readable(path)


@RELAXED
@given(text=st.text(max_size=60), at=st.integers(0, len(MANIFEST)), cut=st.integers(0, 60))
def test_any_change_of_a_manifest_is_read_or_refused(text, at, cut):
    try:
        found = read_manifest(MANIFEST[:at] + text + MANIFEST[at + cut :])
    except IntakeError as error:
        assert error.code.startswith(("manifest-", "grid-"))
    else:
        assert isinstance(found, Manifest)


NUMBER = st.integers(-2, 5000) | st.sampled_from([1, 2, 3, 7, 12, 16, 64, 2**31, 2**63])
VALUE = NUMBER | st.lists(NUMBER, min_size=4, max_size=4) | st.booleans() | st.text(max_size=4)


@pytest.mark.parametrize("name", architectures.names())
@settings(RELAXED, max_examples=20)
@given(data=st.data())
def test_any_arguments_are_measured_or_refused(name, data):
    import inspect

    architecture = architectures.get(name)
    known = sorted(inspect.signature(architecture.build).parameters)
    given_arguments = data.draw(st.dictionaries(st.sampled_from(known), VALUE, max_size=3))
    manifest = parse(
        {
            "name": "any",
            "title": "t",
            "authors": "a",
            "license": "MIT",
            "readout": architecture.READOUTS[0],
            "pretraining": [],
            "region": name == "radiomics",
            "architecture": {"name": name, "arguments": given_arguments},
            "grid": {"shape": data.draw(st.sampled_from([[32, 32, 32], [1, 1, 1], [96, 7, 16]]))},
            "intensity": {"HU": {"type": "ZScore"}},
        },
        "any",
    )
    try:
        plan = blueprint(manifest, architecture.build)
    except ManifestError:
        return
    assert plan.width > 0
    assert all(tensor.device.type == "meta" for tensor in plan.tensors.values())

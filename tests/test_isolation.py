"""A model's process reaches nothing but its arrays, and the parent survives whatever it does."""

import errno
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tomoprobe.benchmark import features
from tomoprobe.benchmark.cache import FeatureCache
from tomoprobe.benchmark.errors import (
    EncoderError,
    InstallationError,
    IsolationError,
    ManifestError,
)
from tomoprobe.benchmark.features import extract, identify
from tomoprobe.benchmark.inputs import tiles_of
from tomoprobe.submissions import _isolated_child, _isolated_process, _linux, baselines, isolation
from tomoprobe.submissions._isolated_encoder import IsolatedEncoder
from tomoprobe.submissions._isolated_process import Gone, Late
from tomoprobe.submissions.faults import explain
from tomoprobe.submissions.isolation import Limits, isolated, opened
from tomoprobe.submissions.load import load

from .toy import TOY, cases

HOSTILE = Path(__file__).with_name("hostile_network.py")
MIB = 2**20
LIMITS = Limits(memory=512 * MIB, batch_seconds=60, threads=100, scratch=16 * MIB)

INTENSITY = """
name = "tiny_intensity"
title = "Intensity statistics of a small cube"
authors = "tests"
license = "CC0-1.0"
readout = "all"
pretraining = []
[architecture]
name = "intensity"
[grid]
shape = [8, 8, 8]
[intensity.relative]
type = "Window"
low = 0.0
high = 1.0
"""

RESNET = """
name = "tiny_resnet"
title = "ResNet with trained weights"
authors = "tests"
license = "CC0-1.0"
readout = "concat"
pretraining = []
[architecture]
name = "resnet"
arguments = {block = "basic", layers = [1, 1, 1, 1], block_inplanes = [4, 8, 16, 32]}
[weights]
file = "model.safetensors"
[grid]
shape = [16, 24, 16]
[intensity.relative]
type = "Window"
low = 0.0
high = 1.0
"""

pytestmark = pytest.mark.skipif(
    isolation.available() is not None, reason=f"no isolation here: {isolation.available()}"
)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """In a folder of its own, which another job's shares its parent with."""
    folder = tmp_path / "job1"
    folder.mkdir()
    path = folder / "manifest.toml"
    path.write_text(INTENSITY)
    return path


@pytest.fixture
def hook(tmp_path: Path) -> Callable[..., Path]:
    """Writes the hostile network with what it wants to have."""

    def write(**wanted: object) -> Path:
        path = tmp_path / "hook.py"
        words = {key: str(value) for key, value in wanted.items()}
        line = f"WANTED.update({words!r})"
        path.write_text(HOSTILE.read_text().replace("# WANTED GOES HERE", line))
        path.chmod(0o644)
        return path

    return write


@pytest.fixture
def listener() -> Iterator[int]:
    """The port of a server on this machine that waits for a caller."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def numbered(number: int, n: int = 1) -> torch.Tensor:
    """Volumes that tell the hostile network what to do."""
    x = torch.zeros(n, 1, 8, 8, 8)
    x[:, 0, 0, 0, 0] = number
    return x


def hostile_module(path: Path = HOSTILE) -> ModuleType:
    """Imported here for its list of attacks and its malformed frames, not to be run."""
    spec = importlib.util.spec_from_file_location("hostile_network", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- it can do its work --------------------------------------------------------------------------


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    """A manifest with trained weights, which only their owner may read."""
    bare = tmp_path / "bare.toml"
    bare.write_text(
        RESNET.replace('[weights]\nfile = "model.safetensors"', "").replace(
            "pretraining = []", "pretraining = []\nseed = 1"
        )
    )
    module = load(str(bare)).module
    assert module is not None
    folder = tmp_path / "job"
    folder.mkdir(mode=0o700)
    save_file(module.state_dict(), folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o600)
    (folder / "manifest.toml").write_text(RESNET)
    return folder / "manifest.toml"


def test_isolated_features_equal_the_plain_ones_bit_for_bit(resnet: Path, tmp_path: Path) -> None:
    plain = load(str(resnet))
    some = cases()[:21]  # batches of several sizes
    with isolated(resnet, "cpu") as encoder:
        assert not encoder.unsafe
        assert encoder.card == plain.card
        assert encoder.model_sha == plain.model_sha
        cache = FeatureCache(tmp_path / "cache")
        identity = identify(TOY, some)
        found = cache.get(encoder, "toy", some, identity, None).x
        x = torch.randn(3, 1, 16, 24, 16)
        maps, promised = encoder.maps(x), plain.maps(x)
    np.testing.assert_array_equal(found, extract(plain, some, None))
    assert len(maps) == len(promised) == len(plain.card.strides)
    assert all(torch.equal(a, b) for a, b in zip(maps, promised, strict=True))
    # what was found in isolation serves the plain encoder: they are the same model
    assert FeatureCache(tmp_path / "cache").has(plain, "toy", identity, None, "cpu")


def test_weights_that_do_not_fit_are_refused_in_the_words_of_the_loader(resnet: Path) -> None:
    weights = resnet.parent / "model.safetensors"
    weights.write_bytes(b"\x80\x04not safetensors" + bytes(100))
    with (
        pytest.raises(ManifestError, match="not a whole safetensors file"),
        isolated(resnet, "cpu"),
    ):
        pass


def test_weights_that_are_missing_are_named_before_anything_starts(resnet: Path) -> None:
    (resnet.parent / "model.safetensors").unlink()
    with pytest.raises(ManifestError, match=r"'model.safetensors', which is not beside it"):
        isolated(resnet, "cpu").__enter__()


def test_the_child_gets_cases_in_an_order_that_tells_nothing_and_the_answer_is_the_same(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    ask = IsolatedEncoder._ask

    def record(self: IsolatedEncoder, kind: int, x: np.ndarray) -> list[np.ndarray]:
        sent.extend(volume.tobytes() for volume in x)
        return ask(self, kind, x)

    monkeypatch.setattr(IsolatedEncoder, "_ask", record)
    monkeypatch.setattr(features, "BATCH_VOXELS", 4 * 8**3)
    some = cases()
    orders: list[list[int]] = []
    found = []
    with isolated(manifest, "cpu") as encoder:
        for _ in range(2):
            sent.clear()
            found.append(extract(encoder, some, None, check=False))
            known = {tiles_of(case, encoder.card, None).tobytes(): i for i, case in enumerate(some)}
            orders.append([known[volume] for volume in sent])
        sent.clear()
        backwards = extract(encoder, some[::-1], None, check=False)
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(60))
    assert orders[0] != orders[1]
    assert sorted(orders[0]) not in orders
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], backwards[::-1])
    np.testing.assert_array_equal(found[0], extract(load(str(manifest)), some, None))


def test_an_array_of_the_wrong_kind_is_not_sent(manifest: Path) -> None:
    with isolated(manifest, "cpu") as encoder:
        for x in (torch.zeros(1, 1, 8, 8), torch.zeros(0, 1, 8, 8, 8), numbered(0).double()):
            with pytest.raises(EncoderError, match=r"float32 \(B, 1, 8, 8, 8\) is expected"):
                encoder.embed(x)


# --- it can do nothing else ----------------------------------------------------------------------


def test_every_attack_of_a_hostile_network_fails(
    manifest: Path,
    hook: Callable[..., Path],
    listener: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOMOPROBE_DB", "postgresql://board:s3cr3t-of-the-board@db/board")
    labels = tmp_path / "labels.csv"
    labels.write_text("case,label\ncase000,benign\n")
    other = tmp_path / "job2.safetensors"
    other.write_bytes(b"another job's weights")
    for file in (labels, other):
        file.chmod(0o644)
    wanted = {
        "labels": labels,
        "other": other,
        "folder": tmp_path,
        "secret": "s3cr3t-of-the-board",
        "port": listener,
        "parent": os.getpid(),
        "scratch": LIMITS.scratch,
        "threads": LIMITS.threads,
    }
    path = hook(**wanted)
    attacks = [attack.__name__ for attack in hostile_module(path).ATTACKS]
    with opened(manifest, "cpu", LIMITS, hook=path) as encoder:
        answer = encoder.embed(numbered(0))[0].numpy()
        # and it still does its work: nothing was stopped by a crash
        assert encoder.embed(numbered(8)).shape == (1, encoder.card.width)
        assert "printed, as libraries do" in encoder.log
    assert len(attacks) >= 30
    assert [name for name, worked in zip(attacks, answer, strict=False) if worked] == []
    assert not list(tmp_path.rglob("hostile"))


@pytest.fixture
def control(
    manifest: Path, hook: Callable[..., Path], listener: int, tmp_path: Path
) -> dict[str, bool]:
    """What the harmless ones of the attacks achieve where no wall is, in a process of its own."""
    labels = tmp_path / "labels.csv"
    labels.write_text("benign")
    path = hook(labels=labels, other=labels, port=listener, parent=os.getpid())
    harmless = (
        "read_the_labels",
        "read_another_jobs_file",
        "reach_a_server_on_this_machine",
        "open_any_socket",
        "signal_the_parent",
        "fork",
        "start_a_program",
        "become_a_program",
        "see_who_uses_this_machine",
        "change_the_kernels_settings",
        "hide_memory_in_a_file",
    )
    script = (
        "import importlib.util, json, sys\n"
        f"spec = importlib.util.spec_from_file_location('hostile_network', {str(path)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        f"names = {harmless!r}\n"
        "print(json.dumps({n: module.attack(getattr(module, n)) for n in names}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(_linux.platform.machine() != "x86_64", reason="its numbers are of x86-64")
def test_the_same_attacks_work_where_there_is_no_isolation(control: dict[str, bool]) -> None:
    assert [name for name, worked in control.items() if not worked] == []


def test_the_filter_of_system_calls_is_of_this_processor_and_ends_by_allowing() -> None:
    program = _linux.filter_program(gpu=False)
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096  # BPF_MAXINSNS
    assert program[-8:] == bytes.fromhex("060000000000ff7f")
    assert len(_linux.filter_program(gpu=True)) < len(program)


# --- it breaks, and the parent does not ----------------------------------------------------------


def test_a_hanging_network_is_stopped_with_a_reason_and_another_child_goes_on(
    manifest: Path, hook: Callable[..., Path]
) -> None:
    limits = Limits(memory=512 * MIB, batch_seconds=2)
    with opened(manifest, "cpu", limits, hook=hook()) as encoder:
        started = time.monotonic()
        with pytest.raises(
            EncoderError, match=r"stopped: embedding 1 volumes took longer than .* 2"
        ):
            encoder.embed(numbered(1))
        assert time.monotonic() - started < 10
        assert encoder._child is None
        with pytest.raises(EncoderError, match=r"ended .* while embedding") as caught:
            encoder.embed(numbered(2))
    message = str(caught.value)
    assert "status 7" in message
    assert message.endswith("the end")
    assert len(message) < 2500
    assert not any(ord(letter) < 32 and letter != "\n" for letter in message)


def test_out_of_memory_halves_the_batch_and_goes_on(
    manifest: Path, hook: Callable[..., Path]
) -> None:
    limits = Limits(memory=450 * MIB)
    x = numbered(4, n=5)
    x[:, 0, 1, 1, 1] = torch.arange(5)
    with opened(manifest, "cpu", limits, hook=hook()) as encoder:
        out = encoder.embed(x)
    assert out[:, 0].tolist() == [4.0, 5.0, 6.0, 7.0, 8.0]


def test_a_network_without_measure_gets_no_memory_and_a_reason(
    manifest: Path, hook: Callable[..., Path]
) -> None:
    with (
        opened(manifest, "cpu", LIMITS, hook=hook()) as encoder,
        pytest.raises(EncoderError, match=r"more memory than there is .*0.5 GiB.* batch of one"),
    ):
        encoder.embed(numbered(5))


def kill(encoder: IsolatedEncoder) -> None:
    """The child, and wait for its own child, which answers and dies of that a moment later."""
    assert encoder._child is not None
    encoder._child._process.kill()
    assert select.select([encoder._child._out], [], [], 30)[0], "the pipe ends"


def test_a_child_that_is_killed_once_is_asked_again_with_the_whole_batch(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = IsolatedEncoder._ask

    def killed_first(self: IsolatedEncoder, kind: int, x: np.ndarray) -> list[np.ndarray]:
        asked.append(len(x))
        if len(asked) == 1:
            kill(self)
        return ask(self, kind, x)

    x = torch.rand(4, 1, 8, 8, 8)
    with isolated(manifest, "cpu") as encoder:
        monkeypatch.setattr(IsolatedEncoder, "_ask", killed_first)
        assert torch.equal(encoder.embed(x), load(str(manifest)).embed(x))
        assert encoder._largest is None
    assert asked == [4, 4]


def test_a_child_that_ends_at_its_buffers_is_told_by_whose_fault(manifest: Path) -> None:
    with isolated(manifest, "cpu") as encoder:
        kill(encoder)
        with pytest.raises(IsolationError, match="was killed while telling its buffers") as killed:
            encoder.buffers()
        assert explain(killed.value, "extract").fault == "platform"
        told = _isolated_child.HEAD.pack(_isolated_child.MAGIC, _isolated_child.MEMORY, 0)
        encoder._child = Teller(told, ends=False)  # type: ignore[assignment]
        with pytest.raises(EncoderError, match="more memory than its process may take"):
            encoder.buffers()


def test_what_this_machine_lacks_is_told_as_its_own_fault(
    manifest: Path, hook: Callable[..., Path]
) -> None:
    with (
        opened(manifest, "cpu", LIMITS, hook=hook()) as encoder,
        pytest.raises(InstallationError, match=r"this machine: ImportError: libcudart") as caught,
    ):
        encoder.embed(numbered(9))
    assert explain(caught.value, "extract").fault == "platform"


def test_memory_that_the_system_refuses_is_the_models_and_not_the_machines_fault() -> None:
    assert _isolated_child._of_memory(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    assert not _isolated_child._of_memory(OSError(errno.EIO, os.strerror(errno.EIO)))


@pytest.mark.slow
def test_what_is_killed_again_and_again_is_the_machines_fault_and_a_crash_is_not(
    manifest: Path, hook: Callable[..., Path]
) -> None:
    with opened(manifest, "cpu", LIMITS, hook=hook()) as encoder:
        with pytest.raises(IsolationError, match="killed twice at one volume"):
            encoder.embed(numbered(6, n=2))
        assert encoder._largest == 1
        with pytest.raises(EncoderError, match="ended"):
            encoder.embed(numbered(3))
        with pytest.raises(EncoderError, match="ended"):
            encoder.embed(numbered(7))  # closes its pipe and stays


def test_a_network_that_lies_about_its_answer_is_not_believed(
    manifest: Path, hook: Callable[..., Path]
) -> None:
    kinds = list(hostile_module().answers(1, 1))
    with opened(manifest, "cpu", LIMITS, hook=hook()) as encoder:
        with pytest.raises(EncoderError, match="returned an array of shape"):
            encoder.embed(numbered(100 + kinds.index("a huge shape")))
        with pytest.raises(EncoderError, match="no network of ours does"):
            encoder.embed(numbered(100 + kinds.index("a pickle")))


class Teller:
    """Stands for a child that has said certain bytes and then ends, or is silent."""

    def __init__(self, said: bytes, ends: bool) -> None:
        self.said, self.ends = said, ends
        self.log = "its log"
        self.stopped = False

    def send(self, kind: int, parts: object, deadline: float) -> None:
        pass

    def fill(self, view: memoryview, deadline: float) -> None:
        part, self.said = self.said[: len(view)], self.said[len(view) :]
        if len(part) < len(view):
            raise Gone(1) if self.ends else Late
        view[:] = part

    def stop(self) -> None:
        self.stopped = True


def test_malformed_answers_of_every_kind_end_the_child_with_a_clear_reason(manifest: Path) -> None:
    words = "answered|returned|ended|took longer|fails"  # each with the encoder's name before it
    with isolated(manifest, "cpu") as encoder:
        real = encoder._child
        for kind, said in hostile_module().answers(2, encoder.card.width).items():
            for ends in (True, False):
                teller = Teller(said, ends)
                encoder._child = teller  # type: ignore[assignment]
                with pytest.raises(EncoderError, match=f"'tiny_intensity'.*({words})") as caught:
                    encoder.embed(numbered(0, n=2))
                assert teller.stopped == (kind != "NaN"), kind  # which is an answer, but a bad one
                assert "\x1b" not in str(caught.value)
        encoder._child = real


def test_a_child_cannot_claim_to_be_another_model(manifest: Path) -> None:
    with isolated(manifest, "cpu") as encoder:
        honest = {**encoder._ready, "buffers": False}  # type: ignore[dict-item]
        lies: list[dict[str, object]] = [
            {"width": 0},
            {"width": True},
            {"width": 2**40},
            {"width": "52"},
            {"strides": [0]},
            {"strides": [9]},
            {"strides": [1] * 1000},
            {"strides": None},
            {"parameters": -1},
            {"identity": []},
            {"identity": {**encoder.manifest, "readout": "another"}},
            {"identity": {**encoder.manifest, "seed": 5}},
            {"identity": {**encoder.manifest, "card": {}}},
            {"width": encoder.card.width + 1},
        ]
        assert encoder._check_ready(honest)["width"] == encoder.card.width
        for lie in lies:
            with pytest.raises(EncoderError, match="no network of ours does"):
                encoder._check_ready(honest | lie)


# --- around it -----------------------------------------------------------------------------------


def test_the_parents_memory_is_closed_to_others_of_its_user_meanwhile(manifest: Path) -> None:
    assert _linux.is_dumpable()
    with isolated(manifest, "cpu"):
        assert not _linux.is_dumpable()
    assert _linux.is_dumpable()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_child_ends_with_a_parent_that_is_killed(manifest: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tomoprobe.submissions.isolation import isolated\n"
        "with isolated(Path(sys.argv[1]), 'cpu') as encoder:\n"
        "    print(encoder._child._process.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, str(script), str(manifest)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        supervisor = int(parent.stdout.readline())
        tasks = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        family = [supervisor, *map(int, tasks)]
        assert len(family) == 2
        assert all(map(running, family))
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(map(running, family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, family))


# --- where there is no isolation -----------------------------------------------------------------


def test_without_isolation_nothing_is_run(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: object, isolated: bool) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(isolation, "available", lambda: "the kernel has no namespaces")
    monkeypatch.setattr(_isolated_process.Child, "__init__", start)
    with (
        pytest.raises(IsolationError, match=r"the kernel has no namespaces\..*--unsafe-local"),
        isolated(manifest, "cpu"),
    ):
        pass


def test_unsafe_local_runs_a_plain_process_and_says_so(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "available", lambda: "the kernel has no namespaces")
    x = torch.rand(4, 1, 8, 8, 8)
    with isolated(manifest, "cpu", unsafe_local=True) as encoder:
        assert encoder.unsafe
        assert torch.equal(encoder.embed(x), load(str(manifest)).embed(x))


def test_a_wall_that_cannot_be_put_up_is_a_fault_of_the_platform(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_isolated_process, "_DEVICES", ("/dev/null", "/proc/self"))
    with pytest.raises(IsolationError, match="could not be closed off"), isolated(manifest, "cpu"):
        pass


def test_a_machine_without_namespaces_says_what_is_missing() -> None:
    # root of a user namespace in which there is nobody else to become
    done = subprocess.run(
        [
            "unshare",
            "-Ur",
            sys.executable,
            "-c",
            "from tomoprobe.submissions.isolation import available; print(available())",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode != 0 and "unshare" in done.stderr:
        pytest.skip(f"unshare does not work here: {done.stderr}")
    assert "Invalid argument" in done.stdout or "not permitted" in done.stdout


def test_baselines_are_found_where_they_are_installed() -> None:
    with isolated(baselines.path("intensity"), "cpu") as encoder:
        assert encoder.card == load("intensity").card

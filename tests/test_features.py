"""An encoder is run once, checked, and its features are kept."""

import errno
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tomoprobe.benchmark import features
from tomoprobe.benchmark.cache import FeatureCache, cache_key
from tomoprobe.benchmark.errors import DataError, EncoderError, StorageError
from tomoprobe.benchmark.features import extract, identify
from tomoprobe.benchmark.types import Grid

from .toy import ENCODER_CARD, TOY, ToyEncoder, case, cases


class NanEncoder(ToyEncoder):
    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return super().embed(x) / 0


class WideEncoder(ToyEncoder):
    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return super().embed(x).repeat(1, 2)


class BatchNormalised(ToyEncoder):
    def embed(self, x: torch.Tensor) -> torch.Tensor:
        y = super().embed(x)
        return y - y.mean(0)


class Drifting(ToyEncoder):
    """A network that was left in training mode on a layer whose output is not used."""

    def __init__(self) -> None:
        super().__init__(module=torch.nn.BatchNorm3d(1))

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        assert self.module is not None
        self.module.train()
        self.module(x)
        return super().embed(x)


def test_features_come_back_in_the_order_of_the_cases() -> None:
    some = cases()
    x = extract(ToyEncoder(), some, None)
    backwards = extract(ToyEncoder(), some[::-1], None)
    np.testing.assert_array_equal(x, backwards[::-1])
    inner = some[7].load().voxels[0, 2:6, 2:6, 2:6]
    assert x[7, 0] == pytest.approx(inner.mean(), abs=1e-6)


def test_tiles_are_pooled_into_one_row_per_case() -> None:
    small = replace(ENCODER_CARD, grid=Grid((4, 8, 8), (1.0, 1.0, 1.0)), tiling="tiles", overlap=0)

    class Mean(ToyEncoder):
        def embed(self, x: torch.Tensor) -> torch.Tensor:
            flat = x.flatten(1)
            return torch.stack([flat.mean(1), flat.max(1).values], dim=1)

    some = cases()[:3]
    mean = extract(Mean(small), some, None)
    largest = extract(Mean(replace(small, pool="max")), some, None)
    for row, c in enumerate(some):
        voxels = c.load().voxels
        assert mean[row, 0] == pytest.approx(voxels.mean(), abs=1e-5)
        assert largest[row, 1] == pytest.approx(voxels.max(), abs=1e-5)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (NanEncoder(), "NaN or infinity"),
        (WideEncoder(), r"its card promises"),
        (BatchNormalised(), "depend on the batch"),
        (Drifting(), "changed its buffers"),
    ],
)
def test_a_misbehaving_encoder_is_refused(encoder: ToyEncoder, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        extract(encoder, cases(), None)


class ReturnsNumpy(ToyEncoder):
    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return super().embed(x).numpy()  # type: ignore[return-value]


class Fails(ToyEncoder):
    def embed(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize(
    ("encoder", "message"), [(ReturnsNumpy(), "ndarray"), (Fails(), "mat1 and mat2")]
)
def test_a_fault_in_an_encoders_own_code_is_told(encoder: ToyEncoder, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        extract(encoder, cases(), None)


def test_batch_dependence_shows_where_one_grid_fills_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(features, "BATCH_VOXELS", 8**3)
    with pytest.raises(EncoderError, match="depend on the batch"):
        extract(BatchNormalised(), cases(), None)


def test_a_large_feature_does_not_hide_one_that_depends_on_the_batch() -> None:
    class Loud(ToyEncoder):
        def embed(self, x: torch.Tensor) -> torch.Tensor:
            mean, sd = super().embed(x).unbind(1)
            return torch.stack([1e6 + mean, sd - sd.mean(), mean, sd], dim=1)

    with pytest.raises(EncoderError, match="depend on the batch"):
        extract(Loud(replace(ENCODER_CARD, width=4)), cases(), None)


def test_an_image_that_cannot_be_loaded_is_no_fault_of_the_cache(tmp_path: Path) -> None:
    def missing() -> None:
        raise FileNotFoundError("scan.nii.gz")

    some = [replace(cases()[0], load=missing), *cases()[1:]]  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"case000.*scan\.nii\.gz"):
        FeatureCache(tmp_path).get(ToyEncoder(), "toy", some, identify(TOY, some), None)


def test_a_reader_that_changed_is_another_key() -> None:
    some = cases()
    keys = {
        cache_key(ToyEncoder(), identify(task, some), None, "cpu")
        for task in (
            TOY,
            replace(TOY, card=replace(TOY.card, version=2)),
            replace(TOY, source_sha="edited"),
            replace(TOY, card=replace(TOY.card, data_set="other")),
        )
    }
    assert len(keys) == 4


def test_a_gpu_that_runs_out_of_memory_halves_the_batch() -> None:
    class Hungry(ToyEncoder):
        def embed(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 3:
                raise torch.cuda.OutOfMemoryError
            return super().embed(x)

    some = torch.randn(10, 1, 8, 8, 8)
    wanted = ToyEncoder().embed(some).numpy()
    np.testing.assert_allclose(features.embedded(Hungry(), some, 8, "cpu"), wanted, atol=1e-6)


def test_cached_features_are_read_and_not_computed_again(tmp_path: Path) -> None:
    encoder, cache, some = ToyEncoder(), FeatureCache(tmp_path), cases()
    first = cache.get(encoder, "toy", some, identify(TOY, some), None)
    seen = encoder.seen
    again = cache.get(encoder, "toy", some[::-1], identify(TOY, some[::-1]), None)
    assert encoder.seen == seen
    np.testing.assert_array_equal(first.x, again.x[::-1])
    assert again.seconds == first.seconds > 0


def test_the_key_changes_with_all_that_decides_the_features() -> None:
    encoder, some = ToyEncoder(), identify(TOY, cases())
    key = cache_key(encoder, some, None, "cpu")
    assert cache_key(ToyEncoder(model_sha="1" * 64), some, None, "cpu") != key
    assert cache_key(encoder, identify(TOY, cases()[:-1]), None, "cpu") != key
    assert cache_key(encoder, some, (1.0, 2.0, 3.0), "cpu") != key
    assert cache_key(encoder, some, None, "cuda:0") != key
    assert cache_key(encoder, some, None, "cuda:1") == cache_key(encoder, some, None, "cuda:0")


def test_targets_change_the_data_hash_but_not_the_key() -> None:
    some = cases()
    relabelled = [replace(c, target=1 - int(c.target)) for c in some]  # type: ignore[arg-type]
    assert identify(TOY, some).dataset_sha != identify(TOY, relabelled).dataset_sha
    assert identify(TOY, some).images_sha == identify(TOY, relabelled).images_sha


def test_a_truncated_cache_file_is_computed_again(tmp_path: Path) -> None:
    encoder, cache, some = ToyEncoder(), FeatureCache(tmp_path), cases()
    first = cache.get(encoder, "toy", some, identify(TOY, some), None)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-50])
    again = cache.get(encoder, "toy", some, identify(TOY, some), None)
    np.testing.assert_array_equal(first.x, again.x)


def test_a_full_disk_is_told_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left on device"):
        FeatureCache(tmp_path).get(ToyEncoder(), "toy", cases(), identify(TOY, cases()), None)
    assert not list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob("*.part"))


IN_A_PROCESS = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from tests.toy import TOY, ToyEncoder, cases
from tomoprobe.benchmark.cache import FeatureCache
from tomoprobe.benchmark.features import identify

encoder = ToyEncoder()
FeatureCache(Path(sys.argv[2])).get(encoder, "toy", cases(), identify(TOY, cases()), None)
print(encoder.seen)
"""


@pytest.mark.slow
def test_two_processes_at_once_extract_once(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", IN_A_PROCESS, root, str(tmp_path)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    seen = sorted(int(worker.communicate(timeout=120)[0]) for worker in workers)
    assert seen[0] == 0 and seen[1] >= 60


def test_cleaning_frees_the_files_of_one_model(tmp_path: Path) -> None:
    cache, some = FeatureCache(tmp_path), cases()
    other = ToyEncoder(replace(ENCODER_CARD, name="other"), model_sha="1" * 64)
    for encoder in (ToyEncoder(), other):
        cache.get(encoder, "toy", some, identify(TOY, some), None)
    assert {(e.model, e.n, e.width) for e in cache.entries()} == {
        ("toy_mean", 60, 2),
        ("other", 60, 2),
    }
    assert cache.clean("other") > 0
    assert [e.model for e in cache.entries()] == ["toy_mean"]


def test_an_image_counts_once_in_the_identity_whatever_the_order() -> None:
    some = cases()
    assert identify(TOY, some).dataset_sha == identify(TOY, some[::-1]).dataset_sha
    assert identify(TOY, some).dataset_sha != identify(TOY, [*some[:-1], case(99)]).dataset_sha

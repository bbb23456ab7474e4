"""A region goes with its image to the encoders that ask for it, and to no other."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np
import pytest
import torch

from tomoprobe.benchmark.cache import cache_key
from tomoprobe.benchmark.errors import EncoderError, ManifestError, MaskError
from tomoprobe.benchmark.features import extract, identify
from tomoprobe.benchmark.types import Case, EncoderCard, Grid, Region, Task, Volume, Window
from tomoprobe.submissions import baselines
from tomoprobe.submissions.load import load
from tomoprobe.submissions.manifest import card_identity, parse, read

from .toy import CARD, ToyEncoder

SHAPE = (10, 14, 9)
AFFINE = np.diag([2.0, 1.5, 3.0, 1.0])

ENCODER_CARD = EncoderCard(
    name="toy_region",
    title="Mean of the image inside the region, and the region's size",
    grid=Grid((12, 12, 12), (2.0, 2.0, 2.0), "LAI"),
    intensity={"relative": Window(0, 1)},
    width=2,
    region=True,
)


@dataclass
class RegionEncoder:
    """Mean inside the mask and its size; keeps what it was shown."""

    card: EncoderCard = ENCODER_CARD
    model_sha: str = "2" * 64
    module: torch.nn.Module | None = None
    shown: list[torch.Tensor] = field(default_factory=list)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        self.shown.append(x)
        image, mask = x[:, :-1], x[:, -1:]
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("not a mask")
        size = mask.sum((1, 2, 3, 4))
        return torch.stack([(image * mask).sum((1, 2, 3, 4)) / size.clamp(min=1), size], dim=1)

    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        del x
        return []


def lesion() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[1:5, 6:12, 2:6] = True
    return mask


def case(
    index: int = 0, mask: np.ndarray | None = None, affine: np.ndarray = AFFINE, bright: bool = True
) -> Case:
    """A volume that is 1 inside the lesion; ``mask`` becomes its region."""
    voxels = (lesion() if bright else np.zeros(SHAPE))[None].astype(np.float32)
    volume = Volume(voxels, AFFINE, "relative")
    region = None
    if mask is not None:
        region = Region(lambda: (mask, affine), lambda: sha256(mask.tobytes()).hexdigest())
    return Case(
        id=f"case{index}",
        patient=f"p{index}",
        target=0,
        load=lambda: volume,
        digest=lambda: sha256(voxels.tobytes() + bytes([index])).hexdigest(),
        region=region,
    )


# --- extraction -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tiling", ["crop", "tiles"])
@pytest.mark.parametrize("axes", ["RAS", "LAI", "PSR"])
def test_the_mask_lies_on_its_image(axes: str, tiling: str) -> None:
    grid = Grid((12, 12, 12) if tiling == "crop" else (8, 8, 8), (1.5, 1.5, 1.5), axes)
    card = replace(ENCODER_CARD, grid=grid, tiling=tiling)  # type: ignore[arg-type]
    encoder = RegionEncoder(card)
    extract(encoder, [case(mask=lesion())], None, check=False)
    image, mask = torch.cat(encoder.shown).unbind(1)
    assert (mask.sum() > 100) and (len(mask) == 1 if tiling == "crop" else len(mask) > 1)
    # where the interpolated image is clearly bright or dark, the mask says the same
    clear = (image - 0.5).abs() > 0.26
    assert ((image > 0.5) == (mask == 1))[clear].all()
    assert clear.float().mean() > 0.8


def test_a_field_of_view_cuts_mask_and_image_alike() -> None:
    encoder = RegionEncoder()
    x = extract(encoder, [case(mask=lesion())], (12.0, 12.0, 12.0), check=False)
    whole = extract(encoder, [case(mask=lesion())], None, check=False)
    assert 0 < x[0, 1] < whole[0, 1]
    assert x[0, 0] > 0.8


def test_without_a_region_the_mask_is_empty() -> None:
    x = extract(RegionEncoder(), [case(0), case(1, mask=lesion())], None, check=False)
    np.testing.assert_array_equal(x[0], [0, 0])
    assert x[1, 1] > 0


def test_other_encoders_never_see_or_load_a_region() -> None:
    def load_region() -> tuple[np.ndarray, np.ndarray]:
        raise AssertionError("loaded")

    hidden = replace(case(), region=Region(load_region, lambda: "0" * 64))
    plain = ToyEncoder()
    extract(plain, [hidden], None)
    assert plain.seen > 0
    with pytest.raises(Exception, match="loaded"):
        extract(RegionEncoder(), [hidden], None)


def test_the_check_for_dependence_on_the_batch_shows_a_mask() -> None:
    encoder = RegionEncoder()
    extract(encoder, [case(mask=lesion())], None)  # the encoder refuses what is not 0 or 1
    pair = encoder.shown[0]
    assert len(pair) == 2
    assert pair[1, -1].any() and not torch.equal(pair[0, -1], pair[1, -1])

    class Normalised(RegionEncoder):
        def embed(self, x: torch.Tensor) -> torch.Tensor:
            y = super().embed(x)
            return y - y.mean(0)

    with pytest.raises(EncoderError, match="depend on the batch"):
        extract(Normalised(), [case(mask=lesion())], None)


def test_a_region_off_its_image_is_refused_by_the_cases_name() -> None:
    shifted = AFFINE.copy()
    shifted[0, 3] = 5.0
    with pytest.raises(MaskError, match=r"case7.*mm away"):
        extract(RegionEncoder(), [case(7, lesion(), shifted)], None)
    with pytest.raises(MaskError, match=r"case8.*9.*voxels"):
        extract(RegionEncoder(), [case(8, lesion()[:-1])], None)


def test_a_region_that_is_lost_on_the_grid_is_refused_by_the_cases_name() -> None:
    corner = np.zeros(SHAPE, bool)
    corner[0, 0, 0] = True
    with pytest.raises(MaskError, match=r"case3.*1 voxels.*none on the grid of encoder 'toy_reg"):
        extract(RegionEncoder(), [case(3, corner)], (8.0, 8.0, 8.0))


# --- identities -----------------------------------------------------------------------------------


def task_of(cases: list[Case]) -> Task:
    return Task(replace(CARD, counts={}), lambda root: cases)


def test_regions_change_the_cache_key_of_encoders_that_see_them_alone() -> None:
    other = lesion()
    other[0, 0, 0] = True
    sets = [[case(0), case(1)], [case(0), case(1, lesion())], [case(0), case(1, other)]]
    none, some, corrected = (identify(task_of(cases), cases) for cases in sets)
    assert len({i.images_sha for i in (none, some, corrected)}) == 1
    assert len({i.dataset_sha for i in (none, some, corrected)}) == 1
    plain = {cache_key(ToyEncoder(), i, None, "cpu") for i in (none, some, corrected)}
    seeing = {cache_key(RegionEncoder(), i, None, "cpu") for i in (none, some, corrected)}
    assert len(plain) == 1
    assert len(seeing) == 3


def test_which_case_has_the_region_matters() -> None:
    sets = [[case(0, lesion()), case(1)], [case(0), case(1, lesion())]]
    first, second = (identify(task_of(cases), cases) for cases in sets)
    assert first.regions_sha != second.regions_sha
    assert first.regions_sha == identify(task_of(sets[0][::-1]), sets[0][::-1]).regions_sha


PUBLISHED = {
    "intensity": "580e2f455ece4e338fba591722d630bfd33114aec28f75f0f94e734bd7af4f9e",
    "random_resnet10": "b7e8fb6adab4a4266c7f4a7b8129b3694f1296c9159c57039079ad65cb72d46b",
    "random_slices": "813358181c81b668386fd2511445e025660f26e299650efcf63ed8565d25a939",
    "random_swin": "336c0c3636514dd69f3aa2f9809586a505b8ef7ea79adc8869cf1f6f831289a2",
    "texture": "8b1f85121130c72a7e6324f506458ae0709806c93396a3e7ab3a6c3e28738db5",
}
"""Identities of the first baselines, from before cards had regions: rows carry them. Only another
VERSION of an architecture, or a manifest that was changed on purpose, changes one."""


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_first_baselines_keep_their_identities(name: str) -> None:
    assert load(name).model_sha == PUBLISHED[name]


def test_a_region_is_part_of_a_models_identity_only_where_there_is_one() -> None:
    cards = {card.name: card for card in baselines.cards()}
    assert "region" not in card_identity(cards["texture"])
    assert card_identity(cards["radiomics"])["region"] is True


def test_any_architecture_may_take_the_mask_as_one_more_channel() -> None:
    small = {
        "seed": 0,
        "shape": [16, 16, 16],
        "layers": [1, 1, 1, 1],
        "block_inplanes": [4, 4, 4, 4],
    }
    plain, seeing = (load("resnet", arguments={**small, "region": r}) for r in (False, True))
    assert plain.model_sha == load("resnet", arguments=small).model_sha != seeing.model_sha
    assert (plain.card.channels, seeing.card.channels, seeing.card.region) == (1, 1, True)
    x = extract(seeing, [case(mask=lesion()), case(1)], None)
    assert np.abs(x[0] - x[1]).max() > 1e-4  # one image, with and without its mask


def test_a_manifest_may_not_cut_a_region_into_tiles() -> None:
    data = read(baselines.path("radiomics")).model_dump(mode="json", exclude_none=True)
    assert parse(data, "test").region
    with pytest.raises(ManifestError, match="region needs tiling"):
        parse({**data, "tiling": "tiles"}, "test")

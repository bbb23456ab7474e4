"""Segmentation by one light decoder, the same for every encoder.

Each level is reduced to its principal components and projected to ``WIDTH`` channels; the decoder
adds them up from coarse to fine, with one convolution per scale, and the raw image enters at full
resolution. All that differs between encoders is the projections, so the size of the decoder never
decides the rank. Constant maps, as the baseline ``nothing`` gives, leave the raw image alone: the
control without an encoder.

The scales are the lattice's spacing times 1, 2, 4, 8 and 16. Levels coarser than that are read at
the last. Nothing is normalised across space, so that an image of any size is predicted in blocks
without seams. Crops of the training end earlier than the widest view of the coarsest scales, which
is padded there and whole in a test image; it is the same for every encoder.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ProbeError
from ..predictions import HEADLINE
from ..studies import Setting, Trial, trials, with_val
from ..types import Answer, Kind
from ._segmentation import Fit, Ticks, answers, levels_of, mean_dice, some_of, truth_of

if TYPE_CHECKING:
    import pandas as pd

    from ..dense_cache import Pyramids
    from ._decoder import Decoder, Example, Reader, Trained

FLIPS = (0,)
"""Axes of the lattice along which crops are mirrored: left to right. Up and front are kept, because
classes can differ by them."""

LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2
"""Of AdamW; the learning rate rises over the first tenth of the steps and falls to 0 by a half
cosine."""

VAL_CASES = 20
"""That checkpoints are tried on, at most."""


@dataclass(frozen=True)
class Recipe:
    """How long and on what a decoder is trained: the same for every encoder."""

    steps: int = 600
    batch: int = 2
    """Crops per step, each of another training case."""
    crop: int = 32
    """Side of a crop in lattice points, a multiple of the coarsest scale."""
    checkpoints: int = 6
    """At which the decoder is tried on val, evenly spaced; the best one is kept."""
    seeds: int = 2
    """Trainings that differ in initialisation, crops and their order: ``repeat``."""


RECIPE = Recipe()

KEPT_BYTES = 2**31
"""Of reduced training cases in memory; tasks that are larger are read anew in every epoch."""


class Examples:
    """Reduced cases with their labels; as many as fit are kept, those used last."""

    def __init__(self, setting: Setting, pyramids: Pyramids, reader: Reader) -> None:
        self._setting, self._pyramids, self._reader = setting, pyramids, reader
        self._kept: OrderedDict[int, tuple[Example, np.ndarray]] = OrderedDict()
        self._bytes = 0

    def of(self, row: int) -> tuple[Example, np.ndarray]:
        """A case, and its labels on the lattice, padded with 0 like the case."""
        from ..lattice import labels_on
        from ._decoder import padded

        if row in self._kept:
            self._kept.move_to_end(row)
            return self._kept[row]
        pyramid = self._pyramids.of(row)
        example = self._reader(pyramid)
        labels = labels_on(pyramid.lattice, truth_of(self._setting, row, pyramid.lattice)).astype(
            np.uint8
        )
        found = example, padded(labels[None], example.image.shape[1:])[0]
        self._kept[row] = found
        self._bytes += _bytes(found)
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= _bytes(self._kept.popitem(last=False)[1])
        return found


def _bytes(found: tuple[Example, np.ndarray]) -> int:
    example, labels = found
    return sum(a.nbytes for a in (*example.levels, example.image, labels))


def train(
    setting: Setting,
    trial: Trial,
    pyramids: Pyramids,
    seed: int,
    recipe: Recipe = RECIPE,
    tick: Ticks | None = None,
) -> tuple[Trained, dict[str, float]]:
    """Train on the training cases of a trial and keep the checkpoint that is best on val.

    Args:
        setting: encoder and task.
        trial: who trains; test cases are not touched.
        pyramids: maps of the cases.
        seed: of the initialisation, the crops and their order.
        recipe: of the training.
        tick: called after each step.

    Returns:
        What predicts, and what was chosen.

    Raises:
        EncoderError: the encoder gives no maps.
        ProbeError: there is no training case.
    """
    import torch
    from monai.losses.dice import DiceCELoss

    from ._decoder import Decoder, Trained, reader_of, tensors

    trial = with_val(trial, setting.card, setting.cases)
    rows = trial.rows("train")
    if not len(rows):
        raise ProbeError("There is no train case. Use a larger part of the data set.")
    # without a val side, which a handful of patients cannot fill, the training cases stand in
    val = some_of(setting, trial.rows("val") if len(trial.rows("val")) else rows, VAL_CASES)
    levels_of(setting, pyramids.of(int(rows[0])))
    reader = reader_of(setting, rows, pyramids, recipe.crop)
    examples = Examples(setting, pyramids, reader)
    classes = len(setting.card.classes)
    rng = np.random.default_rng([setting.seed, trial.repeat, trial.fold, seed])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        channels = len(examples.of(int(rows[0]))[0].image)
        widths = [one.count for one in reader.components]
        model = Decoder(widths, reader.factors, channels, classes).to(setting.device)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, foreach=False
    )
    steps, every = recipe.steps, max(1, recipe.steps // recipe.checkpoints)
    warm = max(1, steps // 10)

    def pace(step: int) -> float:
        rest = (step - warm) / max(1, steps - warm)
        return (step + 1) / warm if step < warm else 0.5 * (1 + np.cos(np.pi * rest))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, pace)
    order = _order(rows, rng)
    best, kept, at = -1.0, {}, 0
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with exact, torch.enable_grad():
        for step in range(1, steps + 1):
            crops, labels = [], []
            for row in itertools.islice(order, recipe.batch):
                crop, label = _crop(*examples.of(row), reader.factors, recipe.crop, rng)
                crops.append(crop)
                labels.append(label)
            levels, image = tensors(crops, setting.device)
            truth = torch.from_numpy(np.stack(labels)[:, None]).to(setting.device).float()
            loss = loss_of(model(levels, image), truth)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % every == 0:
                dice = _val_dice(model, examples, val, setting.device, classes)
                if dice > best:
                    best, at = dice, step
                    kept = {k: v.detach().clone() for k, v in model.state_dict().items()}
            if tick:
                tick()
    model.load_state_dict(kept)
    model.eval()
    own, projections = model.sizes()
    return (
        Trained(model, reader, setting.device),
        {
            "step": float(at),
            "val_dice": best,
            "decoder_parameters": float(own),
            "projection_parameters": float(projections),
        },
    )


def _order(rows: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """Training cases without end, each once per epoch."""
    while True:
        yield from rng.permutation(rows).tolist()


def _crop(
    example: Example,
    labels: np.ndarray,
    factors: Sequence[int],
    side: int,
    rng: np.random.Generator,
) -> tuple[tuple[list[np.ndarray], np.ndarray], np.ndarray]:
    """A crop at a multiple of the coarsest scale; every other one holds a foreground voxel."""
    from ._decoder import SCALES, cut

    coarsest = SCALES[-1]
    inside = np.flatnonzero(labels) if rng.random() < 0.5 else np.empty(0, int)
    flat = rng.choice(inside) if len(inside) else rng.integers(labels.size)
    center = np.array(np.unravel_index(flat, labels.shape))
    low = (center - rng.integers(side - coarsest + 1, size=3)) // coarsest * coarsest
    low = np.clip(low, 0, np.array(labels.shape) - side).tolist()
    high = [n + side for n in low]
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    levels, image = cut(example, factors, low, high)
    flips = [axis for axis in FLIPS if rng.random() < 0.5]

    def turned(values: np.ndarray, first: int) -> np.ndarray:
        return np.ascontiguousarray(np.flip(values, tuple(axis + first for axis in flips)))

    return ([turned(v, 1) for v in levels], turned(image, 1)), turned(labels[box], 0)


def _val_dice(
    model: Decoder,
    examples: Examples,
    rows: Sequence[int],
    device: str,
    classes: int,
) -> float:
    """Of whole val cases on the lattice."""
    from ._decoder import predicted

    both, either = np.zeros((len(rows), classes)), np.zeros((len(rows), classes))
    for i, row in enumerate(rows):
        example, labels = examples.of(row)
        x, y, z = example.shape
        truth = labels[:x, :y, :z].ravel()
        found = predicted(model, example, device).argmax(0).ravel()
        both[i] = np.bincount(truth[truth == found], minlength=classes)
        either[i] = np.bincount(truth, minlength=classes) + np.bincount(found, minlength=classes)
    return mean_dice(both, either)


@dataclass(frozen=True)
class SegmentDecoder:
    """One light decoder on all levels and the image; ``repeat`` is the seed.

    Under cross-validation one repeat of five folds, with one seed.
    """

    name: str = "segment_decoder"
    title: str = "One light decoder, the same for every encoder, on all maps and the image"
    version: int = 1
    kinds: tuple[Kind, ...] = ("segmentation",)
    answers: Answer = "segmentation"
    recipe: Recipe = RECIPE
    cost: str = (
        f"{RECIPE.steps} steps of {RECIPE.batch} crops of {RECIPE.crop}x{RECIPE.crop}x"
        f"{RECIPE.crop} points per seed: 1 to 2 minutes on two CPU cores; not measured on a GPU."
    )

    def run(self, setting: Setting) -> pd.DataFrame:
        """See ``Study.run``."""
        import pandas as pd

        from ..dense_cache import Pyramids

        pyramids = Pyramids(setting)
        planned = list(trials(setting.card, setting.cases, repeats=1))
        seeds = range(self.recipe.seeds if len(planned) == 1 else 1)
        each = [self.recipe.steps * len(seeds) + len(trial.rows("test")) for trial in planned]
        tick = Ticks(setting, sum(each))
        rows = []
        for trial in planned:
            fits = []
            for seed in seeds:
                trained, found = train(setting, trial, pyramids, seed, self.recipe, tick)
                about = {"repeat": seed, "fold": trial.fold, "refit": HEADLINE}
                chosen = {f"chosen_{name}": value for name, value in found.items()}
                fits.append(Fit({**about, **chosen}, trained))
            first = trial is planned[0]
            rows += answers(setting, trial.rows("test"), pyramids, fits, tick, first)
        return pd.DataFrame(rows)


PROBES = (SegmentDecoder(),)

"""The nouns of tomoprobe. Standard library only, so that listing tasks costs nothing.

Axis order, fixed once: B batch, C channel, X Y Z space (RAS+ unless a model's card says
otherwise), then F features, K classes, N cases. Lengths are in mm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    runtime_checkable,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .targets import FollowUp, Labels, Lesion, Pair, Suspects

Modality = Literal["CT", "MR", "CT and MR", "EM"]
"""How the patient was scanned; EM is electron microscopy, which is no radiology (MedMNIST)."""

Unit = Literal["HU", "scanner", "relative"]
"""What a voxel's number means: Hounsfield units (CT); scanner units (MR); or ``relative``, scaled
to [0, 1] by the publisher, so that no physical meaning is left (MedMNIST, masks as images)."""

Kind = Literal[
    "classification",
    "regression",
    "segmentation",
    "registration",
    "detection",
    "candidates",
    "survival",
]
"""What is asked of a case."""

Answer = Kind | Literal["retrieval", "robustness", "stability"]
"""What a probe's answers are, and with it the metrics that score them: mostly what was asked."""

Split = Literal["train", "val", "test"]

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]


# --- volumes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Volume:
    """One image in canonical orientation."""

    voxels: np.ndarray
    """(C, X, Y, Z) float32; axes nearest to RAS+; HU, scanner units or [0, 1], see ``unit``."""
    affine: np.ndarray
    """(4, 4) float64; voxel index to scanner mm; its columns keep an oblique scan's direction."""
    unit: Unit

    @property
    def spacing(self) -> Triple:
        """Voxel size in mm along X, Y, Z: the lengths of the affine's columns."""
        x, y, z = (sum(float(a) ** 2 for a in self.affine[:3, i]) ** 0.5 for i in range(3))
        return (x, y, z)


@dataclass(frozen=True)
class Grid:
    """The array a model wants."""

    shape: Shape
    """Voxels along the model's three axes."""
    spacing: Triple | None = None
    """mm along the model's three axes. ``None``: isotropic, the finest at which the task's field
    of view fits into ``shape``, for models that are defined by their input shape alone."""
    axes: str = "RAS"
    """The direction in which each of the model's axes runs, e.g. ``"LAI"``."""


@dataclass(frozen=True)
class Window:
    """Linear map of [low, high], clipped, onto [out_low, out_high]."""

    low: float
    high: float
    out_low: float = 0.0
    out_high: float = 1.0


@dataclass(frozen=True)
class ZScore:
    """Clip to percentiles, then subtract the foreground's mean and divide by its SD.

    The lower percentile is the image's, the upper one the foreground's: see ``intensity.py``.
    """

    low_percentile: float = 0.5
    high_percentile: float = 99.5


@dataclass(frozen=True)
class MinMax:
    """Clip to percentiles of the volume, then map linearly onto [out_low, out_high]."""

    low_percentile: float = 0.5
    high_percentile: float = 99.5
    out_low: float = 0.0
    out_high: float = 1.0


Intensity = Window | ZScore | MinMax


# --- tasks ---------------------------------------------------------------------------------

SpatialTarget: TypeAlias = "Labels | Pair | tuple[Lesion, ...] | Suspects"
"""What is asked of places; see ``targets``."""

Target: TypeAlias = "int | float | tuple[int, ...] | Path | SpatialTarget | FollowUp"
"""Class index; value; multi-label vector; the file of a mask, which becomes ``Labels`` when the
task is opened; or what ``targets`` holds."""


@dataclass(frozen=True)
class Region:
    """Where in an image the question is asked: a mask that is no part of the answer."""

    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    """Mask (X, Y, Z), bool, not empty, on the voxels of the case's volume; affine (4, 4)."""
    digest: Callable[[], str]
    """sha256 of the mask's content, as hex."""


@dataclass(frozen=True)
class Change:
    """Why the version of a task or a probe was raised, and what has to be done again."""

    version: int
    """The version that the change led to."""
    why: str
    """One sentence for the board."""
    redo: Literal["scores", "predictions"] = "predictions"
    """``scores``: the stored per-case predictions still hold, only what is computed from them
    changed. ``predictions``: images, targets, sides or the fit changed."""


@dataclass(frozen=True)
class Case:
    """One image and what is asked of it. Nothing is read until ``load`` is called."""

    id: str
    """Unique within the task's data set; equal for the same image in two tasks of one data set."""
    patient: str
    """Who was scanned. Splits, folds and intervals go by patient."""
    target: Target
    load: Callable[[], Volume]
    digest: Callable[[], str]
    """sha256 of the image's content (not of its target), as hex."""
    split: Split | None = None
    """The publisher's side, or None: then the side is a hash of the patient."""
    region: Region | None = None
    """For encoders that describe a region (``EncoderCard.region``); None: the whole body."""


class Seat(NamedTuple):
    """A case without its image: what splits are made of."""

    id: str
    patient: str
    split: Split | None = None


@dataclass(frozen=True)
class TaskCard:
    """The facts about a task: what the question is, on whom, under which licence."""

    name: str
    version: int
    """Raised whenever a score could change."""
    title: str
    kind: Kind
    modality: Modality
    anatomy: str
    metric: str
    """The metric that ranks."""
    license: str
    source: str
    """Where the data come from: a URL."""
    citation: str
    counts: Mapping[str, int]
    """Of the complete public set: ``cases``, ``patients`` and, for official splits, ``train``,
    ``val`` and ``test``. Checked on load."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their indices; empty for regression."""
    unit: str = ""
    """Unit of a regression target, e.g. ``"years"``."""
    field_of_view_mm: Triple | None = None
    """The central box (RAS+) that the question is about. None: the whole image."""
    lattice_mm: Triple | None = None
    """Spacing (RAS+) of the one lattice onto which dense protocols bring every encoder's maps, so
    that nobody wins by a finer grid. None: no dense protocol serves the task."""
    tolerance_mm: float | None = None
    """How far a surface may be off (normalised surface distance)."""
    forward_voxels: int | None = None
    """The most voxels that an encoder may be shown per scan by dense protocols, overlap of tiles
    counted. None: no cap."""
    data_set: str = ""
    """Tasks on the same images share this name, and with it the cached features."""
    files: tuple[tuple[str, str, str], ...] = ()
    """(path below the data root, URL, MD5 or "") of what has to be there."""
    note: str = ""
    """What a reader of a score must know: leaks, simulations, caveats."""
    evidence: bool = True
    """False: a sanity check, shown but never ranked as evidence about radiology."""
    changes: tuple[Change, ...] = ()
    """Why the version was raised, oldest first."""

    @property
    def data_version(self) -> int:
        """The newest version whose images, targets and sides are these: what hashes depend on."""
        return redone_since(self.version, self.changes)

    def as_dict(self) -> dict[str, Any]:
        """The card as plain JSON types."""
        return _plain(asdict(self))


def redone_since(version: int, changes: Sequence[Change]) -> int:
    """The oldest version whose predictions still hold at ``version``.

    A version that no change explains is taken to have changed everything.

    >>> redone_since(3, [Change(2, "relabelled"), Change(3, "now by MAE", redo="scores")])
    2
    """
    only_scores = {change.version for change in changes if change.redo == "scores"}
    while version in only_scores:
        version -= 1
    return version


@dataclass(frozen=True)
class Task:
    """A card and its cases. ``cases(root)`` lists what is under the data root; reads no voxel."""

    card: TaskCard
    cases: Callable[[Path], Sequence[Case]]
    roster: Callable[[], Sequence[Seat]] = field(default=tuple)
    """Who is in the complete set, known without the data, so that a partial copy can be told
    what it lacks; empty where the publisher's list of ids is not known."""
    source_sha: str = ""
    """sha256 of a private task's file: nobody raises a version while still writing, so an edit
    makes it another data set. Empty for the tasks that ship, whose version says it all."""


# --- encoders ------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncoderCard:
    """The facts about a frozen encoder: what it wants, what it gives, what it has seen."""

    name: str
    title: str
    grid: Grid
    intensity: Mapping[str, Intensity]
    """By ``Unit``: a unit that is missing is not accepted, but ``relative`` falls back to
    ``Window(0, 1)``."""
    width: int
    """F, the length of the embedding."""
    channels: int = 1
    strides: tuple[int, ...] = ()
    """Voxels of the grid per voxel of each map, fine to coarse. Empty: no maps."""
    tiling: Literal["crop", "tiles"] = "crop"
    """A volume larger than the grid is cropped at its center, or covered by overlapping tiles."""
    overlap: float = 0.25
    """Least overlap of neighbouring tiles, as a share of the tile, in [0, 1)."""
    pool: Literal["mean", "max"] = "mean"
    """How the embeddings of tiles become the embedding of the volume."""
    region: bool = False
    """The encoder describes the case's region: its mask (0 or 1) comes as one more channel after
    the image's, all 0 where the task has none."""
    readout: str = ""
    """Which layers become the embedding; two readouts of one checkpoint are two models."""
    parameters: int = 0
    license: str = ""
    pretraining: tuple[str, ...] = ()
    """Names of the data sets the weights have seen."""
    authors: str = ""
    source: str = ""
    citation: str = ""
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The card as plain JSON types; the intensity transforms carry their ``type``."""
        card = _plain(asdict(self))
        card["intensity"] = {
            unit: {"type": type(how).__name__, **asdict(how)}
            for unit, how in sorted(self.intensity.items())
        }
        return card


@runtime_checkable
class Encoder(Protocol):
    """What outsiders write. Frozen: no gradients, ``eval()``, equal output for equal input."""

    card: EncoderCard

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) on the card's grid -> (B, F); a row may not depend on its neighbours."""
        ...

    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """(B, C, X, Y, Z) -> maps (B, C_i, x_i, y_i, z_i), fine to coarse, one per stride."""
        ...


# --- features, predictions, results -----------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """What a probe sees: one row per case. Never the images, never the names of the task."""

    x: np.ndarray
    """(N, F) float32."""
    target: np.ndarray
    """(N,) int64 class or float64 value; NaN or -1 where the probe may not see it (test)."""
    split: np.ndarray
    """(N,) of ``train``, ``val``, ``test``."""
    patient: np.ndarray
    """(N,) str."""
    kind: Kind
    n_classes: int = 0


@dataclass(frozen=True)
class Predictions:
    """What a probe answers for the test rows of its features, in their order."""

    values: np.ndarray
    """(n_test, K) class probabilities, or (n_test,) values: the headline fit."""
    refits: np.ndarray
    """(R, n_test, K) or (R, n_test): the same after resampling the training patients."""
    chosen: Mapping[str, float]
    """Hyper-parameters chosen on train and val."""


@dataclass(frozen=True)
class Budget:
    """Training on a few of the training patients, several times over.

    A probe with an attribute ``budget`` is called once per size and draw, on features that hold
    the drawn training patients and the test patients and nobody else.
    """

    unit: Literal["patients per class", "percent"]
    """Of ``sizes``; percent of the training patients."""
    sizes: tuple[int, ...]
    """Rising. What rows call ``shots``."""
    draws: int = 10
    """Supports per size; nested: those of a smaller size are contained in those of a larger."""
    area: bool = False
    """Whether the mean over the curve (``learning_curves.area``) is a row too, without shots."""


@runtime_checkable
class Probe(Protocol):
    """One protocol: how frozen features become predictions.

    Three more attributes are optional: ``budget``, a ``Budget``; ``changes``, a tuple of
    ``Change``; and ``cost``, a sentence with a number on what it takes, which every probe here
    has.
    """

    name: str
    version: int
    kinds: tuple[Kind, ...]
    title: str
    """One sentence for the board."""

    def __call__(self, features: Features, seed: int, refits: int) -> Predictions:
        """Fit on train (choices on val, or by patient-grouped CV in train) and predict test."""
        ...


@dataclass(frozen=True)
class Result:
    """One published number. The field names and their order are the JSON Lines format."""

    model: str
    model_sha: str
    task: str
    task_version: int
    probe: str
    probe_version: int
    metric: str
    shots: int | None
    """Size of the training budget, in the unit of the probe's ``Budget``; None: all patients, or
    the mean over the curve."""
    seed: int | Literal["all"]
    score: float | None
    """None where the metric is not defined (a test set of one class has no AUROC)."""
    low: float | None
    high: float | None
    """95 % interval."""
    spread: float | None
    """SD of the score over training resamples: shown, never part of the interval."""
    n_test: int
    subset: bool
    """Made on an incomplete copy: shown, marked, never ranked beside complete ones."""
    seconds: float
    device: str
    software: str
    dataset_sha: str
    split_sha: str

    def as_dict(self) -> dict[str, Any]:
        """The row as plain JSON types, in the order of the format."""
        return asdict(self)


def _plain(value: Any) -> Any:
    """Tuples to lists and mappings to dicts, so that a card equals its own JSON round trip."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value

"""2D images to pretrain on: folders of pictures, slices of volumes, drawn textures and shapes.

All are (H, W, 3) uint8. A label is the sub-folder's in a folder of classes and the drawing's in a
drawn set; slices have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from ...benchmark.errors import DataError
from . import _procedural_images
from ._multi_crop import Volumes
from ._volumes import SUFFIXES, axial_slice, volumes

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Of the files that Pillow is asked to read."""

TRIES = 10
"""Crops tried for one that fits into the picture (Szegedy et al., arXiv 1409.4842; this number is
the usual one of its implementations); then the whole picture is taken."""


class Images(Protocol):
    """A set of images, drawn at random. Safe to use from several threads."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the labels; empty where images have none."""
        ...

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """An image (H, W, 3) uint8 and its label; -1 without classes."""
        ...

    def describe(self) -> str:
        """One line for the card."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Textures and shapes, drawn anew for every sample."""

    size: int
    """Pixels of each side."""
    classes: tuple[str, ...] = _procedural_images.CLASSES

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """See `Images`."""
        label = int(rng.integers(len(self.classes)))
        return _procedural_images.draw(rng, self.size, label), label

    def describe(self) -> str:
        """See `Images`."""
        return f"drawn images of {len(self.classes)} textures and shapes"


@dataclass(frozen=True)
class Pictures:
    """Picture files."""

    files: tuple[tuple[Path, int], ...]
    """Each with its label."""
    classes: tuple[str, ...]
    names: str
    """Of the folders, for the card."""

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """See `Images`.

        Raises:
            DataError: the file cannot be read.
        """
        path, label = self.files[int(rng.integers(len(self.files)))]
        return read_picture(path), label

    def describe(self) -> str:
        """See `Images`."""
        classes = f" of {len(self.classes)} classes" if self.classes else ""
        return f"{len(self.files)} pictures{classes} of {self.names}"


@dataclass(frozen=True)
class Slices:
    """Axial slices of volumes that are scaled to [0, 1]."""

    volumes: Volumes
    classes: tuple[str, ...] = ()

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """See `Images`: grey, repeated; rows and columns in the order of the volume's axes."""
        grey = axial_slice(self.volumes.sample(rng), rng)
        image = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)
        return np.repeat(image[..., None], 3, axis=2), -1

    def describe(self) -> str:
        """See `Images`."""
        return f"axial slices of {self.volumes.describe()}"


@dataclass(frozen=True)
class Mixture:
    """Several sets, each as likely as the other; without classes."""

    parts: tuple[Images, ...]
    classes: tuple[str, ...] = ()

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """See `Images`."""
        return self.parts[int(rng.integers(len(self.parts)))].draw(rng)[0], -1

    def describe(self) -> str:
        """See `Images`."""
        return " and ".join(part.describe() for part in self.parts)


def unlabelled(data: Sequence[Path], intensity: Mapping[str, Any]) -> Images:
    """Pictures and slices below paths.

    Args:
        data: files and folders of pictures, of volumes, or of both.
        intensity: of volumes, unit -> table with its ``type``, onto [0, 1].

    Raises:
        DataError: neither a picture nor a volume there.
    """
    parts: list[Images] = []
    if any(_below(path, PICTURES) for path in data):
        parts.append(pictures(data, labelled=False))
    if not parts or any(_below(path, (*SUFFIXES, ".dcm")) for path in data):
        holding = [path for path in data if _below(path, (*SUFFIXES, ".dcm"))]
        parts.append(Slices(volumes(holding or data, intensity=intensity)))
    return parts[0] if len(parts) == 1 else Mixture(tuple(parts))


def pictures(data: Sequence[Path], labelled: bool) -> Pictures:
    """The picture files below folders; hidden ones are left out.

    Args:
        data: folders; where ``labelled``, each holds one sub-folder per class, and classes of the
            same name in several folders are one.
        labelled: whether the sub-folders are classes.

    Raises:
        DataError: a path that is not there, no picture, or fewer than two classes.
    """
    found: list[tuple[Path, str]] = []
    for root in data:
        for file in _below(root, PICTURES):
            parts = file.relative_to(root).parts
            if not labelled:
                found.append((file, ""))
            elif len(parts) > 1:
                found.append((file, parts[0]))
    names = ", ".join(path.name or str(path) for path in data)
    if not found:
        where = "in sub-folders, one per class, of" if labelled else "below"
        raise DataError(
            f"No picture {where} {', '.join(map(str, data))}. Files that end in "
            f"{', '.join(PICTURES)} are expected."
        )
    if not labelled:
        return Pictures(tuple((file, -1) for file, _ in found), (), names)
    classes = tuple(sorted({name for _, name in found}))
    if len(classes) < 2:
        raise DataError(
            f"Pictures of one class alone, '{found[0][1]}', below {', '.join(map(str, data))}. "
            "Supervised pretraining needs a sub-folder for each of two classes or more."
        )
    label = {name: index for index, name in enumerate(classes)}
    return Pictures(tuple((file, label[name]) for file, name in found), classes, names)


def _below(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The path itself, or the files below it, that end so; sorted.

    Raises:
        DataError: nothing is there.
    """
    if not path.exists():
        raise DataError(f"There is no '{path}'. Name a folder of images, or a file.")
    return sorted(
        file
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.name.lower().endswith(suffixes) and not file.name.startswith(".")
    )


def read_picture(path: Path) -> np.ndarray:
    """Read a picture: (H, W, 3) uint8.

    Pictures of more than 8 bits, as CT and MR slices are often stored, are scaled from their
    smallest to their largest value; Pillow would clip them.

    Raises:
        DataError: Pillow cannot read it.
    """
    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(("I", "F")):
                deep = np.asarray(opened, np.float64)
                span = float(deep.max() - deep.min()) or 1.0
                grey = np.rint((deep - deep.min()) / span * 255).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.asarray(opened.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as a picture ({error}). Remove it.") from error


# --- geometry ------------------------------------------------------------------------------------


def resized(
    image: np.ndarray, size: int, box: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """An image (H, W, 3), or a box of it, (left, upper, right, lower), as (size, size, 3) uint8.

    Bilinear, with the filter widened where the image shrinks.
    """
    if box is not None:
        # Cut here: Pillow's own box lets pixels around it bleed in.
        left, upper, right, lower = box
        image = np.ascontiguousarray(image[upper:lower, left:right])
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def random_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """A random part of an image (Szegedy et al., arXiv 1409.4842, section 6).

    Args:
        rng: the generator.
        height: of the image, pixels.
        width: of the image, pixels.
        area: least and largest share of the image's area.
        aspect: least and largest width / height; uniform in the logarithm.

    Returns:
        Left, upper, right and lower edge, whole pixels; all of the image if no draw fitted.
    """
    for _ in range(TRIES):
        pixels = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    return 0, 0, width, height

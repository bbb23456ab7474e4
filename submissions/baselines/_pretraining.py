"""What a pretext task is: the contract between the systems of this folder and their trainer.

A system (``coralbay``, ``vismae``, ``braindino``, ``anatomix``, ``cspr``) exposes one `Pretext`:
its presets, its objective, its samples and its card. `_training_loop.train` does the rest.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
from torch import Tensor, nn

from ...benchmark.errors import UnknownNameError


@dataclass(frozen=True)
class Preset:
    """How long and with which numbers a system is pretrained."""

    architecture: Mapping[str, Any]
    """Arguments of the architecture's ``build``, besides shape, channels and readout."""
    shape: tuple[int, int, int]
    """Voxels of the card's grid, and the ``shape`` of ``build``."""
    readout: str
    """One of the architecture's readouts."""
    steps: int
    """Optimiser steps."""
    batch: int
    """Samples per step and process."""
    learning_rate: float
    """At the end of the warm-up."""
    weight_decay: tuple[float, float]
    """At the start and at the end; a half cosine between."""
    warmup: int
    """Steps of linear warm-up."""
    clip: float | None = None
    """Largest global L2 norm of the gradients; None for no clipping."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW; the first is the momentum of SGD."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls from its peak to its end after the warm-up."""
    final_rate: float = 0.0
    """Learning rate at the end, as a share of the peak."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The system's own numbers (crop sizes, temperatures), each with its source in its file."""
    note: str = ""
    """Of ``full``: FLOPs per sample, GPU hours, memory. Of ``tiny``: what it is for."""


class Objective(nn.Module, ABC):
    """A loss with everything that it trains. State belongs into parameters and buffers."""

    @abstractmethod
    def loss(self, batch: Any, progress: float) -> tuple[Tensor, dict[str, float]]:
        """The mean loss over a batch, and measures of collapse.

        Args:
            batch: collated samples of the source, on the device of the parameters.
            progress: share of the steps done, in [0, 1).

        Returns:
            A scalar, and measures to log (``embedding_std``, ``teacher_entropy``, ``accuracy``,
            ...); the keys are the same in every step.
        """

    def forward(self, batch: Any, progress: float) -> tuple[Tensor, dict[str, float]]:
        """`loss`, so that DistributedDataParallel sees the call."""
        return self.loss(batch, progress)

    def before_step(self, progress: float) -> None:
        """Between the backward pass and the optimiser, before clipping; e.g. to freeze a layer."""

    def after_step(self, progress: float) -> None:
        """After the optimiser's step; e.g. the exponential moving average of a teacher."""

    def parameters_to_train(self) -> list[dict[str, Any]]:
        """Parameter groups; those with ``decay = False`` have no weight decay.

        Further keys are passed to the optimiser, except ``rate``: a factor on the learning rate.
        By default matrices and kernels decay; biases, norms and other vectors do not.
        """
        trained = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim > 1], "decay": True},
            {"params": [p for p in trained if p.ndim <= 1], "decay": False},
        ]

    @abstractmethod
    def encoder(self) -> nn.Module:
        """The architecture's network that is published; the teacher, where there is one."""


class Source(Protocol):
    """Where samples come from. Called from several threads at once."""

    def sample(self, rng: np.random.Generator) -> Any:
        """One sample, drawn with ``rng`` alone: tuples, lists, dicts of CPU tensors (or arrays)."""
        ...

    def describe(self) -> str:
        """One line for the card: what, how many, whose."""
        ...


class Pretext(Protocol):
    """A system's pretraining."""

    @property
    def name(self) -> str:
        """Of the system; that of its file."""
        ...

    @property
    def architecture(self) -> str:
        """Name of the registered architecture."""
        ...

    @property
    def presets(self) -> Mapping[str, Preset]:
        """At least ``tiny`` and ``full``."""
        ...

    def objective(self, preset: Preset) -> Objective:
        """Built on the CPU; torch's generator is seeded before."""
        ...

    def source(self, preset: Preset, data: Sequence[Path]) -> Source:
        """Samples of the given folders and files; of the built-in source where there are none."""
        ...

    def card(self, preset: Preset) -> Mapping[str, Any]:
        """What the manifest says beyond what the trainer knows, with the manifest's own keys.

        Required: ``title``, ``intensity`` (a table per unit, each with its ``type``, e.g.
        ``{"scanner": {"type": "ZScore"}}``) and ``pretraining`` (a list of names of data sets, to
        which the trainer adds nothing; e.g. ``["smoke"]``). Optional: ``grid`` (only keys besides
        ``shape``, e.g. ``{"spacing": [1.0, 1.0, 1.0]}``), ``citation``, ``source``, ``note`` (one
        sentence, put before the trainer's), ``channels``, ``tiling``, ``overlap``, ``pool``. The
        trainer writes ``name`` (name and preset), ``authors``, ``license``, ``readout``, the
        architecture with its arguments, the weights with their hash, ``grid.shape``, width,
        strides and parameters, and the note of what was trained on what for how long.
        """
        ...


SYSTEMS = ("anatomix", "braindino", "coralbay", "cspr", "vismae")
"""The systems that can be pretrained here; each a file of this folder."""


def pretext(name: str) -> Pretext:
    """The pretext task of a system.

    Raises:
        UnknownNameError: there is no such system.
    """
    if name not in SYSTEMS:
        raise UnknownNameError.of("system to pretrain", name, SYSTEMS)
    return cast("Pretext", importlib.import_module(f".{name}", __package__).PRETEXT)

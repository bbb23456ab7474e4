"""What ``tomoprobe pretrain`` and ``tomoprobe synthesize`` do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ..benchmark.errors import UnknownNameError
from .terminal import err

if TYPE_CHECKING:
    from .baselines._batches import Kind
    from .baselines._training_loop import Progress, Trained

LINES = 20
"""Lines that tell the progress of a run where there is no terminal."""


def systems() -> list[str]:
    """The systems that can be pretrained here."""
    from .baselines._pretraining import SYSTEMS

    return list(SYSTEMS)


def pretrain(
    name: str,
    preset: str,
    data: Sequence[Path],
    out: Path,
    device: str,
    seed: int,
    steps: int | None = None,
    *,
    resume: bool = True,
    workers: int = 2,
    loader: Kind = "threads",
) -> Trained:
    """Pretrain a system, or go on with a run that was interrupted.

    Args:
        name: one of `systems`.
        preset: one of its presets, ``tiny`` or ``full``.
        data: folders and files; none for the built-in source.
        out: folder of the run.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; under ``torchrun`` the N-th is taken by
            the N-th process.
        seed: of everything random.
        steps: instead of the preset's, the warm-up shortened in proportion.
        resume: False starts anew.
        workers: that make samples.
        loader: ``threads`` or ``processes``.

    Raises:
        UnknownNameError: no such system, preset or device.
        DataError: no usable data.
        TrainingError: the training diverged, or the folder belongs to another run.
        StorageError: the folder cannot be written.
    """
    from .baselines._pretraining import pretext
    from .baselines._training_loop import train
    from .session import resolve_device

    system = pretext(name)
    if preset not in system.presets:
        raise UnknownNameError.of(f"preset of {name}", preset, system.presets)
    chosen = system.presets[preset]
    if steps is not None:
        warmup = round(chosen.warmup * steps / chosen.steps)
        chosen = replace(chosen, steps=steps, warmup=warmup)
    source = system.source(chosen, data)
    with _shown(f"{name} {preset}") as progress:
        return train(
            system,
            chosen,
            source,
            out,
            preset_name=preset,
            seed=seed,
            device=resolve_device(device),
            resume=resume,
            workers=workers,
            loader=loader,
            progress=progress,
            data_sets=[path.resolve().name for path in data],
        )


def synthesize(n: int, out: Path, shape: tuple[int, int, int], seed: int) -> list[Path]:
    """Write samples of anatomix's data engine; see ``baselines.anatomix.write_samples``."""
    from .baselines.anatomix import write_samples

    return write_samples(n, out, shape, seed)


@contextmanager
def _shown(title: str) -> Iterator[Progress]:
    """A bar on a terminal, a line now and then elsewhere; on stderr, of the first process."""
    if not err.is_terminal or os.environ.get("RANK", "0") != "0":

        def line(done: int, total: int, record: Mapping[str, float]) -> None:
            if done * LINES // total > (done - 1) * LINES // total:
                err.print(f"{title}: step {done} of {total}, {_measures(record)}", soft_wrap=True)

        yield line
        return
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    with Bar(*columns, TimeRemainingColumn(), TextColumn("{task.fields[shown]}"), console=err) as b:
        bar = b.add_task(title, total=None, shown="")

        def show(done: int, total: int, record: Mapping[str, float]) -> None:
            b.update(bar, completed=done, total=total, shown=_measures(record))

        yield show


def _measures(record: Mapping[str, float]) -> str:
    return f"loss {record['loss']:.4f}, {record['samples_per_s']:.1f} samples/s"

"""``tomoprobe pretrain`` and ``tomoprobe synthesize``. Heavy imports wait until they are run."""

import os
from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    name: Annotated[
        str, typer.Argument(help="anatomix, braindino, coralbay, cspr or vismae.", metavar="NAME")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run; it goes on where one was stopped.")],
    preset: Annotated[
        str, typer.Option(help="tiny (minutes on a CPU) or full (the paper's, on GPUs).")
    ] = "tiny",
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of images, or a file. Repeatable. Default: the built-in source. Never "
            "name patients that you test on."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of weights, samples and masks.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Default: the preset's.")] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Threads that make samples, per process.")
    ] = 2,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew in the same folder.")] = False,
) -> None:
    """Pretrain a reference encoder; the same command goes on after an interruption.

    Several GPUs: torchrun --nproc-per-node 8 -m tomoprobe.submissions pretrain NAME ...
    """
    from . import pretraining

    trained = pretraining.pretrain(
        name,
        preset,
        data or [],
        out,
        device,
        seed,
        steps,
        resume=not fresh,
        workers=workers,
    )
    if os.environ.get("RANK", "0") != "0":
        return  # of the processes of torchrun, one speaks
    typer.echo(f"{trained.manifest}: {trained.steps} steps in {trained.seconds:.0f} s.")
    typer.echo(f"Evaluate it: tomoprobe evaluate -e {trained.manifest}")


def synthesize(
    out: Annotated[Path, typer.Option(help="Folder for the NIfTI files and a contact sheet.")],
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="How many label maps.")] = 8,
    side: Annotated[int, typer.Option(min=16, help="Voxels along X, Y and Z.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
) -> None:
    """Write label maps and pairs of views from anatomix's data engine."""
    from . import pretraining

    written = pretraining.synthesize(n, out, (side, side, side), seed)
    typer.echo(f"{out}: {len(written)} files.")

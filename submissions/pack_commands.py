"""``tomoprobe pack`` and ``tomoprobe inspect``. Heavy imports wait until they are run."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..benchmark.errors import ManifestError


def inspect(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help=".pt, .pth, .ckpt, .safetensors or .onnx.")
    ],
    part: Annotated[
        str | None, typer.Option(help="Which of several networks in the file, e.g. teacher.")
    ] = None,
) -> None:
    """Say in plain words what a checkpoint holds, and which architecture it fits.

    The file is opened as data: nothing in it is run.
    """
    if file.suffix == ".onnx":
        from . import graph_report

        lines = graph_report.report(file)
    else:
        from . import checkpoint_report, inspecting

        lines = checkpoint_report.report(inspecting.inspect(file, part))
    for line in lines:
        typer.echo(line)


def pack(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help=".pt, .pth, .ckpt or .safetensors.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to make. Default: the model's name.")
    ] = None,
    onnx: Annotated[
        str | None,
        typer.Option(help="Instead of FILE: package.module:factory of any network, as a graph."),
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="A manifest (.toml) to start from; options count for more.")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="Default: the one that fits; see inspect.")
    ] = None,
    arguments: Annotated[
        str | None, typer.Option(help="Of the architecture, as a JSON object; others are guessed.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Random initialisation instead of FILE.")
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="Which of several networks in the file, e.g. teacher.")
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD=NEW", help="Beginning of names to replace. Repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Short name.")] = None,
    title: Annotated[str | None, typer.Option(help="For the board.")] = None,
    authors: Annotated[str | None, typer.Option(help="Of the weights.")] = None,
    license: Annotated[str | None, typer.Option(help="Of the weights, as SPDX.")] = None,
    pretraining: Annotated[
        str | None,
        typer.Option(help="Data sets the weights have seen, separated by commas; or 'none'."),
    ] = None,
    readout: Annotated[str | None, typer.Option(help="One of the architecture's.")] = None,
    shape: Annotated[str | None, typer.Option(metavar="X,Y,Z", help="Voxels.")] = None,
    spacing: Annotated[str | None, typer.Option(metavar="X,Y,Z", help="mm.")] = None,
    axes: Annotated[str | None, typer.Option(help="Directions of the axes, e.g. RAS.")] = None,
    channels: Annotated[int | None, typer.Option(min=1, help="Of the input.")] = None,
    hu: Annotated[
        str | None,
        typer.Option(metavar="LOW,HIGH", help="CT: window in HU, mapped onto 0 to 1."),
    ] = None,
    scanner: Annotated[str | None, typer.Option(help="MR: zscore or minmax.")] = None,
    source: Annotated[str | None, typer.Option(help="Where the weights come from: a URL.")] = None,
    citation: Annotated[str | None, typer.Option(help="Paper.")] = None,
    note: Annotated[str | None, typer.Option(help="What a reader must know.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing; take defaults, or say what lacks.")
    ] = False,
) -> None:
    """Build a submission from a checkpoint, on this machine, and check it as the server will.

    Asks for what is missing. Nothing is sent: that is `tomoprobe submit`.
    """
    from . import packing, questions

    given: dict[str, Any] = {} if manifest is None else packing.template(manifest)
    texts = {
        "name": name,
        "title": title,
        "authors": authors,
        "license": license,
        "readout": readout,
        "channels": channels,
        "seed": seed,
        "source": source,
        "citation": citation,
        "note": note,
    }
    given |= {key: value for key, value in texts.items() if value is not None}
    answers = {
        "pretraining": pretraining,
        "shape": shape,
        "spacing": spacing,
        "axes": axes,
        "HU": hu,
        "scanner": scanner,
    }
    questions.merge(given, {key: answer for key, answer in answers.items() if answer is not None})
    if architecture is not None or arguments is not None:
        table: dict[str, Any] = dict(given.get("architecture", {}))
        if architecture not in (None, table.get("name")):
            table = {"name": architecture}
        table["arguments"] = {**table.get("arguments", {}), **_object(arguments)}
        given["architecture"] = table
    ask = None if yes or not sys.stdin.isatty() else _ask
    if onnx is not None:
        if checkpoint is not None or architecture is not None or seed is not None:
            raise ManifestError(
                "--onnx exports a network that a factory builds and fills: leave out FILE, "
                "--architecture and --seed."
            )
        packed = packing.pack_graph(onnx, out, given, ask=ask, log=_say)
    else:
        packed = packing.pack(
            checkpoint, out, given, ask=ask, log=_say, part=part, rename=_pairs(rename or [])
        )
    typer.echo(f"{packed.folder}: model {packed.checked.model_sha}")
    typer.echo(f"Send it: tomoprobe submit {packed.folder}")


def _ask(question: str, default: str | None) -> str:
    return typer.prompt(question, default=default, show_default=bool(default), err=True)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise ManifestError(f"--arguments is no JSON: {error}. Example: '{{\"a\": 1}}'.") from error
    if not isinstance(found, dict):
        raise ManifestError("--arguments is no JSON object. Example: '{\"layers\": [2, 2, 2, 2]}'.")
    return found


def _pairs(rules: list[str]) -> dict[str, str]:
    pairs = [rule.partition("=") for rule in rules]
    if any(not sign for _, sign, _ in pairs):
        raise ManifestError("--rename needs OLD=NEW, e.g. --rename net.encoder.=")
    return {old: new for old, _, new in pairs}

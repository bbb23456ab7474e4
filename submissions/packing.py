"""``tomoprobe pack``: a submission's folder out of a checkpoint, on its owner's machine.

The folder holds ``manifest.toml`` and ``model.safetensors`` (or ``model.onnx``) and has passed what
the server will ask of it. It appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from ..benchmark.errors import ManifestError, StorageError
from ..benchmark.types import EncoderCard
from . import architectures, intake, isolation
from .blueprints import blueprint
from .checkpoints import Checkpoint, open_checkpoint
from .guessing import Guess
from .headers import few
from .inspecting import Fit, fits
from .intake import Checked
from .manifest import Manifest, parse, read, write
from .python_objects import resolve
from .questions import Ask, answered, slug
from .weights import match

Log = Callable[[str], None]

WEIGHTS = "model.safetensors"
GRAPH = "model.onnx"
MANIFEST = "manifest.toml"


@dataclass(frozen=True)
class Packed:
    """A submission that is ready to be sent."""

    folder: Path
    checked: Checked


def pack(
    source: Path | None,
    out: Path | None,
    given: Mapping[str, Any],
    *,
    ask: Ask | None,
    log: Log,
    part: str | None = None,
    rename: Mapping[str, str] | None = None,
) -> Packed:
    """Build a submission of a registered architecture.

    Args:
        source: the checkpoint; None: a random initialisation (``given["seed"]``), or an
            architecture without weights.
        out: the folder to make; None: named after the model, in the current one.
        given: what is known of the manifest, as `Manifest` has it.
        ask: how to ask for the rest; None: what has no default is refused.
        log: told what is done.
        part: see `open_checkpoint`.
        rename: beginnings of names to replace, ``{old: new}``.

    Raises:
        IntakeError: the checkpoint cannot be opened, or the submission would be refused.
        ManifestError: something is missing or does not fit.
        StorageError: the folder is there already, or cannot be written.
    """
    if source is None:
        name = given.get("architecture", {}).get("name")
        if name is None:
            raise ManifestError(
                "There is nothing to pack. Give a checkpoint, or --architecture with --seed for a "
                "random initialisation, or --onnx package.module:factory."
            )
        data = answered(given, Guess(name), name, ask)
        with _folder(out, data["name"]) as folder:
            checked = _finish(folder, parse(data, "the submission"), None, "seed", log)
        return Packed(_final(out, data["name"]), checked)
    checkpoint = open_checkpoint(source, part).renamed(rename or {})
    fit = _chosen(checkpoint, given)
    log(_said(fit))
    checkpoint = checkpoint.renamed(fit.rename)
    data = answered(given, fit.guess, source.stem, ask)
    data["weights"] = {"file": WEIGHTS}
    with _folder(out, data["name"]) as folder:
        manifest = parse(data, "the submission")
        _write_weights(checkpoint, manifest, folder / WEIGHTS, log)
        checked = _finish(folder, manifest, folder / WEIGHTS, "weights", log)
    return Packed(_final(out, data["name"]), checked)


def pack_graph(
    spec: str,
    out: Path | None,
    given: Mapping[str, Any],
    *,
    ask: Ask | None,
    log: Log,
) -> Packed:
    """Export an encoder in Python as a graph, and build its submission.

    Args:
        spec: ``package.module:factory``, see `onnx_export.export`. A card fills the manifest.
        out: see `pack`.
        given: see `pack`; counts for more than the card.
        ask: see `pack`.
        log: see `pack`.

    Raises:
        EncoderError: it is no encoder, or cannot be exported.
        IntakeError: the graph would be refused.
        ManifestError: something is missing or does not fit.
        StorageError: see `pack`.
    """
    from . import onnx_export
    from .manifest import ONNX_READOUT

    target = resolve(spec)
    is_factory = isinstance(target, type) or (callable(target) and not hasattr(target, "embed"))
    encoder = target() if is_factory and not isinstance(target, nn.Module) else target
    facts = {**_from_card(getattr(encoder, "card", None)), **given, "readout": ONNX_READOUT}
    data = answered(facts, None, facts.get("name", spec.rpartition(":")[2]), ask)
    data["onnx"] = {"file": GRAPH}
    manifest = parse(data, "the submission")
    with _folder(out, data["name"]) as folder:
        channels = manifest.channels + manifest.region
        log(f"exporting {spec} for {channels} x {manifest.grid.shape}")
        onnx_export.export(encoder, manifest.grid.shape, channels, folder / GRAPH)
        checked = _finish(folder, manifest, folder / GRAPH, "onnx", log)
    return Packed(_final(out, data["name"]), checked)


def _from_card(card: object) -> dict[str, Any]:
    """What an encoder's card says, as a manifest has it; what it leaves empty stays unsaid."""
    if not isinstance(card, EncoderCard):
        return {}
    said = card.as_dict()
    for network in ("width", "strides", "parameters", "readout"):
        del said[network]
    said["grid"] = {key: value for key, value in said["grid"].items() if value is not None}
    return {key: value for key, value in said.items() if value not in ("", [], None)}


def template(path: Path) -> dict[str, Any]:
    """A manifest to start from, as data; what belongs to its own file of weights is left out.

    Raises:
        ManifestError: see ``manifest.read``.
    """
    manifest = read(path)
    data = manifest.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    if manifest.architecture is not None:
        data["architecture"]["arguments"] = dict(manifest.architecture.arguments)
    for key in ("weights", "onnx", "seed", "width", "strides", "parameters"):
        data.pop(key, None)
    return data


# --- which network -------------------------------------------------------------------------------


def _chosen(checkpoint: Checkpoint, given: Mapping[str, Any]) -> Fit:
    """The architecture that was named, or else the first that fits exactly."""
    found = fits(checkpoint.shapes)
    name = given.get("architecture", {}).get("name")
    if name is None:
        if found[0].exact:
            return found[0]
        raise ManifestError(
            f"'{checkpoint.path.name}' fits no registered architecture as it is; the nearest is "
            f"'{found[0].guess.architecture}', with {found[0].matched} of "
            f"{found[0].wanted} tensors. `tomoprobe inspect` says more. Name one with "
            "--architecture and --arguments, or submit a graph with --onnx package.module:factory."
        )
    architectures.get(name)  # refuses a name that is not registered, with the nearest that is
    fit = next((fit for fit in found if fit.guess.architecture == name), None)
    if fit is None:
        raise ManifestError(f"Architecture '{name}' has no weights. Pack it without a checkpoint.")
    return fit


def _said(fit: Fit) -> str:
    named = fit.guess.architecture
    if not fit.exact:
        return f"'{named}': {fit.matched} of {fit.wanted} tensors match with guessed arguments"
    untold = f"; not told by tensors: {', '.join(fit.guess.untold)}" if fit.guess.untold else ""
    return f"fits '{named}' with {json.dumps(dict(fit.guess.arguments))}{untold}"


def _write_weights(checkpoint: Checkpoint, manifest: Manifest, path: Path, log: Log) -> None:
    """The tensors that the network runs, under its own names, in the precision they have."""
    architecture = architectures.get(manifest.registered.name)
    plan = blueprint(manifest, architecture.build)
    keys = match(checkpoint.shapes, plan.tensors, plan.unused, checkpoint.path)
    # Clones, because tensors that share memory or are views cannot be written.
    tensors = {name: checkpoint.tensor(key).contiguous().clone() for name, key in keys.items()}
    left = sorted(set(checkpoint.shapes) - set(keys.values()))
    log(
        f"kept {len(tensors)} tensors" + (f", left out {len(left)}: {few(left, 3)}" if left else "")
    )
    save_file(tensors, path, {"format": "pt"})
    path.chmod(0o644)  # safetensors leaves it to its owner alone


# --- the folder ----------------------------------------------------------------------------------


def _finish(folder: Path, manifest: Manifest, file: Path | None, kind: str, log: Log) -> Checked:
    """Complete the manifest, write it and check everything as the server will."""
    path = folder / MANIFEST
    if file is not None:
        table = "onnx" if kind == "onnx" else "weights"
        with file.open("rb") as opened:
            sha = hashlib.file_digest(opened, "sha256").hexdigest()
        stated = getattr(manifest, table).model_copy(update={"sha256": sha})
        manifest = manifest.model_copy(update={table: stated})
    reason = isolation.available()
    if reason is not None:
        log(f"note: the dry run is not isolated here ({reason})")

    def check() -> Checked:
        write(manifest, path)
        text = path.read_text(encoding="utf-8")
        return intake.check(text, file, kind, isolate=reason is None, log=log)

    checked = check()
    # Facts that only the network knows complete the card for whoever does not build it.
    card = checked.card
    manifest = manifest.model_copy(
        update={"width": card.width, "strides": card.strides, "parameters": card.parameters}
    )
    write(manifest, path)
    return Checked(manifest, card, checked.model_sha, checked.identity, checked.parameters)


def _final(out: Path | None, name: str) -> Path:
    return out if out is not None else Path(slug(name))


@contextmanager
def _folder(out: Path | None, name: str) -> Iterator[Path]:
    """A folder beside the final one, which takes its place at the end; nothing after a failure."""
    final = _final(out, name)
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise StorageError(f"'{final}' is there already. Remove it, or name another with --out.")
    try:
        final.absolute().parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.absolute().parent))
    except OSError as error:
        raise StorageError(
            f"'{final}' cannot be made ({error.strerror}). Name another folder with --out."
        ) from error
    try:
        yield made
        made.chmod(0o755)
        if final.exists():
            final.rmdir()
        made.replace(final)
    except OSError as error:
        raise StorageError(
            f"'{final}' cannot be written ({error.strerror}). Make room, or name another folder "
            "with --out."
        ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)  # gone already where all went well

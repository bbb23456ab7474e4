"""The check of a submission, in a worker: data are measured before they are used, code is none.

Cheap before dear: the manifest's text; the safetensors header; names, shapes and sizes against the
network's blueprint, of which no number exists; every value finite; and only then the network
itself, on phantoms, in a process of its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..benchmark.errors import EncoderError, IntakeError, IsolationError, ManifestError
from ..benchmark.types import EncoderCard
from . import architectures, isolation, rehearsal
from .blueprints import Blueprint, blueprint
from .headers import DTYPES, Header, TensorInfo, few, read_header, shown
from .load import load
from .manifest import Manifest, write
from .manifest_text import read_manifest
from .weights import match

Kind = Literal["weights", "onnx", "seed"]
"""Where the numbers of a submission come from."""

PARAMETERS = 1 << 30
"""Of a network: 4 GiB in float32."""

NETWORK_BYTES = 4 << 30
"""Of parameters and buffers in memory, as float32."""

_EDIT = "Correct it, or let `tomoprobe pack` write it."

_CHUNK = 1 << 24
"""Bytes of a tensor that are looked at together."""

_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}

Log = Callable[[str], None]


@dataclass(frozen=True)
class Checked:
    """A submission that passed."""

    manifest: Manifest
    card: EncoderCard
    model_sha: str
    identity: Mapping[str, Any]
    """The canonical manifest, of which ``model_sha`` is the hash."""
    parameters: int


def check(
    manifest_text: str,
    weights: Path | None,
    kind: str,
    *,
    isolate: bool = True,
    log: Log = lambda line: None,
    device: str = "cpu",
    unsafe_local: bool = False,
) -> Checked:
    """Check a submission from its text to its features on phantoms.

    Args:
        manifest_text: TOML, as sent. What it calls the file of weights is not looked at.
        weights: the safetensors file (kind ``weights``) or the graph (``onnx``); else None.
        kind: see `Kind`.
        isolate: check a graph and run the network in closed-off processes; only the submitter's
            own machine may do without.
        log: told what is done, a line at a time, for the submitter.
        device: of the dry run.
        unsafe_local: see ``isolation.isolated``.

    Raises:
        IntakeError: the submission is refused.
        IsolationError: this machine cannot close off a process: no fault of the submission.
        OSError: the file cannot be read: none either.
    """
    manifest = read_manifest(manifest_text)
    _check_kind(manifest, weights, kind)
    log(f"manifest '{manifest.name}': read")
    parameters = 0
    if kind == "onnx" and weights is not None:
        from . import graph_checks, onnx_graph

        (graph_checks.validate if isolate else onnx_graph.validate)(weights)
        log("graph: operators, sizes and outputs are in order")
    else:
        parameters = _check_network(manifest, weights, log)
    with staged(manifest, weights, kind) as path:
        return _dry_run(path, manifest, parameters, isolate, unsafe_local, device, log)


# --- the manifest --------------------------------------------------------------------------------


def _check_kind(manifest: Manifest, weights: Path | None, kind: str) -> None:
    """The manifest, the file and what the submission calls itself agree."""
    said = "onnx" if manifest.onnx is not None else "weights" if manifest.weights else "seed"
    if kind != said:
        raise _refused(
            "kind-mismatch",
            f"The submission is of the kind {shown(kind)}, its manifest of the kind '{said}'.",
            "Send the manifest that `tomoprobe pack` wrote.",
        )
    if (weights is None) != (said == "seed"):
        raise _refused(
            "kind-mismatch",
            "A file came with a manifest that names none."
            if weights is not None
            else "No file came with a manifest that names one.",
            "Send both, or a manifest with a seed and no file.",
        )
    promised = manifest.onnx or manifest.weights
    if weights is not None and promised is not None and promised.sha256 is not None:
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != promised.sha256:
            raise _refused(
                "weights-sha256",
                f"The file has the sha256 {found}, the manifest promises {promised.sha256}.",
                "Send the file that belongs to the manifest.",
            )


# --- the network ---------------------------------------------------------------------------------


def _check_network(manifest: Manifest, weights: Path | None, log: Log) -> int:
    """Sizes, names, shapes, types and values; how many parameters."""
    try:
        plan = blueprint(manifest, architectures.get(manifest.registered.name).build)
    except ManifestError as error:
        raise _refused("arguments-invalid", str(error), _EDIT) from error
    if plan.parameters > PARAMETERS or plan.bytes > NETWORK_BYTES:
        raise _refused(
            "network-size",
            f"With these arguments the network has {plan.parameters:,} parameters and takes "
            f"{plan.bytes / 2**30:.3g} GiB; {PARAMETERS:,} and {NETWORK_BYTES >> 30} GiB at most "
            "are taken.",
            "Submit a smaller network.",
        )
    log(f"network: {plan.parameters:,} parameters")
    if weights is None:
        return plan.parameters
    header = read_header(weights)
    log(f"file: {len(header.tensors)} tensors, {header.elements:,} numbers")
    keys = _check_names(plan, header)
    _check_values(weights, header, keys)
    log("tensors: names, shapes and types fit, all values are finite")
    return plan.parameters


def _check_names(plan: Blueprint, header: Header) -> dict[str, str]:
    """The file's key of each of the network's tensors, shapes and types equal."""
    try:
        keys = match(header.tensors, plan.tensors, plan.unused, Path("model.safetensors"))
    except ManifestError as error:
        raise _refused(
            "weights-names",
            str(error),
            "`tomoprobe inspect FILE` says which architecture it fits.",
        ) from error
    for name, key in keys.items():
        wanted, given = plan.tensors[name], header.tensors[key]
        if tuple(wanted.shape) != given.shape:
            raise _refused(
                "weights-shape",
                f"Tensor {shown(key)} has the shape {given.shape}, the network with these "
                f"arguments wants {tuple(wanted.shape)}.",
                "Correct the arguments: `tomoprobe inspect` guesses them from the file.",
            )
        floats = given.dtype in _FLOATS or given.dtype == "BF16"
        if floats != wanted.is_floating_point():
            raise _refused(
                "weights-dtype",
                f"Tensor {shown(key)} is {given.dtype}, the network wants "
                f"{'floating point' if wanted.is_floating_point() else 'integers'}.",
                "Export the weights in floating point, unquantised.",
            )
    return keys


def _check_values(weights: Path, header: Header, keys: Mapping[str, str]) -> None:
    """Refuse NaN, infinities and what float32 cannot hold, in the tensors that are used."""
    bad: list[str] = []
    with weights.open("rb") as file:
        for key in sorted(keys.values(), key=lambda k: header.tensors[k].begin):
            info = header.tensors[key]
            file.seek(header.data_start + info.begin)
            left = info.end - info.begin
            while left > 0 and (raw := file.read(min(left, _CHUNK))):
                left -= len(raw)
                if not _finite(raw, info):
                    bad.append(key)
                    break
    if bad:
        raise _refused(
            "weights-nan",
            f"{len(bad)} tensors hold NaN, infinities or values beyond float32: {few(bad)}.",
            "Submit a checkpoint of before the training diverged.",
        )


def _finite(raw: bytes, info: TensorInfo) -> bool:
    """Whether these bytes of a tensor are finite as float32; chunks are whole numbers of it."""
    raw = raw[: len(raw) // DTYPES[info.dtype] * DTYPES[info.dtype]]
    if info.dtype == "BF16":  # numpy has no such type: its exponent is all ones
        return not bool(((np.frombuffer(raw, "<u2") & 0x7F80) == 0x7F80).any())
    if info.dtype not in _FLOATS:
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.frombuffer(raw, np.dtype(_FLOATS[info.dtype]).newbyteorder("<"))
        return bool(np.isfinite(values.astype(np.float32)).all())


# --- the dry run ---------------------------------------------------------------------------------


@contextmanager
def staged(manifest: Manifest, weights: Path | None, kind: str) -> Iterator[Path]:
    """A folder of its own with the manifest and its file, under names that we chose."""
    with tempfile.TemporaryDirectory(prefix="tomoprobe-check-") as folder:
        if weights is not None:
            name = "model.onnx" if kind == "onnx" else "model.safetensors"
            table = "onnx" if kind == "onnx" else "weights"
            manifest = manifest.model_copy(
                update={table: getattr(manifest, table).model_copy(update={"file": name})}
            )
            target = Path(folder) / name
            try:
                os.link(weights, target)
            except OSError:  # another file system
                shutil.copyfile(weights, target)
        path = Path(folder) / "manifest.toml"
        write(manifest, path)
        yield path


def _dry_run(
    path: Path,
    manifest: Manifest,
    parameters: int,
    isolate: bool,
    unsafe_local: bool,
    device: str,
    log: Log,
) -> Checked:
    if isolate and not unsafe_local and (reason := isolation.available()) is not None:
        raise IsolationError(f"No model can be run here: {reason}")
    try:
        opened = (
            isolation.isolated(path, device, isolation.Limits(), unsafe_local=unsafe_local)
            if isolate
            else nullcontext(load(str(path), device=device))
        )
        with opened as model:
            rehearsal.rehearse(model, log)
            return Checked(
                manifest,
                model.card,
                model.model_sha,
                model.manifest,
                model.card.parameters or parameters,
            )
    except IsolationError:
        raise  # no fault of the submission
    except ManifestError as error:
        raise _refused("manifest-invalid", _said(error, path), _EDIT) from error
    except EncoderError as error:
        raise _refused(
            "dry-run-failed",
            f"The model cannot be started: {_said(error, path)}",
            "`tomoprobe pack` does the same on your machine.",
        ) from error


def _said(error: Exception, path: Path) -> str:
    """A message without the folder of this machine."""
    return str(error).replace(f"{path.parent}{os.sep}", "")


def _refused(code: str, message: str, hint: str) -> IntakeError:
    return IntakeError(code, message, stage="check", hint=hint)

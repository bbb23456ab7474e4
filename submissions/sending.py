"""What is sent to a server: a packed folder, or the predictions of a run of one's own."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from ..benchmark import probes
from ..benchmark.errors import ManifestError, StorageError
from ..benchmark.studies import Study
from . import manifest as manifests
from .declarations import SelfRunCard

if TYPE_CHECKING:
    from .client import Client
    from .intake import Checked

MANIFEST = "manifest.toml"


class Parcel(NamedTuple):
    """A submission before it is sent."""

    manifest: str
    """TOML, as it is on disk."""
    name: str
    kind: str
    """``"weights"``, ``"onnx"``, ``"seed"`` or ``"self-run"``."""
    file: Path | None
    """To upload; None where the manifest says it all."""
    tasks: tuple[str, ...] = ()
    """Of the predictions; otherwise chosen when submitting."""


UPLOADS: Mapping[str, str] = {"weights": "safetensors", "onnx": "onnx", "self-run": "predictions"}
"""Kind of the upload by kind of the submission; a seed needs none."""


def packed(folder: Path) -> Parcel:
    """What ``tomoprobe pack`` wrote.

    Args:
        folder: with ``manifest.toml`` and the file that it names, or the manifest itself.

    Raises:
        ManifestError: there is no manifest, it is wrong, or its file is missing.
    """
    path = _manifest_path(folder)
    manifest = manifests.read(path)
    table = manifest.onnx or manifest.weights
    kind = "onnx" if manifest.onnx else "weights" if manifest.weights else "seed"
    file = None if table is None else path.parent / table.file
    if file is not None and not file.is_file():
        raise ManifestError(
            f"'{path}' names {file.name}, which is not beside it. Pack the model again: tomoprobe "
            "pack."
        )
    return Parcel(path.read_text(encoding="utf-8"), manifest.name, kind, file)


def checked(parcel: Parcel, log: Callable[[str], None]) -> Checked:
    """Check a packed model as the server will.

    Where this machine cannot close off a process, the model runs in this one: it is one's own.

    Raises:
        IntakeError: the server would refuse it for the same reason.
    """
    from . import intake, isolation

    isolate = isolation.available() is None
    return intake.check(parcel.manifest, parcel.file, parcel.kind, isolate=isolate, log=log)


def predictions(
    folder: Path, manifest_folder: Path | None, into: Path, log: Callable[[str], None]
) -> Parcel:
    """The files that ``tomoprobe evaluate --predictions`` wrote, as one file to upload.

    It is a safetensors file that holds each of them as a row of bytes under its name: the one
    format whose header the server reads before anything else. What protocols found that run the
    network themselves is left out: without the network it cannot be scored anew.

    Args:
        folder: with the ``.parquet`` files.
        manifest_folder: with the manifest of the model; None: the same folder.
        into: existing folder for the file.
        log: told of what is left out.

    Raises:
        ManifestError: no manifest.
        StorageError: no predictions, none that can be sent, files that are none, or of more than
            one model.
    """
    import numpy as np
    from safetensors.numpy import save_file

    path = _manifest_path(manifest_folder or folder)
    text = path.read_text(encoding="utf-8")
    try:
        card = SelfRunCard.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"'{path}' is not a TOML file: {error}. Correct it there.") from error
    except ValidationError as error:
        why = manifests.explain(error, SelfRunCard)
        raise ManifestError(f"Manifest '{path}': {why}. Correct the file and try again.") from error
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise StorageError(
            f"{folder} holds no .parquet files. 'tomoprobe evaluate --predictions {folder}' writes "
            "them."
        )
    about = {file: _provenance(file) for file in files}
    models = sorted({str(facts["model_sha"]) for facts in about.values()})
    if len(models) > 1:
        names = ", ".join(model[:12] for model in models)
        raise StorageError(
            f"{folder} holds predictions of {len(models)} models ({names}), but a submission is "
            "one model. Keep each in a folder of its own."
        )
    left_out = [file for file, facts in about.items() if _of_study(str(facts["probe"]))]
    files = [file for file in files if file not in left_out]
    if left_out:
        named = ", ".join(sorted({str(about[file]["probe"]) for file in left_out}))
        why = f"{named}: needs the network, and its predictions cannot be scored without it"
        if not files:
            raise StorageError(
                f"{folder} holds no predictions that can be sent ({why}). Submit the weights: "
                "tomoprobe pack, then tomoprobe submit."
            )
        log(f"Left out {len(left_out)} of {len(about)} tables ({why}).")
    target = into / "predictions.safetensors"
    save_file({file.name: np.frombuffer(file.read_bytes(), np.uint8) for file in files}, target)
    tasks = sorted({str(about[file]["task"]) for file in files})
    return Parcel(text, card.name, "self-run", target, tuple(tasks))


def send(client: Client, parcel: Parcel, sent: Callable[[int, int], None]) -> str | None:
    """Upload the parcel's file; gives the upload's id, None where there is nothing to upload.

    Args:
        client: of the server.
        parcel: what to send.
        sent: hears bytes on their way or there, and bytes in all.
    """
    from .upload_files import measured

    if parcel.file is None:
        return None
    file = measured(parcel.file)
    return client.upload(file, UPLOADS[parcel.kind], lambda offset: sent(offset, file.size))


def _manifest_path(folder: Path) -> Path:
    path = folder if folder.suffix == ".toml" else folder / MANIFEST
    if not path.is_file():
        raise ManifestError(
            f"There is no {path}. Expected a folder that 'tomoprobe pack' wrote, with a "
            f"{MANIFEST} in it."
        )
    return path


def _of_study(probe: str) -> bool:
    """Of a probe that this release does not know, the server will say so."""
    return probe in probes.names() and isinstance(probes.get(probe), Study)


def _provenance(file: Path) -> Mapping[str, object]:
    """What a file of predictions says about itself."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        about = json.loads((pq.read_schema(file).metadata or {})[b"tomoprobe"])
        return {name: about[name] for name in ("model_sha", "task", "probe")}
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{file} holds no predictions of tomoprobe ({error}). Take it out of the folder, or "
            "write it again: tomoprobe evaluate --predictions."
        ) from error

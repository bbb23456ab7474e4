"""What a submission declares, as far as the site reads it: text, never a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..benchmark.errors import IntakeError, ManifestError, UnknownNameError
from ..leaderboard.intake_records import SubmissionKind, Upload
from ..leaderboard.settings import Settings
from . import manifest as manifests
from .headers import shown
from .manifest_tables import Line, Name, Text
from .manifest_text import parsed


class SelfRunCard(BaseModel):
    """What is to be said of a model whose weights are not sent; other keys may stand beside it."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, str_strip_whitespace=True)

    name: Name
    title: Line
    authors: Line
    license: Line
    pretraining: Annotated[tuple[Line, ...], Field(strict=False)]
    source: Text = ""
    citation: Text = ""
    note: Text = ""


class Declaration(NamedTuple):
    """What is asked for."""

    name: str
    """Of the model."""
    kind: SubmissionKind


def declared(text: str, upload: Upload | None) -> Declaration:
    """Read the manifest of a submission, and see that the file fits to it.

    Raises:
        IntakeError: stage ``upload``; says what is wrong and what to do.
    """
    data = parsed(text, "upload")
    try:
        if upload is not None and upload.kind == "predictions":
            card = SelfRunCard.model_validate(data)
            return Declaration(card.name, "self-run")
        manifest = manifests.parse(data, "manifest.toml")
    except ValidationError as error:
        raise _invalid(manifests.explain(error, SelfRunCard)) from error
    except ManifestError as error:
        raise _invalid(str(error)) from error
    except (ValueError, RecursionError, OverflowError) as error:
        raise _invalid(shown(str(error))) from error
    return Declaration(manifest.name, _kind(manifest, upload))


def _invalid(message: str) -> IntakeError:
    return IntakeError(
        "manifest-invalid",
        message,
        stage="upload",
        hint="`tomoprobe pack` writes a manifest and checks it as the server does.",
    )


def _kind(manifest: manifests.Manifest, upload: Upload | None) -> SubmissionKind:
    graph = getattr(manifest, "onnx", None)
    file = graph if graph is not None else manifest.weights
    wanted = "onnx" if graph is not None else "safetensors"
    if file is None:
        if upload is not None:
            raise _unfit("The manifest names no file, but one was uploaded.")
        return "seed"
    if upload is None:
        raise _unfit(f"The manifest names the file {file.file}, but none was uploaded.")
    if upload.kind != wanted:
        raise _unfit(f"The manifest names a file of the kind {wanted}, not {upload.kind}.")
    if file.sha256 and file.sha256 != upload.sha256:
        raise _unfit(
            f"The manifest names a file with sha256 {file.sha256}, the upload has {upload.sha256}."
        )
    return "onnx" if graph is not None else "weights"


def _unfit(message: str) -> IntakeError:
    return IntakeError(
        "manifest-file",
        message,
        stage="upload",
        hint="Send the manifest and the file of one folder of `tomoprobe pack`.",
    )


# --- on what it is asked for -------------------------------------------------------------------


def chosen_tasks(tasks: Sequence[str], suite: str | None, settings: Settings) -> tuple[str, ...]:
    """The tasks of a submission, each once.

    Raises:
        IntakeError: none, or one that is not known.
    """
    if suite:
        _known("suite", [suite], settings.suites)
    wanted = tuple(dict.fromkeys([*tasks, *(settings.suites[suite] if suite else ())]))
    _known("task", wanted, settings.tasks)
    if not wanted:
        raise IntakeError(
            "no-task",
            "No task is named.",
            stage="upload",
            hint=f"Name tasks, or a suite: {', '.join(settings.suites)}.",
        )
    return wanted


def chosen_probes(probes: Sequence[str], settings: Settings) -> tuple[str, ...]:
    """The probes of a submission, each once; none means all that serve a task.

    Raises:
        IntakeError: one that is not known.
    """
    _known("probe", probes, settings.probes)
    return tuple(dict.fromkeys(probes))


def _known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in set(known):
            raise IntakeError(
                f"unknown-{what}",
                str(UnknownNameError.of(what, name[:80], known)),
                stage="upload",
                hint="",
            )

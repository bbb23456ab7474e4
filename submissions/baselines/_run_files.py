"""The files of a run: whole or as they were before, and in step with one another."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ...benchmark.errors import StorageError, TrainingError
from ._loss_curve import loss_curve
from ._publishing import write_whole

CHECKPOINT, LOG, CURVE, RUN = "checkpoint.pt", "log.jsonl", "loss.svg", "run.json"


class RunFiles:
    """The folder of a run, written by its first process alone."""

    def __init__(self, out: Path, title: str) -> None:
        self.out, self.title = out, title
        self.checkpoint = out / CHECKPOINT
        self._log: list[dict[str, float]] = []
        self._log_file: io.TextIOWrapper | None = None

    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return self.checkpoint.is_file()

    def start(self, facts: Mapping[str, Any]) -> None:
        """Make the folder, forget an earlier run there, and write what is known about this one.

        Raises:
            StorageError: the folder cannot be written.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self.checkpoint.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{self.out} cannot be made or written: {error.strerror}. Choose another folder."
            ) from error
        self._write_facts(facts)

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """Add to ``run.json``."""
        self._write_facts({**json.loads((self.out / RUN).read_text("utf-8")), **facts})

    def _write_facts(self, facts: Mapping[str, Any]) -> None:
        text = json.dumps(facts, indent=2) + "\n"
        write_whole(self.out / RUN, lambda file: file.write(text.encode()))

    def load(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """The checkpoint, on the CPU.

        Raises:
            TrainingError: it is damaged, or belongs to a run of another identity.
        """
        path = self.checkpoint
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file fails in torch, zipfile or pickle
            raise TrainingError(
                f"{path} cannot be read ({str(error).splitlines()[0]}). Start anew with --fresh."
            ) from error
        before = json.loads(stored["identity"])
        differs = [key for key, value in identity.items() if before.get(key) != value]
        if differs:
            key = differs[0]
            raise TrainingError(
                f"{path} belongs to another run: it differs in {', '.join(differs)} ({key}: "
                f"{_short(before.get(key))}, now {_short(identity[key])}). Repeat its command, "
                "name another folder, or start anew with --fresh."
            )
        return stored

    def save(self, content: Mapping[str, Any]) -> None:
        """Replace the checkpoint and the curve.

        Raises:
            StorageError: the disk is full; the checkpoint before is kept.
        """
        if self._log_file is not None:  # the log may be ahead of the checkpoint, never behind
            os.fsync(self._log_file.fileno())
        write_whole(self.checkpoint, lambda file: torch.save(dict(content), file))
        losses = [(int(record["step"]), record["loss"]) for record in self._log]
        svg = loss_curve(losses, f"{self.title}: loss by step")
        write_whole(self.out / CURVE, lambda file: file.write(svg.encode()))

    def open_log(self, steps: int) -> None:
        """Keep the lines up to the checkpoint's step: what came later is done again.

        Raises:
            TrainingError: lines are missing.
            StorageError: the folder cannot be written.
        """
        path = self.out / LOG
        lines = path.read_text("utf-8").splitlines()[:steps] if steps and path.is_file() else []
        try:
            self._log = [json.loads(line) for line in lines]
            found = [record["step"] for record in self._log]
        except (ValueError, KeyError, TypeError):
            found = None
        if found != list(range(1, steps + 1)):
            raise TrainingError(
                f"{path} does not hold the {steps} steps of the checkpoint beside it. Start anew "
                "with --fresh, or in another folder."
            )
        text = "".join(line + "\n" for line in lines)
        write_whole(path, lambda file: file.write(text.encode()))
        self._log_file = path.open("a", encoding="utf-8")

    def append(self, record: dict[str, float]) -> None:
        """Log a step.

        Raises:
            StorageError: the disk is full.
        """
        if self._log_file is None:
            raise ValueError("the log is not open")
        self._log.append(record)
        try:
            self._log_file.write(json.dumps(record) + "\n")
            self._log_file.flush()
        except OSError as error:
            raise StorageError(
                f"{self.out / LOG} cannot be written: {error.strerror}. Free some space and run "
                "the same command: it goes on from the last checkpoint."
            ) from error

    def close(self) -> None:
        """Close the log; what a full disk does not take was reported when it was written."""
        if self._log_file is not None:
            with suppress(OSError):
                self._log_file.close()


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."

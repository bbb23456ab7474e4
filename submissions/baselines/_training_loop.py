"""The training loop of all systems: resumable, on one or several processes, CPU or GPU.

What a step does depends on its number, the seed and the state after the step before: samples by
`_batches`, torch's generator reseeded from (seed, step, process), schedules by step. So a run that
is killed and started again by the same command ends with the same bits on a CPU; on a GPU, up to
kernels that torch does not make deterministic.

In ``out``: ``run.json`` (what runs where; FLOPs), ``log.jsonl`` (a line per step), ``loss.svg``,
``checkpoint.pt``, and at the end ``model.safetensors`` and ``manifest.toml``.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from ...benchmark.errors import TrainingError
from ._batches import Kind, Plan, batches
from ._optimisation import learning_rate, optimizer, weight_decay
from ._pretraining import Objective, Preset, Pretext, Source
from ._processes import World, moved, processes, reseed
from ._publishing import MANIFEST, WEIGHTS, publish
from ._run_files import RunFiles

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after each step of the first process with (done, total, the step's line of the log)."""


@dataclass(frozen=True)
class Trained:
    """What a run has left."""

    weights: Path
    manifest: Path
    steps: int
    seconds: float
    """Of training, over all its starts."""


def train(
    pretext: Pretext,
    preset: Preset,
    source: Source,
    out: Path,
    *,
    preset_name: str,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = True,
    workers: int = 2,
    loader: Kind = "threads",
    save_steps: int = 1000,
    save_seconds: float = 120.0,
    progress: Progress | None = None,
    data_sets: Sequence[str] = (),
) -> Trained:
    """Pretrain; go on where ``out`` holds a checkpoint of the same run.

    Args:
        pretext: the system.
        preset: its numbers.
        source: of the samples.
        out: folder, made if it is not there.
        preset_name: for the submission's name and story.
        seed: of weights, samples and whatever the loss draws.
        device: as torch spells it; under ``torchrun``, ``cuda`` is each process's own GPU.
        resume: False starts anew and replaces what is there.
        workers: that make samples, per process.
        loader: see `batches`.
        save_steps: a checkpoint after so many steps, or ``save_seconds``, whichever is sooner.
        save_seconds: see there.
        progress: see `Progress`.
        data_sets: names of what was seen, where it was not the built-in source.

    Raises:
        TrainingError: a loss or gradient that is not finite, or a checkpoint of another run.
        StorageError: the folder cannot be written; the last checkpoint is kept.
    """
    with processes(device) as world:
        run = _Run(pretext, preset, source, out, preset_name, seed, world)
        run.prepare(resume)
        run.go(workers, loader, save_steps, save_seconds, progress)
        if world.rank == 0:
            run.publish(data_sets)
        if world.size > 1:
            distributed.barrier()
        return Trained(out / WEIGHTS, out / MANIFEST, run.step, run.seconds)


class _Run:
    """A run and its state."""

    def __init__(
        self,
        pretext: Pretext,
        preset: Preset,
        source: Source,
        out: Path,
        preset_name: str,
        seed: int,
        world: World,
    ) -> None:
        self.pretext, self.preset, self.source, self.out = pretext, preset, source, out
        self.preset_name, self.seed, self.world = preset_name, seed, world
        self.identity = {
            "system": pretext.name,
            "preset": json.loads(json.dumps(asdict(preset), default=str)),
            "seed": seed,
            "processes": world.size,
            "data": source.describe(),
        }
        self.files = RunFiles(out, f"{pretext.name}, {preset_name}")
        self.step, self.seconds = 0, 0.0
        reseed(seed, 0, 0)
        self.objective: Objective = pretext.objective(preset).to(world.device).train()
        self.optimizer = optimizer(self.objective, preset)

    # --- start -----------------------------------------------------------------------------------

    def prepare(self, resume: bool) -> None:
        """Make the folder; load the checkpoint, or measure and start the log."""
        if resume and self.files.has_checkpoint():
            self._load()
        else:
            facts = self._facts()  # in every process: a loss may speak with the others
            if self.world.rank == 0:
                self.files.start({**self.identity, **facts})
        if self.world.rank == 0:
            self.files.open_log(self.step)
        if self.world.size > 1:
            distributed.barrier()

    def _load(self) -> None:
        stored = self.files.load(self.identity)
        self.objective.load_state_dict(stored["objective"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.step, self.seconds = stored["step"], stored["seconds"]

    def _facts(self) -> dict[str, Any]:
        """What is measured once, before the first step."""
        device = self.world.device
        cuda = device.type == "cuda"
        trained = sum(p.numel() for p in self.objective.parameters() if p.requires_grad)
        encoder = sum(p.numel() for p in self.objective.encoder().parameters())
        return {
            "device": torch.cuda.get_device_name(device) if cuda else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "parameters_trained": trained,
            "parameters_of_encoder": encoder,
            "flops_per_step_and_process": self._flops(),
        }

    def _flops(self) -> int | None:
        """Of the first step, forward and backward; None for an objective that has no copy."""
        preset = self.preset
        plan = Plan(self.source, self.seed, 0, 1, preset.batch)
        batch = moved(next(iter(batches(plan, 1))), self.world.device)
        try:
            apart = copy.deepcopy(self.objective)
        except RuntimeError:
            return None
        reseed(self.seed, 0, 0)
        with FlopCounterMode(display=False) as counter:
            with self._precision():
                loss, _ = apart(batch, 0.0)
            loss.backward()
        if self.world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.world.device)
        return counter.get_total_flops()

    # --- steps -----------------------------------------------------------------------------------

    def go(
        self,
        workers: int,
        loader: Kind,
        save_steps: int,
        save_seconds: float,
        progress: Progress | None,
    ) -> None:
        """All steps that are left."""
        preset, world = self.preset, self.world
        plan = Plan(self.source, self.seed, self.step, preset.steps, preset.batch, world.rank)
        called: nn.Module = self.objective
        if world.size > 1:
            ids = [world.device] if world.device.type == "cuda" else None
            # Parts may rest for a while: mask tokens, a frozen last layer.
            called = DistributedDataParallel(
                self.objective, device_ids=ids, find_unused_parameters=True
            )
        made = batches(plan, workers, loader)
        saved = time.monotonic()
        try:
            while self.step < preset.steps:
                began = time.monotonic()
                batch = moved(next(made), world.device)
                waited = time.monotonic() - began
                record = self._one(called, batch)
                took = time.monotonic() - began
                self.step += 1
                self.seconds += took
                record["samples_per_s"] = round(preset.batch * world.size / took, 3)
                record["waited_share"] = round(waited / took, 4)
                if world.rank:
                    continue
                self.files.append(record)
                if progress is not None:
                    progress(self.step, preset.steps, record)
                due = self.step % save_steps == 0 or time.monotonic() - saved >= save_seconds
                if due or self.step == preset.steps:
                    self.files.save(self._checkpoint())
                    saved = time.monotonic()
        finally:
            cast("Any", made).close()
            self.files.close()

    def _one(self, called: nn.Module, batch: Any) -> dict[str, float]:
        """One step; the line of the log without its times."""
        preset, objective = self.preset, self.objective
        progress = self.step / preset.steps
        rate, decay = learning_rate(preset, self.step), weight_decay(preset, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
            group["weight_decay"] = decay if group["decay"] else 0.0
        reseed(self.seed, self.step, self.world.rank)
        self.optimizer.zero_grad(set_to_none=True)
        with self._precision():
            loss, measures = called(batch, progress)
        loss.backward()
        objective.before_step(progress)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, preset.clip or math.inf)
        names = ["loss", "gradient_norm", *measures]
        kind = torch.float64 if self.world.device.type == "cpu" else torch.float32
        values = torch.stack(
            [
                torch.as_tensor(v, dtype=kind, device=self.world.device).detach()
                for v in (loss, norm, *measures.values())
            ]
        )
        if self.world.size > 1:
            distributed.all_reduce(values)
            values /= self.world.size
        record: dict[str, float] = dict(zip(names, values.tolist(), strict=True))
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(record[name]):
                kept = self.files.checkpoint
                where = f"{kept} holds an earlier step" if kept.is_file() else "nothing is saved"
                raise TrainingError(
                    f"The {name.replace('_', ' ')} of step {self.step + 1} of {preset.steps} is "
                    f"{record[name]}; {where}. The training diverged: lower the learning rate, "
                    "lengthen the warm-up or clip the gradients, in another folder."
                )
        self.optimizer.step()
        objective.after_step(progress)
        return {"step": self.step + 1, "learning_rate": rate, "weight_decay": decay, **record}

    def _precision(self) -> torch.autocast:
        """bfloat16 where a GPU multiplies; weights and their updates stay float32."""
        cuda = self.world.device.type == "cuda"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=cuda)

    # --- end -------------------------------------------------------------------------------------

    def _checkpoint(self) -> dict[str, Any]:
        return {
            "identity": json.dumps(self.identity),
            "step": self.step,
            "seconds": self.seconds,
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def publish(self, data_sets: Sequence[str]) -> None:
        """Weights and manifest."""
        device = self.world.device
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        if device.type == "cuda":
            self.files.add_facts({"peak_memory_bytes": torch.cuda.max_memory_allocated(device)})
        samples = self.step * self.preset.batch * self.world.size
        story = (
            f"Trained by us, preset '{self.preset_name}': {self.step} steps, {samples} samples of "
            f"{self.source.describe()}; {_duration(self.seconds)} on {self.world.size} x {where}, "
            f"seed {self.seed}. Not the authors' weights."
        )
        name = f"{self.pretext.name}_{self.preset_name}"
        encoder = self.objective.encoder()
        publish(self.pretext, self.preset, name, encoder, self.out, story, data_sets)


# --- parts ---------------------------------------------------------------------------------------


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"

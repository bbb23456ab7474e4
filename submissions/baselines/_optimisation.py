"""The optimiser, and its learning rate and weight decay by step."""

from __future__ import annotations

from math import cos, pi

import torch

from ._pretraining import Objective, Preset


def learning_rate(preset: Preset, step: int) -> float:
    """Linear from peak / warmup to the peak, then cosine or linear to its end.

    Args:
        preset: the numbers.
        step: counted from 0.
    """
    peak = preset.learning_rate
    if step < preset.warmup:
        return peak * (step + 1) / preset.warmup
    done = (step - preset.warmup) / max(1, preset.steps - preset.warmup)
    left = (1 + cos(pi * done)) / 2 if preset.schedule == "cosine" else 1 - done
    return peak * (preset.final_rate + (1 - preset.final_rate) * left)


def weight_decay(preset: Preset, step: int) -> float:
    """Half a cosine from the start to the end (DINO, Caron et al. 2021, appendix A)."""
    start, end = preset.weight_decay
    return end + (start - end) * (1 + cos(pi * step / preset.steps)) / 2


def optimizer(objective: Objective, preset: Preset) -> torch.optim.Optimizer:
    """AdamW or SGD over the objective's groups; the rates are set at every step."""
    groups = [{"decay": True, "rate": 1.0, **group} for group in objective.parameters_to_train()]
    groups = [group for group in groups if group["params"]]
    if preset.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=preset.learning_rate, momentum=preset.betas[0])
    return torch.optim.AdamW(groups, lr=preset.learning_rate, betas=preset.betas)

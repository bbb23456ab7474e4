"""Self-distillation with a slow teacher: what CoralBay's and BrainDINO's pretraining share.

A student network sees all crops of an image, a teacher sees the large ones; the student is to say
of every crop what the teacher says of another crop of the same image. The teacher is a moving
average of the student. DINO: Caron et al., arXiv 2104.14294; iBOT: Zhou et al., arXiv 2111.07832;
Sinkhorn-Knopp: Caron et al. (SwAV), arXiv 2006.09882; KoLeo: Sablayrolles et al., arXiv 1806.03198;
all of them together: Oquab et al. (DINOv2), arXiv 2304.07193.

T is the number of teacher (large) crops, S that of student crops, of which the first T are the
teacher's; B images; K prototypes; D the width of an embedding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from ._pretraining import Objective

CENTER_MOMENTUM = 0.9
"""Of the moving average of the teacher's logits (DINO, appendix: robust between 0.9 and 0.999)."""
SINKHORN_ITERATIONS = 3
"""SwAV section 4, DINOv2 section 4."""


# --- schedules ------------------------------------------------------------------------------------


def half_cosine(start: float, end: float, progress: float) -> float:
    """From ``start`` at progress 0 to ``end`` at 1 along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def warmed_up(start: float, peak: float, share: float, progress: float) -> float:
    """Linear from ``start`` to ``peak`` over the first ``share`` of the steps, then constant."""
    return peak if progress >= share else start + (peak - start) * progress / share


# --- what the teacher says ------------------------------------------------------------------------


@torch.no_grad()
def sinkhorn_knopp(
    logits: Tensor, temperature: float, iterations: int = SINKHORN_ITERATIONS
) -> Tensor:
    """Spread the rows of all processes evenly over the prototypes.

    Args:
        logits: (N, K); N may differ between processes and may be 0.
        temperature: that divides them.
        iterations: of normalising columns, then rows.

    Returns:
        (N, K) float32: each row sums to 1; each column to about N / K over all processes, the
        closer the more iterations.
    """
    scaled = logits.float() / temperature
    peak = scaled.max() if scaled.numel() else scaled.new_tensor(-torch.inf)
    rows = scaled.new_tensor(float(len(scaled)))
    if _parallel():
        distributed.all_reduce(peak, distributed.ReduceOp.MAX)
        distributed.all_reduce(rows)
    # A common factor cancels in the first normalisation; the peak keeps exp in range. In float64,
    # because a column far from all rows underflows to a 0 / 0 in float32 at small temperatures.
    spread = torch.exp(scaled.double() - peak)
    for _ in range(iterations):
        columns = spread.sum(0)
        if _parallel():
            distributed.all_reduce(columns)
        spread = spread / columns.clamp_min(1e-300) / spread.shape[1]
        spread = spread / spread.sum(1, keepdim=True) / rows
    return (spread * rows).float()


class Centre(nn.Module):
    """The moving average of the teacher's logits, which is subtracted from them (DINO eq. 4)."""

    def __init__(self, prototypes: int, momentum: float = CENTER_MOMENTUM) -> None:
        super().__init__()
        self.momentum = momentum
        self.average: Tensor
        self.register_buffer("average", torch.zeros(prototypes))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """(N, K) logits -> (N, K) probabilities by the centre so far, which then moves."""
        found = ((logits.float() - self.average) / temperature).softmax(-1)
        if len(logits):
            mean = logits.float().mean(0)
            if _parallel():
                distributed.all_reduce(mean)
                mean /= distributed.get_world_size()
            self.average.lerp_(mean, 1 - self.momentum)
        return found


# --- losses ---------------------------------------------------------------------------------------


def dino_loss(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between every teacher crop and every other student crop (DINO eq. 3).

    Args:
        targets: (T, B, K) probabilities.
        logits: (S, B, K) of the student; crop i < T is the teacher's crop i.
        temperature: of the student.

    Returns:
        The mean over images and over the T (S - 1) pairs of different crops.
    """
    log_said = (logits.float() / temperature).log_softmax(-1)
    pairs = -torch.einsum("tbk,sbk->ts", targets.float(), log_said) / targets.shape[1]
    other = ~torch.eye(len(targets), len(logits), dtype=torch.bool, device=pairs.device)
    return pairs[other].mean()


def ibot_loss(targets: Tensor, logits: Tensor, masks: Tensor, temperature: float) -> Tensor:
    """Cross-entropy on the masked patches (iBOT eq. 2, with DINOv2's mean per image).

    Args:
        targets: (M, K) probabilities for the masked patches, in the order of ``masks.nonzero()``.
        logits: (M, K) of the student there.
        masks: (N, P) bool: which of the P patches of each of N crops are masked.
        temperature: of the student.

    Returns:
        The mean over the masked patches of a crop, of which the mean over the crops that have any;
        0 where none has.
    """
    each = -(targets * (logits.float() / temperature).log_softmax(-1)).sum(-1)
    counts = masks.sum(1)
    weights = (1 / counts.clamp_min(1)).repeat_interleave(counts)
    return (each * weights).sum() / (counts > 0).sum().clamp_min(1)


def koleo_loss(embeddings: Tensor, eps: float = 1e-8) -> Tensor:
    """Mean negative log distance to the nearest other embedding, of unit vectors.

    Args:
        embeddings: (B, D), B at least 2: of different images.
        eps: added to each distance (DINOv2's).
    """
    unit = functional.normalize(embeddings.float(), dim=-1)
    with torch.no_grad():
        cosines = unit @ unit.T
        cosines.fill_diagonal_(-2)
        nearest = cosines.argmax(1)
    return -((unit - unit[nearest]).norm(dim=-1) + eps).log().mean()


def gram_loss(patches: Tensor, anchor: Tensor) -> Tensor:
    """Mean squared difference of the patches' cosines with one another (DINOv3 eq. 2, 2508.10104).

    Args:
        patches: (N, P, D) of the student.
        anchor: (N, P, D) of a network that is to be followed.
    """
    first, second = (functional.normalize(one.float(), dim=-1) for one in (patches, anchor))
    return functional.mse_loss(first @ first.mT, second @ second.mT)


# --- measures of collapse -------------------------------------------------------------------------


@torch.no_grad()
def embedding_std(embeddings: Tensor) -> float:
    """Spread of (N, D) unit embeddings over the sample: 0 if all are one, 1 if isotropic.

    The standard deviation per channel times sqrt(D) (SimSiam, arXiv 2011.10566, section 4.1).
    """
    unit = functional.normalize(embeddings.float(), dim=-1)
    return float(unit.std(0, correction=0).mean() * math.sqrt(unit.shape[1]))


@torch.no_grad()
def teacher_entropy(targets: Tensor) -> tuple[float, float]:
    """Entropies of (N, K) probabilities, in nats.

    Returns:
        Marginal, that of the mean row: 0 if all rows choose the same prototype, log K if all are
        chosen evenly. Conditional, the mean over rows: log K if every row is uniform. Where they
        are equal the teacher says the same of every image.
    """
    mean = targets.float().mean(0)
    return float(torch.special.entr(mean).sum()), float(
        torch.special.entr(targets.float()).sum(-1).mean()
    )


# --- networks -------------------------------------------------------------------------------------


class Head(nn.Module):
    """Projection onto K prototypes: three layers, a narrow unit vector, cosines (DINO section 3).

    The prototypes are unit vectors: a weight-normalised layer whose gain stays 1.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                # DINO's 0.02 at its 2048 hidden channels; the same gain at other widths.
                std = 0.02 * math.sqrt(2048 / module.in_features)
                nn.init.trunc_normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, K): cosines."""
        unit = functional.normalize(self.mlp(x), dim=-1, eps=1e-6)
        return functional.linear(unit, functional.normalize(self.prototypes, dim=-1))


@torch.no_grad()
def move_average(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """The teacher becomes momentum * teacher + (1 - momentum) * student; buffers are copied."""
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast, 1 - momentum)
    for slow, fast in zip(teacher.buffers(), student.buffers(), strict=True):
        slow.copy_(fast)


class SelfDistillation(Objective):
    """Student, teacher and what happens around a step. A system adds its loss.

    Args:
        backbone: of the student; the teacher starts as its copy.
        heads: of the student, by name, likewise.
        options: ``targets`` (``sinkhorn`` or ``centre``), ``student_temperature``,
            ``teacher_temperature`` (start, peak), ``teacher_warmup`` (share of the steps),
            ``momentum`` (start, end), ``freeze_last`` (share of the steps in which the prototypes
            stay as they are).
    """

    def __init__(
        self, backbone: nn.Module, heads: Mapping[str, Head], options: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.options = dict(options)
        self.student = nn.ModuleDict({"backbone": backbone, **heads})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.balance: Literal["sinkhorn", "centre"] = options["targets"]
        self.centres = nn.ModuleDict(
            {name: Centre(len(head.prototypes)) for name, head in heads.items()}
            if self.balance == "centre"
            else {}
        )

    def encoder(self) -> nn.Module:
        """The teacher's network."""
        return self.teacher["backbone"]

    def train(self, mode: bool = True) -> SelfDistillation:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def targets(self, head: str, embeddings: Tensor, progress: float) -> Tensor:
        """(N, D) teacher embeddings -> (N, K) probabilities, balanced over the sample."""
        start, peak = self.options["teacher_temperature"]
        temperature = warmed_up(start, peak, self.options["teacher_warmup"], progress)
        with torch.no_grad():
            logits = self.teacher[head](embeddings)
            if self.balance == "centre":
                return self.centres[head](logits, temperature)
            return sinkhorn_knopp(logits, temperature)

    def before_step(self, progress: float) -> None:
        """Keep the prototypes at the start: at first they follow random features (DINO, app.)."""
        if progress < self.options["freeze_last"]:
            for _, head in self._heads():
                # No gradient at all: with one of zero, AdamW would still decay and count the step.
                head.prototypes.grad = None

    def after_step(self, progress: float) -> None:
        """Move the teacher."""
        start, end = self.options["momentum"]
        move_average(self.teacher, self.student, half_cosine(start, end, progress))

    def parameters_to_train(self) -> list[dict[str, Any]]:
        """By decay and rate; prototypes do not decay, since their length has no meaning."""
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter in self.student["backbone"].named_parameters():
            decay = parameter.ndim > 1 and not name.endswith(("_token", "_tokens"))
            groups.setdefault((decay, self.rate(name)), []).append(parameter)
        for _, head in self._heads():
            for name, parameter in head.named_parameters():
                decay = parameter.ndim > 1 and name != "prototypes"
                groups.setdefault((decay, 1.0), []).append(parameter)
        return [
            {"params": parameters, "decay": decay, "rate": rate}
            for (decay, rate), parameters in groups.items()
        ]

    def rate(self, name: str) -> float:
        """Factor on the learning rate of a parameter of the backbone, by its name there."""
        del name
        return 1.0

    def _heads(self) -> Iterator[tuple[str, Head]]:
        """The student's heads."""
        for name, module in self.student.items():
            if name != "backbone":
                yield name, cast("Head", module)


def measures(embeddings: Tensor, targets: Tensor) -> dict[str, float]:
    """What is logged of collapse: (N, D) of the teacher and its (N, K) answers."""
    marginal, conditional = teacher_entropy(targets)
    return {
        "embedding_std": embedding_std(embeddings),
        "teacher_entropy": conditional,
        "teacher_entropy_marginal": marginal,
        "teacher_information": marginal - conditional,
    }


def _parallel() -> bool:
    return distributed.is_available() and distributed.is_initialized()

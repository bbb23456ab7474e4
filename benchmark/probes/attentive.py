"""Attentive probe: which parts of a scan to look at is learnt, where one mean says too little.

Gated attention pooling of Ilse, Tomczak & Welling, Attention-based deep multiple instance
learning, ICML 2018, equations 7 and 9, over the tokens of a scan (see ``tokens``), and a linear
layer on what it pools:

    z = sum_t a_t h_t,   a = softmax_t(w . (tanh(V h_t) * sigmoid(U h_t)))

Unlike the linear probe it is no convex problem, so it is trained from several initialisations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ..errors import ProbeError
from ..predictions import HEADLINE
from ..splits import uses_cv
from ..studies import Setting, Trial, trials, with_val
from ..tokens import tokens_of
from ..types import Kind
from ._training import LARGEST_SD, mean_and_sd

if TYPE_CHECKING:
    import pandas as pd
    import torch

SEEDS = 3
"""Initialisations."""

HIDDEN = 64
"""Columns of V and U; the paper takes 128 for tokens of 512 numbers."""

RATE = 3e-3
"""Adam's step size: three times its default, as 400 steps are few."""

DECAYS = (0.01, 0.3, 3.0)
"""Candidates of AdamW's decoupled weight decay: all steps shrink weights by 1, 30 and 97 %."""

BATCH = 32
"""Scans per step."""

MOST = 512
"""Scans that are asked about at once."""

STEPS = 10
"""Between two looks at val: an epoch of 320 scans, whatever the size of the data set."""

EPOCHS = 40

PATIENCE = 10
"""Epochs without a better val loss after which training stops."""


@dataclass(frozen=True)
class AttentiveStudy:
    """Gated attention pooling and a linear layer; decay and epoch chosen on val.

    Without cross-validation a repeat is a seed. Under it, repeat r has its own folds and its own
    seed r, three repeats instead of five; a fifth of the training patients is val.
    """

    name: str = "attentive"
    title: str = "Gated attention over the tiles or positions of a scan, then a linear layer"
    version: int = 1
    kinds: tuple[Kind, ...] = ("classification", "regression")
    answers: Literal[""] = ""
    on_request: bool = True
    cost: str = (
        "Runs the encoder once over every image, then trains 9 small networks (15 folds: 45) of at "
        "most 400 steps, all at once: half a minute on a CPU core for 1,000 scans of 64 tokens; "
        "not measured on a GPU."
    )

    def run(self, setting: Setting) -> pd.DataFrame:
        """Extract tokens, train, predict test; see ``Study.run``.

        More columns: ``tokens``, what they are; ``attention``, the list of the tokens' shares,
        which add up to 1.

        Raises:
            ProbeError: a side without cases.
        """
        import pandas as pd

        card, cases = setting.card, setting.cases
        found = tokens_of(
            setting.encoder, cases, card.field_of_view_mm, setting.device, setting.progress
        )
        target = np.array([float(case.target) for case in cases])  # type: ignore[arg-type]
        parts = []
        for trial in trials(card, cases, SEEDS):
            seeds = [trial.repeat] if uses_cv(card) else range(SEEDS)
            data = prepared(found.values, target, with_val(trial, card, cases), len(card.classes))
            found_here = trained(data, [setting.seed + seed for seed in seeds], setting.device)
            for seed, best in zip(seeds, found_here, strict=True):
                parts.append(_table(setting, trial, seed, best).assign(tokens=found.of))
        return pd.concat(parts, ignore_index=True)


class Data(NamedTuple):
    """Tokens, standardised on train and padded; targets of test are hidden."""

    x: np.ndarray
    """(N, T, D) float32."""
    there: np.ndarray
    """(N, T) bool: no padding."""
    target: np.ndarray
    """(N,) class, or value in SDs of train; -1 or NaN for test."""
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    """Rows."""
    n_classes: int
    level: float
    scale: float
    """Mean and SD of a regression's training targets."""


class Trained(NamedTuple):
    """The network of the best decay and epoch, asked about the test rows."""

    values: np.ndarray
    """(n, K) probabilities or (n,) values, float64."""
    attention: list[list[float]]
    decay: float
    epoch: int


def prepared(tokens: list[np.ndarray], target: np.ndarray, trial: Trial, n_classes: int) -> Data:
    """Standardise each feature over all training tokens, clipped as for the linear probe.

    Args:
        tokens: (T_n, D) of each case.
        target: (N,).
        trial: with a val side; without one, the training side is used to choose.
        n_classes: K; 0 for a regression.

    Raises:
        ProbeError: there is no train or no test case.
    """
    train, val, test = (trial.rows(side) for side in ("train", "val", "test"))
    for name, rows in (("train", train), ("test", test)):
        if not len(rows):
            raise ProbeError(
                f"There is no {name} case. A probe needs train and test patients: use a larger "
                "part of the data set."
            )
    known = np.concatenate([tokens[row] for row in train]).astype(np.float64)
    mean, sd = mean_and_sd(known)
    longest = max(map(len, tokens))
    x = np.zeros((len(tokens), longest, known.shape[1]), np.float32)
    there = np.zeros(x.shape[:2], bool)
    for row, one in enumerate(tokens):
        x[row, : len(one)] = np.clip((one - mean) / sd, -LARGEST_SD, LARGEST_SD)
        there[row, : len(one)] = True
    level, scale = 0.0, 1.0
    if not n_classes:
        level, scale = float(target[train].mean()), float(target[train].std()) or 1.0
    hidden = np.where(np.isin(np.arange(len(target)), test), np.nan, (target - level) / scale)
    if n_classes:
        hidden = np.where(np.isnan(hidden), -1, hidden).astype(np.int64)
    val = val if len(val) else train
    return Data(x, there, hidden, train, val, test, n_classes, level, scale)


def trained(data: Data, seeds: Sequence[int], device: str = "cpu") -> list[Trained]:
    """Train from every start with every decay, and keep of each start what is best on val.

    All networks are trained side by side, as one of (M, ...) weights: their losses are added, and
    no weight sees another's gradient.

    Raises:
        ProbeError: no loss is finite.
    """
    import torch

    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    seed_of = np.repeat(np.arange(len(seeds)), len(DECAYS))
    decay = torch.tensor(DECAYS * len(seeds), device=device)[:, None, None]
    weights = _weights(draws, seed_of, data, device)
    optimiser = torch.optim.Adam(weights.values(), lr=RATE)
    x, there = torch.from_numpy(data.x), torch.from_numpy(data.there)
    target = torch.from_numpy(data.target)

    def forward(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return pooled(x[rows].to(device), there[rows].to(device), weights)

    def losses(rows: np.ndarray) -> torch.Tensor:
        """(M,) mean losses of (M, B) or (1, B) rows."""
        out = forward(rows)[0]
        return _losses(out, target[rows].to(device), data.n_classes)

    batches = [_batches(data.train, draw) for draw in draws]
    least = np.full(len(seed_of), np.inf)
    epochs = np.zeros(len(seed_of), np.int64)
    kept = {name: value.detach().clone() for name, value in weights.items()}
    for epoch in range(1, EPOCHS + 1):
        for _ in range(STEPS):
            rows = np.stack([next(batch) for batch in batches])[seed_of]
            optimiser.zero_grad()
            losses(rows).sum().backward()
            with torch.no_grad():
                for name in DECAYED:  # decoupled: AdamW
                    weights[name] *= 1 - RATE * decay
            optimiser.step()
        with torch.no_grad():
            parts = [losses(rows).cpu().numpy() * rows.size for rows in _parts(data.val)]
        now = np.sum(parts, axis=0) / len(data.val)
        waiting = epoch - epochs <= PATIENCE
        better = np.flatnonzero(waiting & (now < least))
        least[better], epochs[better] = now[better], epoch
        for name, value in weights.items():
            kept[name][better] = value.detach()[better]
        if not waiting.any():
            break
    best = [m[least[m].argmin()] for m in np.split(np.arange(len(seed_of)), len(seeds))]
    if not np.isfinite(least[best]).all():
        raise ProbeError(
            "The attentive probe's loss on val is not finite in any epoch. Check the encoder's "
            "maps and embeddings for extreme values."
        )
    weights = {name: value[best] for name, value in kept.items()}
    with torch.no_grad():
        answers = [forward(rows) for rows in _parts(data.test)]
    out, attention = (torch.cat(t, 1).double().cpu() for t in zip(*answers, strict=True))
    values = (out.softmax(-1) if data.n_classes else out[..., 0]).numpy()
    lengths = data.there[data.test].sum(1)
    return [
        Trained(
            values[s] * data.scale + data.level,
            [one[: int(n)].tolist() for one, n in zip(attention[s], lengths, strict=True)],
            DECAYS[m % len(DECAYS)],
            int(epochs[m]),
        )
        for s, m in enumerate(best)
    ]


DECAYED = ("v", "u", "w", "out")


def _weights(
    draws: Sequence[torch.Generator], seed_of: np.ndarray, data: Data, device: str
) -> dict[str, torch.Tensor]:
    """(M, ...) of each layer and its bias, ``w`` having none: a softmax does not see it."""
    import torch
    from torch.nn.init import xavier_uniform_

    width, outputs = data.x.shape[2], data.n_classes or 1
    shapes = {"v": (width, HIDDEN), "u": (width, HIDDEN), "w": (HIDDEN, 1), "out": (width, outputs)}
    found = {}
    for name, shape in shapes.items():
        starts = [xavier_uniform_(torch.empty(shape), generator=draw) for draw in draws]
        found[name] = torch.stack(starts)[seed_of]
        if name != "w":
            found[f"{name}_bias"] = torch.zeros(len(seed_of), 1, shape[1])
    return {name: value.to(device).requires_grad_() for name, value in found.items()}


def _batches(rows: np.ndarray, draw: torch.Generator) -> Iterator[np.ndarray]:
    """``BATCH`` rows at a time, or all if they are fewer, each pass in another order."""
    import torch

    size = min(BATCH, len(rows))
    while True:
        order = rows[torch.randperm(len(rows), generator=draw).numpy()]
        for start in range(0, len(rows) - size + 1, size):
            yield order[start : start + size]


def _losses(out: torch.Tensor, wanted: torch.Tensor, n_classes: int) -> torch.Tensor:
    """(M,) mean cross-entropy or squared error of (M, B, K), about (M, B) or (1, B)."""
    wanted = wanted.expand(out.shape[:2])
    if n_classes:
        return -out.log_softmax(-1).gather(2, wanted[..., None])[..., 0].mean(1)
    return ((out[..., 0] - wanted.float()) ** 2).mean(1)


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    """(1, B): as many scans at once as memory is no matter."""
    return [rows[None, start : start + MOST] for start in range(0, len(rows), MOST)]


def pooled(
    x: torch.Tensor, there: torch.Tensor, weights: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The networks, side by side.

    Args:
        x: (M, B, T, D) tokens, or (1, B, T, D), the same for all networks.
        there: (M, B, T) bool, or (1, B, T).
        weights: ``v`` and ``u`` (M, D, H), ``w`` (M, H, 1), ``out`` (M, D, K); ``v_bias`` and
            ``u_bias`` (M, 1, H), ``out_bias`` (M, 1, K).

    Returns:
        (M, B, K), and the attention (M, B, T), 0 in the padding.
    """
    import torch

    m, (_, b, t, d) = len(weights["v"]), x.shape
    flat = x.reshape(len(x), b * t, d)
    gate = torch.sigmoid(flat @ weights["u"] + weights["u_bias"])
    hidden = torch.tanh(flat @ weights["v"] + weights["v_bias"]) * gate  # (M, B T, H)
    score = (hidden @ weights["w"]).reshape(m, b, t)
    attention = score.masked_fill(~there, -torch.inf).softmax(-1)
    z = (attention[:, :, None] @ x)[:, :, 0]  # (M, B, D)
    return z @ weights["out"] + weights["out_bias"], attention


def _table(setting: Setting, trial: Trial, seed: int, best: Trained) -> pd.DataFrame:
    """The rows of one training."""
    import pandas as pd

    cases = [setting.cases[row] for row in trial.rows("test")]
    if setting.card.kind == "classification":
        columns = {f"p{k}": best.values[:, k] for k in range(best.values.shape[1])}
        target = np.array([case.target for case in cases], np.int64)
    else:
        columns = {"value": best.values}
        target = np.array([case.target for case in cases], np.float64)
    return pd.DataFrame(
        {
            "repeat": seed,
            "fold": trial.fold,
            "refit": HEADLINE,
            "case": [case.id for case in cases],
            "patient": [case.patient for case in cases],
            "target": target,
            **columns,
            "chosen_decay": best.decay,
            "chosen_epoch": best.epoch,
            "attention": best.attention,
        }
    )


PROBES = (AttentiveStudy(),)

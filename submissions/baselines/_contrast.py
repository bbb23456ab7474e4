"""Supervised contrast between voxels: what anatomix learns from.

The loss is that of Khosla et al. (arXiv 2004.11362, equation 2), with voxels for samples and labels
of the map for classes, in several layers of one network (Dey et al., ICLR 2025).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def projector(channels: int, width: int, layers: int) -> nn.Sequential:
    """The network between a layer's features and its loss.

    Args:
        channels: of the features.
        width: of every layer.
        layers: linear layers, each followed by batch norm, with ReLU between; the last batch norm
            has no parameters. They have no bias, which the batch norm would take away.
    """
    modules: list[nn.Module] = []
    for layer in range(layers):
        modules.append(nn.Linear(channels, width, bias=False))
        last = layer == layers - 1
        modules.append(nn.BatchNorm1d(width, affine=not last))
        if not last:
            modules.append(nn.ReLU())
        channels = width
    return nn.Sequential(*modules)


def drawn_positions(sides: Sequence[int], count: int, device: torch.device) -> Tensor:
    """Different voxels of a grid, by torch's generator: (n,) flat indices, n at most ``count``."""
    voxels = int(torch.tensor(sides).prod())
    return torch.randperm(voxels, device=device)[:count]


def labels_at(labels: Tensor, sides: Sequence[int], positions: Tensor) -> Tensor:
    """The labels of voxels of a coarser grid: that of the first of the fine voxels they cover.

    Args:
        labels: (B, X, Y, Z).
        sides: of the coarse grid; they divide X, Y and Z.
        positions: (n,) flat indices into the coarse grid.

    Returns:
        (B, n).
    """
    strides = [n // side for n, side in zip(labels.shape[1:], sides, strict=True)]
    coarse = labels[:, :: strides[0], :: strides[1], :: strides[2]]
    return coarse.flatten(1)[:, positions]


def features_at(maps: Tensor, positions: Tensor) -> Tensor:
    """(B, C, X, Y, Z) and (n,) flat indices -> (B, n, C)."""
    return maps.flatten(2)[:, :, positions].transpose(1, 2)


def supervised_contrast(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The loss of each anchor, averaged.

    For each anchor: minus the mean, over all others of its label, of the log softmax over all
    others of the cosine similarity by the temperature.

    Args:
        features: (n, F), of any length but zero.
        labels: (n,), each at least twice.
        temperature: by which similarities are divided, above 0.

    Returns:
        A scalar.
    """
    unit = functional.normalize(features.float(), dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    logits = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
    log_share = logits.log_softmax(1).masked_fill(itself, 0.0)
    positive = (labels[:, None] == labels[None]) & ~itself
    return -((log_share * positive).sum(1) / positive.sum(1)).mean()


@torch.no_grad()
def contrast_invariance(first: Tensor, second: Tensor, labels: Tensor) -> dict[str, float]:
    """How far two views agree on the voxels and tell labels apart.

    Args:
        first: (n, F) features of voxels in one view.
        second: (n, F), of the same voxels in the other.
        labels: (n,).

    Returns:
        ``same_voxel``: mean cosine between the views at the same voxel; ``other_label``: between
        the views at voxels of different labels (0 where there is one label only);
        ``accuracy``: share of the voxels whose nearest voxel in the other view has their label;
        ``embedding_std``: SD of the unit vectors, averaged over the channels, times sqrt(F): 0 for
        collapse, about 1 where they point everywhere.
    """
    one, two = (functional.normalize(x.float(), dim=1) for x in (first, second))
    cosine = one @ two.T
    other = labels[:, None] != labels[None]
    spread = torch.cat([one, two]).std(0).mean() * one.shape[1] ** 0.5
    found = torch.stack(
        [
            cosine.diagonal().mean(),
            (cosine * other).sum() / other.sum().clamp_min(1),
            (labels[cosine.argmax(1)] == labels).float().mean(),
            spread,
        ]
    ).tolist()
    return dict(zip(("same_voxel", "other_label", "accuracy", "embedding_std"), found, strict=True))

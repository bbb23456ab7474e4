"""Embeddings of shifted images: what the shift study and the stability study share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..features import data_set_of
from ..shifted_cases import shifted_case, shifted_identity
from ..shifts import MOVED, VIEWS, View
from ..studies import Setting


def shifted_embeddings(
    setting: Setting, rows: Sequence[int] | np.ndarray, move: bool = False
) -> dict[str, np.ndarray]:
    """(n, F) of some cases in every view, by the view's name; kept like all embeddings.

    Args:
        setting: of the run.
        rows: of its cases.
        move: whether the move of the grid is a view, too.
    """
    chosen = [setting.cases[row] for row in rows]
    views: list[View | None] = [*VIEWS, *([None] if move else [])]
    found = {}
    for number, how in enumerate(views):

        def told(done: int, total: int, before: int = number * len(chosen)) -> None:
            del total
            if setting.progress:
                setting.progress(before + done, len(views) * len(chosen))

        found[MOVED if how is None else how.name] = setting.cache.get(
            setting.encoder,
            data_set_of(setting.card),
            [shifted_case(case, how) for case in chosen],
            shifted_identity(setting.identity, how, chosen),
            setting.card.field_of_view_mm,
            setting.device,
            told,
        ).x
    return found

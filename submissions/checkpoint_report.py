"""``tomoprobe inspect`` of a checkpoint: the findings in plain words, and what to do next."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator

from .headers import few, shown
from .inspecting import COUNTER, NEAR, Findings, Fit
from .layers import in_words


def report(found: Findings) -> Iterator[str]:
    """The findings as lines of plain text: what it is, what it fits, what to do."""
    checkpoint = found.checkpoint
    size = checkpoint.path.stat().st_size
    yield f"{checkpoint.path.name}: {checkpoint.format}, {size / 1e6:.2f} MB."
    numbers = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    dtypes = Counter(checkpoint.dtypes.values())
    counters = sum(key.endswith(COUNTER) for key in checkpoint.shapes)
    yield (
        f"{len(checkpoint.shapes)} tensors with {numbers:,} numbers, running statistics included "
        f"({', '.join(f'{n} {dtype}' for dtype, n in dtypes.most_common())})"
        + (f"; {counters} only count batches" if counters else "")
        + (f"; taken from {shown(checkpoint.part)}." if checkpoint.part else ".")
    )
    for other in checkpoint.others:
        yield f"Another part with tensors: {shown(other)} (choose it with --part)."
    for item in checkpoint.baggage:
        yield f"Beside them, not needed here: {item}."
    if prefix := common_prefix(checkpoint.shapes):
        yield f"All names begin with {shown(prefix)}."
    yield from in_words(found.anatomy)
    yield ""
    yield from _verdict(found)


def common_prefix(names: Iterable[str]) -> str:
    """The parts that all names begin with, with their dot; empty where there are none.

    >>> common_prefix(["net.encoder.a.weight", "net.encoder.b.weight"])
    'net.encoder.'
    """
    split = [name.split(".")[:-1] for name in names]
    shared: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(f"{part}." for part in shared)


def _verdict(found: Findings) -> Iterator[str]:
    name = found.checkpoint.path.name
    if found.exact:
        for fit in found.exact:
            yield from _exact_lines(fit)
        best = found.exact[0]
        yield f"Next: tomoprobe pack {name} --architecture {best.guess.architecture}"
        return
    best = found.fits[0]
    if best.matched == 0:
        yield (
            f"No registered architecture fits or comes near: of {len(found.fits)} none has a "
            f"tensor of this name and shape ({', '.join(sorted(_names(found.fits)))})."
        )
    else:
        yield "No registered architecture fits exactly. The nearest:"
        for fit in found.fits[:2]:
            yield from _near_lines(fit)
    if best.share >= NEAR:
        yield (
            "Next: if it is that architecture, correct its arguments, or leave out of the file "
            "what is not the network's; then `tomoprobe pack`."
        )
    yield (
        ("Or" if best.share >= NEAR else "Next")
        + ": tensors alone do not tell how a network computes. Submit it as a graph: write a "
        "factory in Python that builds the network, loads this file and has a card, then run "
        "`tomoprobe pack --onnx package.module:factory`. Before that, `tomoprobe evaluate -e "
        "package.module:factory` scores it on this machine."
    )


def _names(fits: Iterable[Fit]) -> Iterator[str]:
    return (fit.guess.architecture for fit in fits)


def _exact_lines(fit: Fit) -> Iterator[str]:
    guess = fit.guess
    yield (
        f"It fits '{guess.architecture}' exactly: {fit.matched} of {fit.wanted} tensors by name "
        f"and shape, {fit.parameters:,} parameters"
        + (f"; {fit.left_out} more (decoder, head) are left out." if fit.left_out else ".")
    )
    for old, new in fit.rename.items():
        yield f"  after renaming {shown(old)} to {shown(new)} (pack does so)."
    yield f"  arguments = {json.dumps(dict(guess.arguments))}; channels = {guess.channels}"
    if guess.untold:
        yield f"  No tensor tells {', '.join(guess.untold)}: check them against your code."


def _near_lines(fit: Fit) -> Iterator[str]:
    yield (
        f"'{fit.guess.architecture}' with {json.dumps(dict(fit.guess.arguments)) or '{}'}: "
        f"{fit.matched} of its {fit.wanted} tensors match by name and shape ({fit.share:.0%} of "
        "both together)."
    )
    for what, names in (
        ("missing", fit.missing),
        ("with another shape", fit.reshaped),
        ("of the file that it has not", fit.unexpected),
    ):
        if names:
            yield f"  {len(names)} {what}: {few(names, 3)}."

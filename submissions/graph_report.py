"""``tomoprobe inspect`` of an ONNX graph: whether it would be taken, and what it gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..benchmark.errors import StorageError
from . import onnx_graph
from .headers import shown


def report(path: Path) -> Iterator[str]:
    """What a graph is, as lines of plain text.

    Raises:
        IntakeError: it would be refused; the reason says what was found.
        StorageError: it cannot be read.
    """
    try:
        facts = onnx_graph.validate(path)
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read ({error.strerror}).") from error
    yield f"{path.name}: an ONNX graph, opset {facts.opset}, {path.stat().st_size / 1e6:.2f} MB."
    operators = sorted(facts.operators.items(), key=lambda item: -item[1])
    yield (
        f"{facts.parameters:,} parameters; {sum(facts.operators.values())} operators: "
        f"{', '.join(f'{count} {shown(name)[1:-1]}' for name, count in operators)}."
    )
    yield (
        f"It takes {facts.channels} channel{'' if facts.channels == 1 else 's'} of "
        f"{'x'.join(map(str, facts.shape))} voxels and gives an embedding of {facts.width} numbers"
        + (
            f" and maps at strides {', '.join(map(str, facts.strides))}."
            if facts.strides
            else "; no maps."
        )
    )
    yield (
        f"One volume takes about {facts.operations / 1e9:.3g} billion multiply-adds and "
        f"{facts.bytes / 2**20:.0f} MiB of intermediate results."
    )
    yield "It would be taken: operators, sizes and outputs are in order."
    yield (
        f"Next: a manifest with [onnx] file = {shown(path.name)} beside it, or `tomoprobe pack "
        "--onnx package.module:factory`, which writes both."
    )

"""Is this ONNX file an encoder that can be run, and no more than that? Found without running it.

The contract: one float32 input ``volume`` (batch, C, X, Y, Z), of which only the batch is open; a
float32 output ``embedding`` (batch, F); and, for dense tasks, float32 outputs ``map_<stride>``
(batch, C_i, ceil(X / stride), ceil(Y / stride), ceil(Z / stride)). All of the graph is in the one
file, in the operators of `onnx_operators`, and within `Limits`.

Refused are whatever runs code or reads files (custom operators, functions, external data), whatever
is random or keeps state, and whatever asks for more memory or time than its `Limits`: each with an
IntakeError of the stage "check". The order is the defence: size, then wire format, then parsing,
then each message by itself, then shapes.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .onnx_limits import EXPORT, LIMITS, Limits, refuse, require, shown
from .onnx_messages import check_messages, graphs, is_float
from .onnx_operators import DOMAINS, OPSETS
from .onnx_shapes import Known, Measured, known, measure
from .onnx_wire import scan

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, ValueInfoProto

INPUT = "volume"
EMBEDDING = "embedding"
MAP = re.compile(r"map_([1-9][0-9]{0,3})")

BATCHES = (1, 2, 7)
"""Batch sizes at which shapes are found before anything runs."""

_FLOAT32 = 1


@dataclass(frozen=True)
class GraphFacts:
    """What a graph that has passed says about itself."""

    sha256: str
    """Of the file."""
    channels: int
    shape: tuple[int, int, int]
    """Voxels of the input's grid."""
    width: int
    """F, the length of the embedding."""
    strides: tuple[int, ...]
    """Of the maps, fine to coarse."""
    parameters: int
    """Floating point numbers among the initialisers."""
    opset: int
    operators: Mapping[str, int]
    """How often each is used."""
    bytes: int
    """Of all intermediate results for one volume."""
    operations: int
    """Multiply-adds for one volume, roughly."""


@dataclass(frozen=True)
class CheckedGraph:
    """A graph that has passed, and what else is to be asked of it."""

    data: bytes
    """The file. What was checked is what is run, whatever happens to the file afterwards."""
    facts: GraphFacts
    skeleton: ModelProto
    weights: Mapping[str, Known]
    limits: Limits

    def check_batch(self, batch: int) -> None:
        """Check the sizes of everything at one more batch size.

        Raises:
            IntakeError: as `validate`.
        """
        one = measure(self.skeleton, self.weights, 1, self.limits)
        _check_growth(one, measure(self.skeleton, self.weights, batch, self.limits), batch)


def validate(path: Path, limits: Limits = LIMITS) -> GraphFacts:
    """Check a graph.

    Raises:
        IntakeError: it is refused; codes begin with ``graph-``.
        InstallationError: onnx is not installed.
        OSError: the file cannot be read, which on a server is no fault of the graph.
    """
    return read(path, limits).facts


def read(path: Path, limits: Limits = LIMITS) -> CheckedGraph:
    """Read and check a graph; raises as `validate`."""
    return read_bytes(_bytes(path, limits), limits)


def read_bytes(data: bytes, limits: Limits = LIMITS) -> CheckedGraph:
    """Check the bytes of a file; raises as `validate`."""
    require("onnx")
    scan(data, limits)
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    try:
        model = ModelProto.FromString(data)
    except DecodeError as error:
        refuse("not-onnx", f"The file is no ONNX graph: {shown(str(error))}.")
    opset = _check_model(model)
    nodes = check_messages(model.graph, limits)
    weights = {tensor.name: known(tensor) for tensor in model.graph.initializer}
    parameters = sum(
        math.prod(t.dims) for g in graphs(model.graph) for t in g.initializer if is_float(t)
    )
    channels, shape = _check_input(model.graph)
    skeleton = _without_weights(model)
    del model
    one, *more = (measure(skeleton, weights, batch, limits) for batch in BATCHES)
    for batch, measured in zip(BATCHES[1:], more, strict=True):
        _check_growth(one, measured, batch)
    width, strides = _check_outputs(skeleton.graph, one, more, shape)
    facts = GraphFacts(
        sha256=hashlib.sha256(data).hexdigest(),
        channels=channels,
        shape=shape,
        width=width,
        strides=strides,
        parameters=parameters,
        opset=opset,
        operators=dict(Counter(sorted(node.op_type for node in nodes))),
        bytes=one.bytes,
        operations=one.operations,
    )
    return CheckedGraph(data, facts, skeleton, weights, limits)


def _bytes(path: Path, limits: Limits) -> bytes:
    with path.open("rb") as file:
        return file.read(size_of(file, limits))


def size_of(file: BinaryIO, limits: Limits = LIMITS) -> int:
    """Bytes of an open file; one that is too large is refused before any of it is read."""
    size = os.fstat(file.fileno()).st_size
    if size > limits.file_bytes:
        refuse(
            "too-large",
            f"The file has {size} bytes; up to {limits.file_bytes} are allowed.",
            "Store the weights as float16, or use a smaller network.",
        )
    return size


# --- messages ------------------------------------------------------------------------------------


def _check_model(model: ModelProto) -> int:
    """Check what is around the graph; returns the opset."""
    if model.functions:
        refuse("function", "The file defines functions, which are not allowed.", _INLINE)
    if model.training_info or model.configuration:
        refuse("training", "The file holds training steps or device configurations.")
    foreign = [o.domain for o in model.opset_import if o.domain not in DOMAINS]
    if foreign:
        refuse("domain", f"The file imports the domain {shown(foreign[0])}; only ONNX's own is.")
    if len(model.opset_import) != 1 or model.opset_import[0].version not in OPSETS:
        found = [o.version for o in model.opset_import]
        refuse(
            "opset",
            f"The file states the operator sets {found}; one of {OPSETS[0]} to {OPSETS[-1]} is "
            "expected.",
        )
    if not model.HasField("graph") or not model.graph.node:
        refuse("not-onnx", "The file holds no graph.")
    return model.opset_import[0].version


_INLINE = "Inline them with onnx.inliner.inline_local_functions, or export with tomoprobe."


def _without_weights(model: ModelProto) -> ModelProto:
    """A model of the same graph without the large initialisers."""
    from onnx import ModelProto

    skeleton = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    skeleton.graph.node.extend(model.graph.node)
    skeleton.graph.input.extend(model.graph.input)
    skeleton.graph.output.extend(model.graph.output)
    return skeleton


# --- contract ------------------------------------------------------------------------------------


def _check_input(graph: GraphProto) -> tuple[int, tuple[int, int, int]]:
    """Channels and grid of the one input."""
    names = [given.name for given in graph.input]
    if names != [INPUT]:
        refuse(
            "input",
            f"The inputs are {shown(', '.join(names))}; one, '{INPUT}', is expected.",
        )
    dims = _declared(graph.input[0])
    if len(dims) != 5 or dims[0] is not None or None in dims[1:]:
        refuse(
            "input",
            f"'{INPUT}' has the shape {_spelt(dims)}; (batch, C, X, Y, Z) is expected, all but the "
            "batch a number.",
        )
    _, channels, x, y, z = (d or 0 for d in dims)
    if min(channels, x, y, z) < 1:
        refuse("input", f"'{INPUT}' has the shape {_spelt(dims)}, which is empty.")
    return channels, (x, y, z)


def _check_outputs(
    graph: GraphProto, one: Measured, more: list[Measured], grid: tuple[int, int, int]
) -> tuple[int, tuple[int, ...]]:
    """Width and strides."""
    names = [output.name for output in graph.output]
    wrong = [n for n in names if n != EMBEDDING and not MAP.fullmatch(n)]
    if wrong or EMBEDDING not in names or len(set(names)) != len(names):
        refuse(
            "output",
            f"The outputs are {shown(', '.join(names))}; '{EMBEDDING}' is expected, and for dense "
            "tasks 'map_<stride>', as map_4.",
        )
    for output in graph.output:
        _declared(output)
        found = one.outputs[output.name]
        for batch, measured in zip(BATCHES[1:], more, strict=True):
            if measured.outputs[output.name].shape != (batch, *found.shape[1:]):
                refuse(
                    "batch",
                    f"'{output.name}' has the shape {found.shape} for one volume and "
                    f"{measured.outputs[output.name].shape} for {batch}; one row for each volume "
                    "is expected.",
                )
        if found.elem_type != _FLOAT32 or found.shape[:1] != (1,):
            refuse("output", f"'{output.name}' has to be float32, with a row for each volume.")
        stride = MAP.fullmatch(output.name)
        if stride is None:
            fits, expected = len(found.shape) == 2, "(batch, F)"
        else:
            side = tuple(math.ceil(n / int(stride[1])) for n in grid)
            fits = len(found.shape) == 5 and found.shape[2:] == side
            expected = f"(batch, channels, {', '.join(map(str, side))})"
        if not fits or math.prod(found.shape) == 0:
            refuse(
                "output",
                f"'{output.name}' has the shape {found.shape} for one volume; {expected} is "
                "expected.",
            )
    strides = sorted(int(m[1]) for n in names if (m := MAP.fullmatch(n)))
    return one.outputs[EMBEDDING].shape[1], tuple(strides)


def _check_growth(one: Measured, many: Measured, batch: int) -> None:
    """Refuse what grows faster than the batch: there is a batch for which it is a bomb."""
    faster = [b > a * batch for a, b in zip(one.sizes, many.sizes, strict=True)]
    if any(faster) or many.operations > one.operations * batch:
        refuse(
            "batch",
            "Intermediate results grow faster than the batch.",
            "Compute each volume by itself.",
        )


def _declared(value: ValueInfoProto) -> list[int | None]:
    """The dimensions of an input or output as declared; None for one that is open."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type != _FLOAT32:
        refuse("type", f"{shown(value.name)} is no float32 tensor.", EXPORT)
    return [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]


def _spelt(dims: list[int | None]) -> str:
    return f"({', '.join('open' if d is None else str(d) for d in dims)})"

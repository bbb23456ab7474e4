"""Nodes and tensors of an ONNX graph, each checked by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .onnx_limits import Limits, refuse, shown
from .onnx_operators import check_node
from .onnx_shapes import BOUND, ITEM_BYTES, SMALL

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto


def check_messages(graph: GraphProto, limits: Limits) -> list[NodeProto]:
    """Check every node and tensor by itself, those of subgraphs, too; returns the nodes."""
    nodes: list[NodeProto] = []
    defined: set[str] = set()
    used: set[str] = set()
    for inner in graphs(graph, limits.subgraphs):
        if inner.sparse_initializer or inner.quantization_annotation:
            refuse("initializer", "Sparse initialisers and quantisation are not allowed.")
        if inner is not graph and inner.input:
            refuse("invalid", "A branch has inputs; it sees what is around it.")
        for tensor in inner.initializer:
            _define(tensor.name, defined, limits)
            _check_tensor(tensor, limits)
            if inner is not graph and math.prod(tensor.dims) > SMALL:
                refuse(
                    "initializer",
                    f"Initialiser {shown(tensor.name)} of a branch has more than {SMALL} elements.",
                    "Move it to the main graph.",
                )
        for given in inner.input:
            _define(given.name, defined, limits)
            _check_declared(given, "input", limits)
        for promised in inner.output:
            _check_declared(promised, "output", limits)
        for noted in inner.value_info:
            _check_declared(noted, "shape", limits)
        nodes += inner.node
        if len(nodes) > limits.nodes:
            refuse("too-many-nodes", f"The graph has more than {limits.nodes} nodes.")
        for node in inner.node:
            check_node(node, limits)
            for name in filter(None, node.output):
                _define(name, defined, limits)
            used.update(node.input)
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    _check_tensor(attribute.t, limits)
        used.update(output.name for output in inner.output)
    idle = [t.name for g in graphs(graph) for t in g.initializer if t.name not in used]
    if idle:
        refuse(
            "unused",
            f"{len(idle)} initialisers are read by nothing, {shown(idle[0])} for one.",
            "Leave them out.",
        )
    return nodes


def graphs(graph: GraphProto, depth: int = 100) -> Iterator[GraphProto]:
    """The graph and all graphs within it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                if depth == 0:
                    refuse("too-deep", "Branches are nested too deep.")
                yield from graphs(attribute.g, depth - 1)


def _define(name: str, defined: set[str], limits: Limits) -> None:
    """Note that a tensor of that name is made: once in the whole file."""
    if not name or len(name) > limits.name or not name.isprintable():
        refuse("name", f"{shown(name)} is no name of a tensor.")
    if name in defined:
        refuse("duplicate-name", f"Two tensors are called {shown(name)}.")
    defined.add(name)


def _check_declared(value: ValueInfoProto, code: str, limits: Limits) -> None:
    """Check the shape that is declared of a value; an open dimension counts as 0."""
    dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
    _check_dims(dims, shown(value.name), code, limits)


def _check_dims(dims: Sequence[int], name: str, code: str, limits: Limits) -> None:
    """Refuse a shape before anything is computed of it: the product of many large ones is work."""
    if len(dims) > limits.dims or not all(0 <= n <= BOUND for n in dims):
        refuse(
            code,
            f"{name} has {len(dims)} dimensions, {tuple(dims[: limits.dims])} at first; up to "
            f"{limits.dims} of 0 to 2^31 are allowed.",
        )


def _check_tensor(tensor: TensorProto, limits: Limits) -> None:
    """Check that a tensor holds what it declares, in this file, and finite."""
    from onnx import numpy_helper

    name = f"Tensor {shown(tensor.name)}"
    _check_dims(tensor.dims, name, "initializer", limits)
    if tensor.data_location or tensor.external_data:
        refuse(
            "external-data",
            f"{name} is kept in another file, and no other file is ever opened.",
            "Export with external_data=False.",
        )
    if tensor.data_type not in ITEM_BYTES or tensor.HasField("segment"):
        refuse("type", f"{name} is of the type {tensor.data_type}, or in segments.")
    size = math.prod(tensor.dims)
    lists = [
        *(tensor.float_data, tensor.double_data, tensor.int32_data, tensor.int64_data),
        *(tensor.uint64_data, tensor.string_data),
    ]
    held = [len(values) for values in lists if values]
    if tensor.HasField("raw_data"):
        fits = not held and len(tensor.raw_data) == size * ITEM_BYTES[tensor.data_type]
    else:
        fits = held == [size] or (size == 0 and not held)
    if not fits:
        refuse(
            "initializer",
            f"{name} declares the shape {tuple(tensor.dims)}, which is not what it holds.",
        )
    try:
        values = numpy_helper.to_array(tensor)
    except (TypeError, ValueError) as error:
        # in a list of another type, or empty with other sides beyond what numpy counts
        refuse("initializer", f"{name} cannot be read: {shown(str(error))}.")
    if values.size != size:
        refuse("initializer", f"{name} holds {values.size} values and declares {size}.")
    if size and np.issubdtype(values.dtype, np.floating):
        # both let NaN through, and need no memory; attention's masks are made of -inf
        low, high = values.min(), values.max()
        if math.isnan(low) or high == math.inf or (low == -math.inf and not _is_mask(values)):
            refuse(
                "nan",
                f"{name} holds NaN or infinite values.",
                "Submit a checkpoint of before the training diverged.",
            )


def _is_mask(values: np.ndarray) -> bool:
    """Whether values are 0 or minus infinity, or one constant."""
    return values.size == 1 or not np.any((values != 0) & (values != -math.inf))


def is_float(tensor: TensorProto) -> bool:
    """Whether it holds floating point numbers."""
    kind = tensor.DataType
    return tensor.data_type in (kind.FLOAT, kind.DOUBLE, kind.FLOAT16)

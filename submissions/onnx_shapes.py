"""The size of everything a graph will compute, found before any of it is computed.

Nodes are looked at one after the other with onnx's own inference for a single node, so that a bomb
is seen where it would go off and not after a pass over the whole graph: onnx's propagation of
values through a whole graph (``data_prop``) can itself be made to fill the memory. What shapes are
made of, small constant integers, is computed here; all else stays unknown, and a shape that depends
on unknown values is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from .onnx_limits import Limits, refuse, shown
from .onnx_operators import operations, scratch_bytes

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

SMALL = 4096
"""Elements of the largest integer tensor whose values are followed."""

SCALES = 16
"""The same of floating point constants, which are followed because Resize takes factors."""

BOUND = 1 << 31
"""Of followed integers when they are used, so that their products do not overflow 64 bits. The
ends of a Slice may be larger, which means 'to the end'."""

ITEM_BYTES: Mapping[int, int] = MappingProxyType(
    {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8}
)
"""Of the types that are taken, by their number in ``TensorProto.DataType``: float32, (u)int8,
(u)int16, int32, int64, bool, float16, float64, uint32, uint64. No text, no complex numbers, nothing
quantised."""

_INTEGERS = (np.bool_, np.int32, np.int64)


@dataclass(frozen=True)
class Known:
    """What is known of a tensor without computing it."""

    elem_type: int
    """As in ``TensorProto.DataType``."""
    shape: tuple[int, ...]
    value: np.ndarray | None = field(default=None, compare=False)
    """Of small constants."""


@dataclass(frozen=True)
class Measured:
    """A graph's needs at one batch size."""

    outputs: Mapping[str, Known]
    sizes: tuple[int, ...]
    """Elements of every intermediate result, in the order of the nodes."""
    bytes: int
    """Of all intermediate results and scratch memory."""
    operations: int


def measure(
    skeleton: ModelProto, weights: Mapping[str, Known], batch: int, limits: Limits
) -> Measured:
    """Find the shapes of all tensors at a batch size.

    Args:
        skeleton: the model; large initialisers may be missing.
        weights: every initialiser.
        batch: size of the first dimension of the input.
        limits: apply to one volume, so times ``batch``.

    Raises:
        IntakeError: graph-invalid, graph-shape, graph-memory, graph-work.
    """
    given = skeleton.graph.input[0]
    dims = given.type.tensor_type.shape.dim
    shape = (batch, *(d.dim_value for d in dims[1:]))
    walk = _Walk(skeleton, limits, batch)
    walk.tensors |= {**weights, given.name: Known(given.type.tensor_type.elem_type, shape)}
    walk.graph(skeleton.graph)
    outputs = {}
    for output in skeleton.graph.output:
        if output.name not in walk.tensors:
            refuse("invalid", f"Output {shown(output.name)} is computed nowhere.")
        outputs[output.name] = walk.tensors[output.name]
    return Measured(outputs, tuple(walk.sizes), walk.bytes, walk.operations)


class _Walk:
    """The state of one pass over the nodes."""

    def __init__(self, model: ModelProto, limits: Limits, batch: int) -> None:
        self.tensors: dict[str, Known] = {}
        self.sizes: list[int] = []
        self.bytes = self.operations = 0
        self._limits, self._batch = limits, batch
        self._opset = max(o.version for o in model.opset_import)
        self._ir = model.ir_version

    def graph(self, graph: GraphProto) -> None:
        for node in graph.node:
            for name in node.input:
                if name and name not in self.tensors:
                    refuse(
                        "invalid",
                        f"{_called(node)} reads {shown(name)}, which nothing before it computes.",
                    )
            found = self._branches(node) if node.op_type == "If" else self._infer(node)
            inputs = [self.tensors[n].shape if n else () for n in node.input]
            self._count(node, inputs, found)
            self.tensors |= dict(zip([n for n in node.output if n], found, strict=True))

    def _branches(self, node: NodeProto) -> list[Known]:
        """Both branches of an If, which have to promise the same."""
        results = []
        for attribute in sorted(node.attribute, key=lambda a: a.name):
            outside = set(self.tensors)
            self.tensors |= {t.name: known(t) for t in attribute.g.initializer}
            self.graph(attribute.g)
            if missing := [o.name for o in attribute.g.output if o.name not in self.tensors]:
                refuse(
                    "invalid", f"A branch of {_called(node)} never computes {shown(missing[0])}."
                )
            results.append([self.tensors[o.name] for o in attribute.g.output])
            for name in set(self.tensors) - outside:
                del self.tensors[name]
        named = [name for name in node.output if name]
        if len(results) != 2 or results[0] != results[1] or len(results[0]) != len(named):
            refuse(
                "shape",
                f"The branches of {_called(node)} give different shapes or types.",
                "Let both branches give the same shapes, or choose one before the export.",
            )
        return [Known(k.elem_type, k.shape) for k in results[0]]

    def _infer(self, node: NodeProto) -> list[Known]:
        """Types, shapes and, where they are small constant integers, values of a node's outputs."""
        from onnx import checker, defs, helper, numpy_helper, shape_inference

        inputs = [self.tensors[n] if n else None for n in node.input]
        values = {
            n: k.value
            for n, k in zip(node.input, inputs, strict=True)
            if k is not None and k.value is not None
        }
        if node.op_type != "Slice" and any(v.size and np.abs(v).max() > BOUND for v in _of(values)):
            refuse("shape", f"{_called(node)} is given an integer beyond 2^31.")
        try:
            types = shape_inference.infer_node_outputs(
                defs.get_schema(node.op_type, self._opset, ""),
                node,
                {
                    n: helper.make_tensor_type_proto(k.elem_type, k.shape)
                    for n, k in zip(node.input, inputs, strict=True)
                    if k is not None
                },
                {n: numpy_helper.from_array(v) for n, v in values.items()},
                opset_imports=[helper.make_opsetid("", self._opset)],
                ir_version=self._ir,
            )
        except (
            defs.SchemaError,
            checker.ValidationError,
            shape_inference.InferenceError,
            IndexError,
            OverflowError,
            RuntimeError,
            TypeError,
            UnicodeError,
            ValueError,
        ) as error:
            refuse("invalid", f"{_called(node)} breaks the rules of ONNX: {_first(error)}")
        found = []
        for name in filter(None, node.output):
            tensor = types[name].tensor_type if name in types else None
            if (
                tensor is None
                or not tensor.elem_type
                or not tensor.HasField("shape")
                or not all(d.HasField("dim_value") for d in tensor.shape.dim)
            ):
                refuse(
                    "shape",
                    f"The shape of {shown(name)}, an output of {_called(node)}, depends on values "
                    "and not on shapes alone.",
                    "Compute shapes from the input's shape and constants only.",
                )
            shape = tuple(d.dim_value for d in tensor.shape.dim)
            if tensor.elem_type not in ITEM_BYTES:
                refuse(
                    "type",
                    f"{_called(node)} gives {shown(name)} the type {tensor.elem_type}.",
                )
            self._bound(node, name, tensor.elem_type, shape)
            found.append(Known(tensor.elem_type, shape))
        if len(found) == 1:
            value = _folded(node, inputs, found[0])
            found = [Known(found[0].elem_type, found[0].shape, value)]
        return found

    def _bound(self, node: NodeProto, name: str, elem_type: int, shape: tuple[int, ...]) -> None:
        """Refuse a single tensor that is too large, before anything more is done with it."""
        size = math.prod(shape) * ITEM_BYTES[elem_type]
        if min(shape, default=0) < 0 or len(shape) > self._limits.dims:
            refuse("shape", f"{shown(name)}, an output of {_called(node)}, has the shape {shape}.")
        if size > self._limits.tensor_bytes * self._batch:
            refuse(
                "memory",
                f"{_called(node)} makes {size:.3g} bytes at a batch of {self._batch}, of the shape "
                f"{shape}; up to {self._limits.tensor_bytes} per volume are allowed.",
                "Use a smaller grid, or fewer channels at full resolution.",
            )

    def _count(
        self, node: NodeProto, inputs: Sequence[tuple[int, ...]], found: Sequence[Known]
    ) -> None:
        scratch = scratch_bytes(node, inputs)
        self.sizes += [math.prod(k.shape) for k in found]
        self.bytes += scratch + sum(math.prod(k.shape) * ITEM_BYTES[k.elem_type] for k in found)
        self.operations += operations(node, inputs, [k.shape for k in found])
        if scratch > self._limits.tensor_bytes or (
            self.bytes > self._limits.total_bytes * self._batch
        ):
            refuse(
                "memory",
                f"Up to {_called(node)} the graph makes {self.bytes:.3g} bytes at a batch of "
                f"{self._batch}; up to {self._limits.total_bytes} per volume are allowed.",
                "Use a smaller grid, or fewer channels at full resolution.",
            )
        if self.operations > self._limits.operations * self._batch:
            refuse(
                "work",
                f"Up to {_called(node)} the graph takes {self.operations:.3g} multiply-adds at a "
                f"batch of {self._batch}; up to {self._limits.operations} per volume are allowed.",
                "Use a smaller grid or a smaller network.",
            )


def known(tensor: TensorProto) -> Known:
    """What an initialiser tells: its type, shape and, if small, its values."""
    from onnx import numpy_helper

    shape = tuple(tensor.dims)
    kind = tensor.DataType
    most: dict[int, int] = {
        kind.BOOL: SMALL,
        kind.INT32: SMALL,
        kind.INT64: SMALL,
        kind.FLOAT: SCALES,
    }
    small = math.prod(shape) <= most.get(tensor.data_type, -1)
    return Known(tensor.data_type, shape, numpy_helper.to_array(tensor) if small else None)


# --- small constants -------------------------------------------------------------------------


def _folded(node: NodeProto, inputs: Sequence[Known | None], output: Known) -> np.ndarray | None:
    """The value of an output, where it is small, constant and more than a feature; else None."""
    from onnx import helper

    dtype = helper.tensor_dtype_to_np_dtype(output.elem_type)
    scales = dtype == np.float32 and node.op_type == "Constant"
    if math.prod(output.shape) > (SCALES if scales else SMALL if dtype in _INTEGERS else -1):
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type in ("Shape", "Size") and inputs[0] is not None:
        shape = inputs[0].shape
        part = shape[attributes.get("start", 0) : attributes.get("end")]
        value = np.array(part if node.op_type == "Shape" else math.prod(shape))
    else:
        values = [None if k is None else k.value for k in inputs]
        if any(k is not None and k.value is None for k in inputs):
            return None
        try:
            value = _compute(node.op_type, values, attributes, output.shape)
        except (ArithmeticError, IndexError, TypeError, ValueError) as error:
            refuse("invalid", f"{_called(node)} cannot be computed: {_first(error)}")
    if value is None or value.shape != output.shape:
        return None
    return value.astype(dtype)


def _compute(
    op: str, v: Sequence[np.ndarray | None], a: Mapping[str, object], shape: tuple[int, ...]
) -> np.ndarray | None:
    """One operator on integers of at most `SMALL` elements, to an output of at most as many."""
    from onnx import numpy_helper

    given = [x for x in v if x is not None]
    match op:
        case "Constant":
            if "value" in a:
                return numpy_helper.to_array(a["value"])  # pyright: ignore[reportArgumentType]
            return np.array(next(iter(a.values())))
        case "ConstantOfShape":
            fill = numpy_helper.to_array(a["value"]) if "value" in a else np.zeros(1)  # pyright: ignore[reportArgumentType]
            return np.full(shape, fill.reshape(()))
        case "Identity" | "Cast":
            return given[0]
        case "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten":
            return given[0].reshape(shape)
        case "Expand":
            return np.broadcast_to(given[0], shape)
        case "Concat":
            return np.concatenate(given, axis=a["axis"])  # pyright: ignore[reportCallIssue, reportArgumentType]
        case "Gather":
            return np.take(given[0], given[1], axis=a.get("axis", 0))  # pyright: ignore[reportCallIssue, reportArgumentType]
        case "Range":
            return np.arange(*(int(x.item()) for x in given))
        case "Add" | "Sub" | "Mul":
            return {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}[op](*given)
        case "Div" | "Mod" if (given[0] >= 0).all() and (given[1] > 0).all():
            # truncated and floored division agree here
            return given[0] // given[1] if op == "Div" else given[0] % given[1]
        case "Max" | "Min":
            return (np.max if op == "Max" else np.min)(np.broadcast_arrays(*given), axis=0)
        case "Neg" | "Not":
            return -given[0] if op == "Neg" else ~given[0]
        case "Equal" | "Less" | "Greater":
            return {"Equal": np.equal, "Less": np.less, "Greater": np.greater}[op](*given)
        case "Where":
            return np.where(*given)
        case "Slice" if given[0].ndim == 1 and len(given) in (3, 4, 5):
            step = int(given[4].item()) if len(given) == 5 else 1
            return given[0][slice(int(given[1].item()), int(given[2].item()), step)]
        case _:
            return None


def _of(values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return [value.astype(np.float64) for value in values.values()]


def _called(node: NodeProto) -> str:
    return f"{node.op_type} ({shown(node.name or node.output[0] if node.output else '')})"


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return shown(lines[0] if lines else type(error).__name__, 200)

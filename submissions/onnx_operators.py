"""Which operators of ONNX a graph may use, and how much work each of them is.

The list holds what is deterministic, has a fixed number of outputs whose shapes follow from shapes,
and keeps no state: no random numbers, no loops, no sequences, strings or optional values, no
quantised kernels, none that writes at given indices, none whose body is a function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .onnx_limits import EXPORT, Limits, refuse, shown

if TYPE_CHECKING:
    from onnx import AttributeProto, NodeProto

DOMAINS = ("", "ai.onnx")
"""Two spellings of the standard's own domain."""

OPSETS = range(17, 24)
"""From the last that torch's older exporter writes to the newest whose semantics were read here."""

_GROUPS = {
    "element by element": (
        "Abs Add And Cast Ceil Celu Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater "
        "GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log "
        "Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign "
        "Sin Softplus Softsign Sqrt Sub Sum Tan Tanh ThresholdedRelu Where Xor"
    ),
    "linear": "Conv ConvTranspose Einsum Gemm MatMul",
    "normalisation": (
        "BatchNormalization InstanceNormalization LRN LayerNormalization LogSoftmax "
        "LpNormalization Softmax"
    ),
    "pooling": "AveragePool GlobalAveragePool GlobalMaxPool LpPool MaxPool",
    "reduction": (
        "ArgMax ArgMin CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean "
        "ReduceMin ReduceProd ReduceSum ReduceSumSquare TopK"
    ),
    "shape": (
        "Concat Constant ConstantOfShape DepthToSpace Expand Flatten Gather GatherElements "
        "GatherND GridSample Pad Range Reshape Resize Shape Size Slice SpaceToDepth Split Squeeze "
        "Tile Transpose Trilu Unsqueeze"
    ),
    "choice between two graphs": "If",
}

OPERATORS = frozenset(" ".join(_GROUPS.values()).split())

_INSTEAD = (
    "Rewrite that part of the network with operators of the list in submissions/onnx_operators.py, "
    "or ask for the operator to be added."
)

_SCALAR_BOUND = 1 << 31
"""Attributes are axes, sizes and switches: none is larger."""


def check_node(node: NodeProto, limits: Limits) -> None:
    """Check one node by itself: operator, domain, attributes.

    Raises:
        IntakeError: graph-domain, graph-operator, graph-function, graph-attribute, graph-node.
    """
    name = f"{shown(node.op_type)} ({shown(node.name)})"
    if node.domain not in DOMAINS:
        refuse(
            "domain",
            f"Operator {name} is of the domain {shown(node.domain)}; only those of ONNX itself are "
            "run.",
            _INSTEAD,
        )
    if node.op_type not in OPERATORS:
        refuse("operator", f"Operator {name} is not allowed.", _INSTEAD)
    if node.overload or node.device_configurations:
        refuse("node", f"{name} asks for an overload or for devices.")
    if max(len(node.input), len(node.output), len(node.attribute)) > limits.ports:
        refuse("node", f"{name} has more than {limits.ports} inputs, outputs or attributes.")
    for attribute in node.attribute:
        _check_attribute(attribute, name, node.op_type, limits)
    attributes = {a.name: a for a in node.attribute}
    if len(attributes) != len(node.attribute):
        refuse("attribute", f"{name} has an attribute twice.")
    if "training_mode" in attributes and attributes["training_mode"].i:
        refuse(
            "attribute",
            f"{name} is in training mode, in which volumes of a batch influence one another.",
            "Call eval() on the network before it is exported.",
        )


def _check_attribute(attribute: AttributeProto, node: str, op_type: str, limits: Limits) -> None:
    kinds = attribute.AttributeType
    where = f"Attribute {shown(attribute.name)} of {node}"
    if attribute.ref_attr_name:
        refuse("function", f"{where} refers to a function's, and functions are not allowed.")
    branch = attribute.type == kinds.GRAPH and op_type == "If"
    allowed = {kinds.FLOAT, kinds.INT, kinds.STRING, kinds.TENSOR} | {
        *(kinds.FLOATS, kinds.INTS, kinds.STRINGS)
    }
    if not branch and attribute.type not in allowed:
        refuse("attribute", f"{where} is a {kinds.Name(attribute.type)}, which is not allowed.")
    if not branch and (size := attribute.ByteSize()) > limits.attribute_bytes:
        refuse(
            "attribute",
            f"{where} has {size} bytes; up to {limits.attribute_bytes} are allowed.",
            "Make it an initialiser.",
        )
    if any(abs(i) > _SCALAR_BOUND for i in (attribute.i, *attribute.ints)):
        refuse("attribute", f"{where} holds an integer beyond 2^31.", EXPORT)
    if any(math.isnan(f) for f in (attribute.f, *attribute.floats)):
        refuse("nan", f"{where} is NaN.")


# --- work ----------------------------------------------------------------------------------------

Shape = tuple[int, ...]


def operations(node: NodeProto, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    """Multiply-adds of a node, roughly and never far too few.

    Args:
        node: checked.
        inputs: shapes; of an input that is left out, ``()``.
        outputs: shapes.
    """
    given = math.prod(inputs[0]) if inputs else 0
    made = max((math.prod(shape) for shape in outputs), default=0)
    attributes = {a.name: a for a in node.attribute}
    match node.op_type:
        case "Conv":
            return made * math.prod(inputs[1][1:])
        case "ConvTranspose":
            return given * math.prod(inputs[1][1:])
        case "MatMul":
            return made * inputs[0][-1]
        case "Gemm":
            turned = "transA" in attributes and attributes["transA"].i
            return made * inputs[0][0 if turned else 1]
        case "Einsum":
            return made * _contracted(attributes["equation"].s.decode("ascii", "replace"), inputs)
        case "AveragePool" | "MaxPool" | "LpPool":
            return made * math.prod(attributes["kernel_shape"].ints)
        case "LRN":
            return made * attributes["size"].i
        case _:
            return max(made, given)


def scratch_bytes(node: NodeProto, inputs: Sequence[Shape]) -> int:
    """Memory that a kernel takes beside its outputs, where that may be more than they have.

    A transposed convolution is a matrix product, scattered: (channels out x kernel) x voxels in.
    """
    if node.op_type != "ConvTranspose":
        return 0
    return 4 * math.prod(inputs[1][1:]) * math.prod(inputs[0][2:])


def _contracted(equation: str, inputs: Sequence[Shape]) -> int:
    """How many products are summed into one element of an einsum's output."""
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if "." in equation or not right or len(terms) != len(inputs) or len(terms) > 2:
        refuse(
            "operator",
            f"Einsum {shown(equation)}: one or two operands, all their axes by letters, and the "
            "output are expected.",
            "Spell the equation out, two operands at a time.",
        )
    sizes: Mapping[str, int] = {
        letter: size
        for term, shape in zip(terms, inputs, strict=True)
        for letter, size in zip(term, shape, strict=False)
    }
    return math.prod(size for letter, size in sizes.items() if letter not in right)

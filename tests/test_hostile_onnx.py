"""Graphs that are made to run code, to read files, to fill memory or to lie: refused, never run."""

import gzip
import io
import json
import pickle
import resource
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tomoprobe.benchmark.errors import IntakeError
from tomoprobe.submissions.load import load
from tomoprobe.submissions.onnx_encoder import OnnxNetwork
from tomoprobe.submissions.onnx_graph import read, validate
from tomoprobe.submissions.onnx_limits import Limits

FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
GRID = (8, 8, 8)
HUGE = 1 << 40

MEMORY = 512 << 20
"""What refusing a graph may take beyond what the process has already."""


# --- building ------------------------------------------------------------------------------------


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def ints(name, *values, shape=None):
    return helper.make_tensor(name, INT, [len(values)] if shape is None else shape, values)


def value(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


VOLUME = value("volume", ["batch", 1, *GRID])
EMBEDDING = value("embedding", ["batch", 1])
AXES = ints("axes", 2, 3, 4)
POOL = node("ReduceMean", "volume axes", "pooled", keepdims=0)


def model(*nodes, tensors=(), inputs=(VOLUME,), outputs=(EMBEDDING,), opsets=(("", 20),), **more):
    """A graph that pools the volume, runs further nodes and adds ``bomb``, if there is one."""
    made = {name for n in nodes for name in n.output}
    last = node("Add", "pooled bomb", "embedding") if "bomb" in made else None
    last = last or node("Identity", "pooled", "embedding")
    whole = [POOL, *nodes] + ([] if "embedding" in made else [last])
    graph = helper.make_graph(whole, "g", list(inputs), list(outputs), [AXES, *tensors])
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*o) for o in opsets], ir_version=10, **more
    )


def summed(name, axes=None):
    """Nodes that make ``bomb``, a scalar, of something large."""
    return node("ReduceSum", name, "bomb", keepdims=0)


def branch(name, *nodes, tensors=(), shape=()):
    return helper.make_graph(list(nodes), name, [], [value(nodes[-1].output[0], shape)], tensors)


def calm(name):
    return branch(f"g{name}", node("Constant", "", name, value_float=1.0))


def nested(depth):
    """If within If within If ..."""
    inner = calm("c0")
    for k in range(1, depth + 1):
        inner = branch(
            f"b{k}",
            node("If", "yes", f"c{k}", then_branch=inner, else_branch=calm(f"e{k}")),
        )
    return node("If", "yes", "bomb", then_branch=inner, else_branch=calm("last"))


YES = helper.make_tensor("yes", BOOL, [], [True])


def external(location):
    tensor = helper.make_tensor("w", FLOAT, [1], [0.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def raw(name, shape, data=b"", kind=FLOAT):
    return TensorProto(name=name, dims=shape, data_type=kind, raw_data=data)


def changed(made, change):
    change(made)
    return made


def function(domain, name, *nodes):
    return helper.make_function(
        domain, name, ["a"], ["b"], list(nodes), [helper.make_opsetid("", 20)]
    )


def body(**extra):
    return helper.make_graph(
        [node("Identity", "cin", "cout"), node("Identity", "xin", "xout")],
        "body",
        [value("i", [], INT), value("cin", [], BOOL), value("xin", ["batch", 1])],
        [value("cout", [], BOOL), value("xout", ["batch", 1])],
    )


def scan_body():
    return helper.make_graph(
        [node("Add", "s x", "t"), node("Identity", "t", "y")],
        "body",
        [value("s", [1]), value("x", [1])],
        [value("t", [1]), value("y", [1])],
    )


def add_w(tensor, *more):
    """A graph that adds an initialiser ``w`` to its embedding."""
    return model(node("Add", "pooled w", "embedding"), tensors=[tensor, *more])


def bytes_of(made):
    return made if isinstance(made, bytes) else made.SerializeToString()


def varint(n):
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def message(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def russian_doll(depth):
    """Model > graph > node > attribute > graph > ..., by hand."""
    content = b""
    for _ in range(depth):
        content = message(1, message(5, message(6, content)))
    return message(7, content)


def archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
        z.writestr("data.pkl", b"\x80\x04.")
    return file.getvalue()


class Payload:
    """What would leave a file behind if anybody unpickled it."""

    def __reduce__(self):
        return Path.touch, (Path("onnx_was_unpickled"),)


def chain(n):
    """Shapes that double n times: small to state, large to follow."""
    nodes = [node("Shape", "volume", "s0")]
    nodes += [node("Concat", f"s{k} s{k}", f"s{k + 1}", axis=0) for k in range(n)]
    return [*nodes, node("Cast", f"s{n}", "big", to=FLOAT), summed("big")]


VALID = model(
    node("Conv", "volume w b", "c", strides=[2, 2, 2], pads=[1] * 6),
    node("Relu", "c", "map_2"),
    node("If", "yes", "bomb", then_branch=calm("one"), else_branch=calm("two")),
    tensors=[
        helper.make_tensor("w", FLOAT, [2, 1, 3, 3, 3], np.ones(54)),
        helper.make_tensor("b", FLOAT, [2], [0.0, 1.0]),
        YES,
    ],
    outputs=[EMBEDDING, value("map_2", ["batch", 2, 4, 4, 4])],
)

BOMBS = {
    "constant of shape": (
        lambda: model(node("ConstantOfShape", "s", "x"), summed("x"), tensors=[ints("s", HUGE)]),
        "graph-shape",
    ),
    "constant of shape within 32 bits": (
        lambda: model(
            node("ConstantOfShape", "s", "x"), summed("x"), tensors=[ints("s", 1 << 20, 1 << 20)]
        ),
        "graph-memory",
    ),
    "shape by multiplication": (
        lambda: model(
            node("Mul", "a a", "s"),
            node("ConstantOfShape", "s", "x"),
            summed("x"),
            tensors=[ints("a", 1 << 30)],
        ),
        "graph-shape",
    ),
    "expand": (
        lambda: model(
            node("Expand", "volume s", "x"), summed("x"), tensors=[ints("s", 1 << 30, 1, 1, 1, 1)]
        ),
        "graph-memory",
    ),
    "tile": (
        lambda: model(
            node("Tile", "volume s", "x"), summed("x"), tensors=[ints("s", 1, 1 << 25, 1, 1, 1)]
        ),
        "graph-memory",
    ),
    "tile, overflowing": (
        lambda: model(
            node("Tile", "volume s", "x"), summed("x"), tensors=[ints("s", 1, 1 << 62, 1, 1, 1)]
        ),
        "graph-shape",
    ),
    "range": (
        lambda: model(
            node("Range", "a b c", "r"),
            node("Cast", "r", "x", to=FLOAT),
            summed("x"),
            tensors=[ints(n, v, shape=[]) for n, v in zip("abc", (0, 1 << 31, 1), strict=True)],
        ),
        "graph-memory",
    ),
    "range, beyond": (
        lambda: model(
            node("Range", "a b c", "r"),
            node("Cast", "r", "x", to=FLOAT),
            summed("x"),
            tensors=[ints(n, v, shape=[]) for n, v in zip("abc", (0, HUGE, 1), strict=True)],
        ),
        "graph-shape",
    ),
    "resize by factors": (
        lambda: model(
            helper.make_node("Resize", ["volume", "", "f"], ["x"], mode="nearest"),
            summed("x"),
            tensors=[helper.make_tensor("f", FLOAT, [5], [1, 1, 1e3, 1e3, 1e3])],
        ),
        "graph-memory",
    ),
    "resize to sizes": (
        lambda: model(
            helper.make_node("Resize", ["volume", "", "", "s"], ["x"]),
            summed("x"),
            tensors=[ints("s", 1, 1, 1 << 12, 1 << 12, 1 << 12)],
        ),
        ("graph-memory", "graph-batch"),
    ),
    "pad": (
        lambda: model(
            node("Pad", "volume s", "x"), summed("x"), tensors=[ints("s", *[0] * 9, 1 << 30)]
        ),
        "graph-memory",
    ),
    "pad, overflowing": (
        lambda: model(
            node("Pad", "volume s", "x"), summed("x"), tensors=[ints("s", *[0] * 9, (1 << 63) - 1)]
        ),
        "graph-shape",
    ),
    "concat that doubles": (lambda: model(*chain(40)), ("graph-memory", "graph-batch")),
    "outer products": (
        lambda: model(
            node("Reshape", "volume flat", "a"),
            node("Transpose", "a", "b", perm=[1, 0]),
            *(
                n
                for k in range(4)
                for n in (
                    node("MatMul", f"{'b' if k == 0 else f'r{k - 1}'} a", f"m{k}"),
                    node("Reshape", f"m{k} column", f"r{k}"),
                )
            ),
            summed("r3"),
            tensors=[ints("flat", 1, -1), ints("column", -1, 1)],
        ),
        ("graph-memory", "graph-batch", "graph-shape"),
    ),
    "as many as the batch, squared": (
        lambda: model(
            node("Shape", "volume", "n", start=0, end=1),
            node("Concat", "n n", "s", axis=0),
            node("ConstantOfShape", "s", "x"),
            summed("x"),
        ),
        "graph-batch",
    ),
    "in a branch": (
        lambda: model(
            node(
                "If",
                "yes",
                "bomb",
                then_branch=calm("c"),
                else_branch=branch(
                    "b",
                    node("ConstantOfShape", "s", "x"),
                    node("ReduceSum", "x", "y", keepdims=0),
                    tensors=[ints("s", 1 << 20, 1 << 20)],
                ),
            ),
            tensors=[YES],
        ),
        "graph-memory",
    ),
    "convolution with a huge kernel": (
        lambda: model(
            node("Expand", "volume s", "x"),
            node("Conv", "x w", "y", pads=[16] * 6),
            summed("y"),
            tensors=[
                ints("s", 1, 1, 200, 200, 200),
                raw("w", [64, 1, 32, 32, 32], bytes(4 << 21)),
            ],
            inputs=[value("volume", ["batch", 1, 1, 1, 1])],
        ),
        "graph-work",
    ),
    "transposed convolution": (
        lambda: model(
            node("Expand", "volume s", "x"),
            node("ConvTranspose", "x w", "y"),
            summed("y"),
            tensors=[
                ints("s", 1, 1, 128, 128, 128),
                raw("w", [1, 1, 32, 32, 32], bytes(4 << 15)),
            ],
            inputs=[value("volume", ["batch", 1, 1, 1, 1])],
        ),
        "graph-memory",
    ),
    "pooling with a huge kernel": (
        lambda: model(
            node("Expand", "volume s", "x"),
            node("AveragePool", "x", "y", kernel_shape=[199] * 3, pads=[99] * 6),
            summed("y"),
            tensors=[ints("s", 1, 1, 200, 200, 200)],
            inputs=[value("volume", ["batch", 1, 1, 1, 1])],
        ),
        "graph-work",
    ),
    "einsum of three": (
        lambda: model(node("Einsum", "pooled pooled pooled", "bomb", equation="ab,cd,ef->")),
        "graph-operator",
    ),
    "many nodes of two bytes": (lambda: message(7, b"\x0a\x00" * 600_000), "graph-too-many"),
    "a list of small numbers": (
        lambda: message(7, message(5, message(7, b"\x00" * 2_000_000))),
        "graph-too-many",
    ),
    "many nodes": (
        lambda: model(*(node("Relu", "pooled", f"r{k}") for k in range(20_001))),
        "graph-too-many-nodes",
    ),
    "messages in messages": (lambda: russian_doll(60), "graph-too-deep"),
    "branches in branches": (lambda: model(nested(6), tensors=[YES]), "graph-too-deep"),
}

CODE = {
    "loop": (
        lambda: model(
            node("Loop", "n yes pooled", "bomb", body=body()),
            tensors=[ints("n", HUGE, shape=[]), YES],
        ),
        "graph-operator",
    ),
    "scan": (
        lambda: model(
            node("Scan", "z volume", "s1 y1", body=scan_body(), num_scan_inputs=1),
            tensors=[helper.make_tensor("z", FLOAT, [1], [0.0])],
        ),
        "graph-operator",
    ),
    "a function that calls itself": (
        lambda: model(
            node("Again", "pooled", "embedding", domain="me"),
            opsets=[("", 20), ("me", 1)],
            functions=[function("me", "Again", node("Again", "a", "b", domain="me"))],
        ),
        "graph-function",
    ),
    "a function in place of an operator": (
        lambda: model(functions=[function("", "Identity", node("Neg", "a", "b"))]),
        "graph-function",
    ),
    "an attribute of a function": (
        lambda: changed(
            model(node("Elu", "pooled", "x", alpha=1.0)),
            lambda m: setattr(m.graph.node[1].attribute[0], "ref_attr_name", "alpha"),
        ),
        "graph-function",
    ),
    "a custom domain": (
        lambda: model(
            node("Run", "pooled", "embedding", domain="evil"), opsets=[("", 20), ("evil", 1)]
        ),
        "graph-domain",
    ),
    "a custom domain that is not imported": (
        lambda: model(node("Relu", "pooled", "embedding", domain="evil")),
        "graph-domain",
    ),
    "an operator of Microsoft's": (
        lambda: model(
            node("FusedMatMul", "pooled pooled", "bomb", domain="com.microsoft"),
            opsets=[("", 20), ("com.microsoft", 1)],
        ),
        "graph-domain",
    ),
    "an operator of ai.onnx.ml": (
        lambda: model(node("Scaler", "pooled", "embedding", domain="ai.onnx.ml")),
        "graph-domain",
    ),
    "an operator that is none": (
        lambda: model(node("Exec", "pooled", "embedding")),
        "graph-operator",
    ),
    "a domain within a branch": (
        lambda: model(
            node(
                "If",
                "yes",
                "bomb",
                then_branch=calm("c"),
                else_branch=branch("b", node("Relu", "pooled", "y", domain="evil")),
            ),
            tensors=[YES],
        ),
        "graph-domain",
    ),
    "a graph in an attribute of another operator": (
        lambda: model(node("Relu", "pooled", "embedding", body=calm("c"))),
        "graph-attribute",
    ),
    "training steps": (
        lambda: changed(model(), lambda m: m.training_info.add()),
        "graph-training",
    ),
    "batch norm in training mode": (
        lambda: model(
            node("BatchNormalization", "pooled o o o o", "embedding m v", training_mode=1),
            tensors=[helper.make_tensor("o", FLOAT, [1], [1.0])],
        ),
        "graph-attribute",
    ),
    "external data": (lambda: add_w(external("weights.bin")), "graph-external-data"),
    "external data, up and away": (
        lambda: add_w(external("../../../../etc/passwd")),
        "graph-external-data",
    ),
    "external data, absolute": (lambda: add_w(external("/etc/passwd")), "graph-external-data"),
    "external data of a constant": (
        lambda: model(node("Constant", "", "bomb", value=external("/etc/hosts"))),
        "graph-external-data",
    ),
    **{
        f"random: {op}": (
            lambda op=op, more=more, given=given: model(node(op, given, "bomb", **more)),
            "graph-operator",
        )
        for op, given, more in [
            ("RandomNormal", "", {"shape": [1]}),
            ("RandomUniform", "", {"shape": [1]}),
            ("RandomNormalLike", "pooled", {}),
            ("Bernoulli", "pooled", {}),
            ("Multinomial", "pooled", {}),
            ("Dropout", "pooled", {}),
        ]
    },
    **{
        f"kept out: {op}": (lambda op=op: model(node(op, "pooled", "bomb")), "graph-operator")
        for op in ("SequenceConstruct", "Optional", "NonZero", "StringNormalizer", "ImageDecoder")
    },
}

LIES = {
    "another input's name": (
        lambda: changed(model(tensors=[]), lambda m: setattr(m.graph.input[0], "name", "x")),
        "graph-input",
    ),
    "two inputs": (lambda: model(inputs=[VOLUME, value("more", ["batch", 1])]), "graph-input"),
    "no input": (lambda: model(inputs=[]), "graph-input"),
    "an input of float64": (
        lambda: model(inputs=[value("volume", ["batch", 1, *GRID], TensorProto.DOUBLE)]),
        "graph-type",
    ),
    "an open side": (
        lambda: model(inputs=[value("volume", ["batch", 1, 8, "y", 8])]),
        "graph-input",
    ),
    "open channels": (
        lambda: model(inputs=[value("volume", ["batch", "c", *GRID])]),
        "graph-input",
    ),
    "a closed batch": (lambda: model(inputs=[value("volume", [4, 1, *GRID])]), "graph-input"),
    "a 2D input": (lambda: model(inputs=[value("volume", ["batch", 1, 8, 8])]), "graph-input"),
    "an empty grid": (
        lambda: model(inputs=[value("volume", ["batch", 1, 8, 0, 8])]),
        "graph-input",
    ),
    "a negative grid": (
        lambda: model(inputs=[value("volume", ["batch", 1, 8, -8, 8])]),
        "graph-input",
    ),
    "no shape": (lambda: model(inputs=[value("volume", None)]), "graph-input"),
    "an input of large sides": (
        lambda: model(inputs=[value("volume", ["batch", *[1 << 62] * 4])]),
        "graph-input",
    ),
    "an input of many sides": (
        lambda: model(inputs=[value("volume", ["batch", *[1] * 20_000])]),
        "graph-input",
    ),
    "an output of large sides": (
        lambda: model(outputs=[value("embedding", ["batch", 1 << 62])]),
        "graph-output",
    ),
    "a note of many sides": (
        lambda: changed(
            model(), lambda m: m.graph.value_info.append(value("pooled", [1 << 62] * 20_000))
        ),
        "graph-shape",
    ),
    "an output called otherwise": (
        lambda: model(node("Relu", "pooled", "logits"), outputs=[value("logits", ["batch", 1])]),
        "graph-output",
    ),
    "an output besides": (
        lambda: model(outputs=[EMBEDDING, value("pooled", ["batch", 1])]),
        "graph-output",
    ),
    "the same output twice": (lambda: model(outputs=[EMBEDDING, EMBEDDING]), "graph-output"),
    "an output that nothing computes": (
        lambda: model(outputs=[EMBEDDING, value("map_2", ["batch", 1, 4, 4, 4])]),
        "graph-invalid",
    ),
    "a map of another stride": (
        lambda: model(
            node("Relu", "volume", "map_2"),
            outputs=[EMBEDDING, value("map_2", ["batch", 1, *GRID])],
        ),
        "graph-output",
    ),
    "an embedding that is a volume": (
        lambda: model(node("Relu", "volume", "embedding")),
        "graph-output",
    ),
    "an embedding of the whole batch": (
        lambda: model(node("ReduceMean", "pooled first", "embedding"), tensors=[ints("first", 0)]),
        "graph-batch",
    ),
    "an embedding without volumes": (
        lambda: add_w(raw("embedding", [1, 1], bytes(4))),
        ("graph-duplicate-name", "graph-unused"),
    ),
    "integers for an embedding": (
        lambda: model(node("Cast", "pooled", "embedding", to=INT)),
        "graph-output",
    ),
    "a shape that depends on values": (
        lambda: model(
            node("Cast", "pooled", "n", to=INT),
            node("Reshape", "n one", "s"),
            node("ConstantOfShape", "s", "x"),
            summed("x"),
            tensors=[ints("one", 1)],
        ),
        "graph-shape",
    ),
    "a name twice": (
        lambda: model(node("Relu", "pooled", "x"), node("Neg", "pooled", "x")),
        "graph-duplicate-name",
    ),
    "an initialiser twice": (
        lambda: add_w(raw("w", [1], bytes(4)), raw("w", [1], b"\0\0\x80?")),
        "graph-duplicate-name",
    ),
    "an initialiser called as the input": (
        lambda: add_w(raw("w", [1], bytes(4)), raw("volume", [1], bytes(4))),
        "graph-duplicate-name",
    ),
    "a branch that shadows": (
        lambda: model(
            node("If", "yes", "bomb", then_branch=calm("pooled"), else_branch=calm("c")),
            tensors=[YES],
        ),
        "graph-duplicate-name",
    ),
    "an attribute twice": (
        lambda: changed(
            model(node("Elu", "pooled", "x", alpha=1.0)),
            lambda m: m.graph.node[1].attribute.append(helper.make_attribute("alpha", 2.0)),
        ),
        "graph-attribute",
    ),
    "branches of different shapes": (
        lambda: model(
            node(
                "If",
                "yes",
                "bomb",
                then_branch=calm("c"),
                else_branch=branch("b", node("Relu", "pooled", "y"), shape=["batch", 1]),
            ),
            tensors=[YES],
        ),
        "graph-shape",
    ),
    "a circle": (
        lambda: model(node("Relu", "y", "x"), node("Relu", "x", "y")),
        "graph-invalid",
    ),
    "what is computed later": (
        lambda: model(node("Relu", "x", "embedding"), node("Relu", "pooled", "x")),
        "graph-invalid",
    ),
    "no inputs for an operator": (lambda: model(node("Relu", "", "x")), "graph-invalid"),
    "an unknown attribute": (
        lambda: model(node("Relu", "pooled", "x", command=1)),
        "graph-invalid",
    ),
    "a control character": (
        lambda: model(node("Relu", "pooled", "x\x1b[2J")),
        "graph-name",
    ),
    "a long name": (lambda: model(node("Relu", "pooled", "x" * 600)), "graph-name"),
    "an old operator set": (lambda: model(opsets=[("", 9)]), "graph-opset"),
    "a new operator set": (lambda: model(opsets=[("", 999)]), "graph-opset"),
    "two operator sets": (lambda: model(opsets=[("", 20), ("ai.onnx", 19)]), "graph-opset"),
    "no operator set": (lambda: model(opsets=[]), "graph-opset"),
    "no graph": (lambda: changed(model(), lambda m: m.ClearField("graph")), "graph-not-onnx"),
}

TENSORS = {
    "NaN": (lambda: add_w(raw("w", [1], np.float32("nan").tobytes())), "graph-nan"),
    "NaN in a list": (lambda: add_w(helper.make_tensor("w", FLOAT, [1], [np.nan])), "graph-nan"),
    "NaN in half precision": (
        lambda: model(
            node("Cast", "w", "bomb", to=FLOAT),
            tensors=[numpy_helper.from_array(np.array([1, np.nan], np.float16), "w")],
        ),
        "graph-nan",
    ),
    "infinite weights": (lambda: add_w(helper.make_tensor("w", FLOAT, [1], [np.inf])), "graph-nan"),
    "a NaN attribute": (lambda: model(node("Elu", "pooled", "x", alpha=np.nan)), "graph-nan"),
    "a NaN constant": (
        lambda: model(node("Constant", "", "bomb", value=raw("", [], b"\0\0\xc0\x7f"))),
        "graph-nan",
    ),
    "a huge attribute": (
        lambda: model(node("Constant", "", "x", value=raw("", [1 << 20], bytes(4 << 20)))),
        "graph-attribute",
    ),
    "a huge list": (
        lambda: model(node("Constant", "", "x", value_floats=[0.0] * 300_000)),
        "graph-attribute",
    ),
    "text": (
        lambda: add_w(helper.make_tensor("w", TensorProto.STRING, [1], [b"rm -rf"])),
        "graph-type",
    ),
    "a constant text": (
        lambda: model(node("Constant", "", "x", value_string="rm -rf")),
        "graph-type",
    ),
    "complex numbers": (
        lambda: add_w(raw("w", [1], bytes(8), TensorProto.COMPLEX64)),
        "graph-type",
    ),
    "an unknown type": (lambda: add_w(raw("w", [1], bytes(4), 99)), "graph-type"),
    "an unused giant": (
        lambda: model(tensors=[raw("w", [1 << 23], bytes(4 << 23))]),
        "graph-unused",
    ),
    "a giant that is only declared": (
        lambda: add_w(raw("w", [HUGE, HUGE])),
        "graph-initializer",
    ),
    "sides whose product overflows": (
        lambda: add_w(raw("w", [1 << 62, 1 << 2])),
        "graph-initializer",
    ),
    "many sides, one of them 0": (
        lambda: add_w(raw("w", [1 << 62] * 20_000 + [0])),
        "graph-initializer",
    ),
    "more sides than an array has": (lambda: add_w(raw("w", [0] * 65)), "graph-initializer"),
    "empty, and more than numpy counts": (
        lambda: add_w(raw("w", [1 << 31] * 4 + [0])),
        "graph-initializer",
    ),
    "more sides in a constant": (
        lambda: model(node("Constant", "", "bomb", value=raw("", [0] * 65))),
        "graph-initializer",
    ),
    "many sides in a branch": (
        lambda: model(
            node(
                "If",
                "yes",
                "bomb",
                then_branch=calm("c"),
                else_branch=branch(
                    "b",
                    node("ReduceSum", "w", "y", keepdims=0),
                    tensors=[raw("w", [1 << 62] * 20_000)],
                ),
            ),
            tensors=[YES],
        ),
        "graph-initializer",
    ),
    "a negative side": (lambda: add_w(raw("w", [-1], bytes(4))), "graph-initializer"),
    "more data than declared": (lambda: add_w(raw("w", [1], bytes(8))), "graph-initializer"),
    "data twice": (
        lambda: add_w(
            TensorProto(name="w", dims=[1], data_type=FLOAT, raw_data=bytes(4), float_data=[1])
        ),
        "graph-initializer",
    ),
    "data in another type's list": (
        lambda: add_w(TensorProto(name="w", dims=[1], data_type=FLOAT, int64_data=[1])),
        "graph-initializer",
    ),
    "sparse": (
        lambda: changed(model(), lambda m: m.graph.sparse_initializer.add()),
        "graph-initializer",
    ),
    "quantised": (
        lambda: changed(model(), lambda m: m.graph.quantization_annotation.add()),
        "graph-initializer",
    ),
    "weights hidden in a branch": (
        lambda: model(
            node(
                "If",
                "yes",
                "bomb",
                then_branch=calm("c"),
                else_branch=branch(
                    "b",
                    node("ReduceSum", "w", "y", keepdims=0),
                    tensors=[raw("w", [5000], bytes(20_000))],
                ),
            ),
            tensors=[YES],
        ),
        "graph-initializer",
    ),
}

FILES = {
    "empty": (lambda: b"", "graph-"),
    "garbage": (lambda: bytes(range(256)) * 64, "graph-not-onnx"),
    "zeros": (lambda: bytes(1 << 16), "graph-not-onnx"),
    "truncated": (lambda: VALID.SerializeToString()[:-7], "graph-not-onnx"),
    "truncated at the start": (lambda: VALID.SerializeToString()[5:], "graph-not-onnx"),
    "a pickle": (lambda: pickle.dumps(Payload()), "graph-not-onnx"),
    "an archive": (archive, "graph-not-onnx"),
    "an archive at the end": (lambda: VALID.SerializeToString() + archive(), "graph-not-onnx"),
    "an archive in an unknown field": (
        lambda: VALID.SerializeToString() + message(1000, archive()),
        "graph-not-onnx",
    ),
    "compressed": (lambda: gzip.compress(VALID.SerializeToString()), "graph-not-onnx"),
    "a script": (lambda: b"#!/bin/sh\nrm -rf ~\n" + VALID.SerializeToString(), "graph-not-onnx"),
    "a page": (lambda: b"<html><script>alert(1)</script></html>", "graph-not-onnx"),
    "JSON": (lambda: json.dumps({"graph": {"node": []}}).encode(), "graph-not-onnx"),
    "ONNX as text": (lambda: onnx.printer.to_text(VALID).encode(), "graph-not-onnx"),
    "a name that is no text": (
        lambda: VALID.SerializeToString().replace(b"map_2", b"ma\xff\xfe2"),
        "graph-not-onnx",
    ),
    "an endless note": (
        lambda: changed(model(), lambda m: setattr(m, "doc_string", "x" * (2 << 20))),
        "graph-not-onnx",
    ),
    "two graphs": (lambda: VALID.SerializeToString() * 2, "graph-repeated-field"),
    "a length beyond the end": (
        lambda: varint(7 << 3 | 2) + varint((1 << 63) - 1) + b"x",
        "graph-not-onnx",
    ),
    "a number without end": (lambda: b"\x08" + b"\xff" * 64, "graph-not-onnx"),
}

HOSTILE = {
    f"{kind}: {name}": case
    for kind, cases in {
        "bomb": BOMBS,
        "code": CODE,
        "lie": LIES,
        "tensor": TENSORS,
        "file": FILES,
    }.items()
    for name, case in cases.items()
}


# --- refused -------------------------------------------------------------------------------------


@pytest.fixture
def bounded(monkeypatch, tmp_path):
    """No session is ever made, no memory to speak of taken, and not much time."""

    def run(*_, **__):
        raise AssertionError("a hostile graph was handed to onnxruntime")

    monkeypatch.setattr(onnxruntime, "InferenceSession", run)
    monkeypatch.chdir(tmp_path)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    started = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.process_time() - started < 30
    assert not Path("onnx_was_unpickled").exists()


def test_there_are_enough_of_them():
    assert len(HOSTILE) >= 100


def test_a_graph_that_keeps_the_contract_passes(tmp_path):
    (tmp_path / "m.onnx").write_bytes(VALID.SerializeToString())
    facts = validate(tmp_path / "m.onnx")
    assert (facts.channels, facts.shape, facts.width, facts.strides) == (1, GRID, 1, (2,))
    assert facts.parameters == 56
    assert facts.operators["If"] == 1
    (tmp_path / "small.onnx").write_bytes(model().SerializeToString())
    assert validate(tmp_path / "small.onnx").parameters == 0


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused_and_not_run(name, tmp_path, bounded):
    build, codes = HOSTILE[name]
    (tmp_path / "model.onnx").write_bytes(bytes_of(build()))
    with pytest.raises(IntakeError) as refused:
        OnnxNetwork(tmp_path / "model.onnx")
    error = refused.value
    assert error.code.startswith(codes), (error.code, error.message)
    assert error.stage == "check"
    assert error.hint
    assert error.message.isprintable()
    assert len(str(error)) < 1000


def test_a_manifest_cannot_smuggle_a_hostile_graph_in(tmp_path, bounded):
    (tmp_path / "model.onnx").write_bytes(bytes_of(HOSTILE["code: external data, absolute"][0]()))
    (tmp_path / "m.toml").write_text(
        'name = "a"\ntitle = "A"\nauthors = "A"\nlicense = "MIT"\nreadout = "embedding"\n'
        'pretraining = []\n[onnx]\nfile = "model.onnx"\n[grid]\nshape = [8, 8, 8]\n'
        '[intensity.scanner]\ntype = "ZScore"\n'
    )
    with pytest.raises(IntakeError, match="another file"):
        load(str(tmp_path / "m.toml"))


def test_a_file_that_is_too_large_is_not_even_read(tmp_path, bounded):
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(1 << 40)  # sparse: a terabyte on no disk
    with pytest.raises(IntakeError) as refused:
        validate(tmp_path / "m.onnx", Limits(file_bytes=1 << 20))
    assert refused.value.code == "graph-too-large"


@pytest.mark.parametrize("name", ["missing.onnx", "folder.onnx"])
def test_a_disk_that_gives_no_file_is_no_fault_of_a_graph(tmp_path, name):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OSError, match=name):
        validate(tmp_path / name)


def test_a_batch_for_which_a_graph_grows_is_refused_before_it_runs(tmp_path, monkeypatch):
    """Shapes may look at the batch: a bomb can wait for one that was not looked at."""
    waits = model(
        node("Shape", "volume", "n", start=0, end=1),
        node("Equal", "n thirteen", "now"),
        node("Where", "now large small", "s"),
        node("ConstantOfShape", "s", "x"),
        summed("x"),
        tensors=[ints("thirteen", 13), ints("large", 1 << 30), ints("small", 1)],
    )
    (tmp_path / "m.onnx").write_bytes(waits.SerializeToString())
    graph = read(tmp_path / "m.onnx")
    graph.check_batch(12)
    with pytest.raises(IntakeError) as refused:
        graph.check_batch(13)
    assert refused.value.code == "graph-batch"


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_graph_is_refused_or_a_graph(tmp_path_factory, data):
    whole = bytearray(VALID.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(bytes(whole))
    try:
        facts = validate(path)
    except IntakeError as error:
        assert error.code.startswith("graph-")
    else:
        assert facts.width >= 1

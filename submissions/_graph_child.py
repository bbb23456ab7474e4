"""Checks an ONNX graph that a stranger sent, in a process that can do nothing else.

Started as ``python -I -m`` with an empty environment; the file is its standard input. The parser
and the inference of shapes are large and written in C++, so a graph that leads them astray has to
find itself in an empty room: once the libraries are loaded, no file or socket can be opened,
nothing started, and memory and time are short.

The answer is a line `READY`, once the process is closed off, and a line of JSON:
``{"facts": {...}}``, the fields of `GraphFacts`, or ``{"refused": [code, message, hint]}``.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

from onnx import TensorProto, helper

from ..benchmark.errors import IntakeError
from . import _linux
from .onnx_graph import EMBEDDING, INPUT, GraphFacts, read_bytes

MODULE = "tomoprobe.submissions._graph_child"
READY = b"ready"

MEMORY = 1 << 30
"""Bytes beyond what the libraries and copies of the file take. Half a million items, the most that
`Limits` allows, are some 100 MB of objects; a chain of 19 000 nodes took 47 MB."""
COPIES = 5
"""Of the file. A mask of one large float16 tensor, compared with 0 and minus infinity, took four:
its bytes, twice what is parsed of them, and the comparisons."""
SECONDS = 120
"""Of a processor. A chain of 19 000 nodes, nearly the most that `Limits` allows, took 3."""


def main() -> None:
    """Answer once."""
    _warm_up()
    _linux.close_off(COPIES * os.fstat(0).st_size + MEMORY, SECONDS)
    out = sys.stdout.buffer
    out.write(READY + b"\n")
    out.flush()
    out.write(json.dumps(_answer(sys.stdin.buffer.read())).encode() + b"\n")


def _answer(data: bytes) -> dict[str, object]:
    try:
        facts: GraphFacts = read_bytes(data).facts
    except IntakeError as error:
        return {"refused": [error.code, error.message, error.hint]}
    return {"facts": asdict(facts)}


def _warm_up() -> None:
    """Check a small graph: what is loaded on first use cannot be any more later."""
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["axes"], value_ints=[2, 3, 4]),
            helper.make_node("ReduceMean", [INPUT, "axes"], [EMBEDDING], keepdims=0),
        ],
        "g",
        [helper.make_tensor_value_info(INPUT, kind, ["batch", 1, 2, 2, 2])],
        [helper.make_tensor_value_info(EMBEDDING, kind, ["batch", 1])],
    )
    opsets = [helper.make_opsetid("", 20)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if "facts" not in _answer(made.SerializeToString()) or "refused" not in _answer(b""):
        raise SystemExit("the check of graphs does not work here")


if __name__ == "__main__":
    main()

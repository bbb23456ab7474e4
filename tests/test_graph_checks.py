"""A graph is checked in a process of its own: same findings, and nobody is harmed."""

import subprocess
import sys

import pytest

from tomoprobe.benchmark.errors import IntakeError, IsolationError
from tomoprobe.submissions import graph_checks, onnx_graph

from .test_hostile_onnx import BOMBS, TENSORS, VALID, bytes_of

LIMITED = """
import resource, sys
from tomoprobe.submissions import _graph_child as child
child.MEMORY, child.SECONDS = {memory}, {seconds}
def read_bytes(data):
    {body}
read, warm_up = child.read_bytes, child._warm_up
def warmed():
    warm_up()
    child.read_bytes = read_bytes
child._warm_up = warmed
child.main()
"""


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(VALID.SerializeToString())
    return path


@pytest.fixture
def child(monkeypatch):
    """Has another body read the graph in the child, as a broken parser would."""

    def replaced(body, memory=1 << 28, seconds=2):
        code = LIMITED.format(body=body, memory=memory, seconds=seconds)
        run = subprocess.run

        def other(command, **more):
            return run([sys.executable, "-I", "-c", code], **more)

        monkeypatch.setattr(graph_checks.subprocess, "run", other)

    return replaced


def test_the_facts_are_those_of_a_check_in_this_process(graph):
    assert graph_checks.validate(graph) == onnx_graph.validate(graph)


@pytest.mark.parametrize(
    "build",
    [
        BOMBS["tile"][0],
        BOMBS["many nodes of two bytes"][0],
        TENSORS["NaN"][0],
        TENSORS["text"][0],
        lambda: b"PK",
    ],
)
def test_a_refusal_is_that_of_a_check_in_this_process(build, graph):
    graph.write_bytes(bytes_of(build()))
    with pytest.raises(IntakeError) as here:
        onnx_graph.validate(graph)
    with pytest.raises(IntakeError) as there:
        graph_checks.validate(graph)
    found, wanted = there.value, here.value
    assert (found.code, found.message, found.hint) == (wanted.code, wanted.message, wanted.hint)
    assert found.stage == "check"


@pytest.mark.parametrize(
    "body",
    [
        "import ctypes; ctypes.string_at(1)",
        "while True: pass",
        "bytes(1 << 30)",
        "open('/etc/hostname').read()",
        "import socket; socket.socket()",
        "raise RecursionError",
    ],
)
def test_a_graph_that_breaks_the_parser_is_refused(body, graph, child):
    child(body)
    with pytest.raises(IntakeError) as refused:
        graph_checks.validate(graph)
    assert (refused.value.code, refused.value.stage) == ("graph-check-stopped", "check")


def test_a_check_that_takes_too_long_is_stopped(graph, child, monkeypatch):
    child("import time; time.sleep(60)")
    monkeypatch.setattr(graph_checks, "SECONDS", 4.0)
    with pytest.raises(IntakeError) as refused:
        graph_checks.validate(graph)
    assert refused.value.code == "graph-check-stopped"


def test_a_check_that_does_not_start_is_the_machines_fault(graph, monkeypatch):
    monkeypatch.setattr(graph_checks, "MODULE", "tomoprobe.submissions.no_such_module")
    with pytest.raises(IsolationError, match="no_such_module"):
        graph_checks.validate(graph)

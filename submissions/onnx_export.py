"""From a network in Python to an ONNX graph that will be taken, on the machine of its author."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..benchmark.errors import EncoderError
from .onnx_encoder import OnnxNetwork
from .onnx_graph import EMBEDDING, INPUT, MAP, GraphFacts
from .onnx_limits import LIMITS, Limits, require, shown
from .onnx_messages import graphs
from .python_objects import modules_of, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import ModelProto

OPSET = 20
"""The first with resampling of volumes (GridSample in 3D); onnxruntime has it since 1.17."""

TOLERANCE = 1e-4
"""Largest difference to the network in Python, as a share of the output's largest value."""

_TRACED, _COMPARED = 2, 3
"""Batch sizes of the example that is traced, and of the one that is compared: not the same, so
that a graph that remembers its example is found out."""


@dataclass(frozen=True)
class Exported:
    """A graph that was written."""

    path: Path
    facts: GraphFacts
    difference: float
    """Largest difference to the network in Python, as a share of the output's largest value."""


def export(
    spec_or_module: str | object,
    shape: tuple[int, int, int],
    channels: int,
    out: Path,
    limits: Limits = LIMITS,
) -> Exported:
    """Write a network as an ONNX graph, check it as the server will, and compare it with Python.

    Args:
        spec_or_module: ``package.module:factory``, or what such a factory returns: an object with
            ``embed(x)`` and perhaps ``maps(x)``, or an ``nn.Module`` whose forward gives the
            embedding (B, F) or a mapping of ``embedding`` and ``map_<stride>``. It is moved to
            the CPU, in float32, and run in eval mode.
        shape: voxels of the grid.
        channels: of the input, the region's included.
        out: the file, ending in ``.onnx``; written only when all is well.
        limits: of the graph.

    Raises:
        UnknownNameError: the spec names nothing.
        EncoderError: it is no encoder, cannot be exported (the operator is named), or the graph
            gives something else than Python does; or onnx, onnxscript or onnxruntime is missing.
        IntakeError: the graph would be refused; the operator is named.
    """
    require("onnx", "onnxscript", "onnxruntime")
    if out.suffix != ".onnx":
        raise EncoderError(f"'{out}' has to end in '.onnx'.")
    encoder = _made(spec_or_module)
    generator = torch.Generator().manual_seed(0)
    volumes = torch.rand((_COMPARED, channels, *shape), generator=generator)
    network = _Outputs(encoder)
    with _frozen(network), torch.no_grad():
        expected = network.named(volumes)
        network.names = list(expected)
        _check(expected, shape)
        model = _traced(network, volumes[:_TRACED])
    _strip(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    try:
        part.write_bytes(model.SerializeToString())
        graph = OnnxNetwork(part, limits=limits)
        difference = _compare(expected, graph, volumes)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return Exported(out, graph.facts, difference)


class _Outputs(nn.Module):
    """An encoder as one module with a fixed order of outputs."""

    def __init__(self, encoder: object) -> None:
        super().__init__()
        self.parts = modules_of(encoder)  # so that parameters are found
        self.names: list[str] = []
        self._encoder = [encoder]  # in a list, or a module would be registered twice

    def named(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, C, X, Y, Z) -> the outputs by name, embedding first and maps fine to coarse."""
        encoder: Any = self._encoder[0]
        if not hasattr(encoder, "embed"):
            found = encoder(x)
            found = dict(found) if isinstance(found, Mapping) else {EMBEDDING: found}
        else:
            maps = encoder.maps(x) if _has_maps(encoder) else []
            found = {f"map_{_stride(m, x)}": m for m in maps}
            if len(found) != len(maps):
                raise EncoderError("Two maps have the same stride. Return one for each.")
            found[EMBEDDING] = encoder.embed(x)
        return dict(sorted(found.items(), key=lambda item: _place(str(item[0]))))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.named(x)
        return tuple(found[name] for name in self.names)


def _place(name: str) -> tuple[int, str]:
    stride = MAP.fullmatch(name)
    return (int(stride[1]) if stride else 0, name)


def _has_maps(encoder: Any) -> bool:
    """Whether it is to be asked for maps: a card without strides says no."""
    card = getattr(encoder, "card", None)
    return callable(getattr(encoder, "maps", None)) and (card is None or bool(card.strides))


def _stride(found: torch.Tensor, x: torch.Tensor) -> int:
    """Voxels of the grid per voxel of a map: the smallest number that explains all three sides."""
    grid, side = tuple(x.shape[2:]), tuple(found.shape[2:])
    if len(side) == 3 and min(side) > 0:
        for stride in range(1, max(grid) + 1):
            if tuple(math.ceil(n / stride) for n in grid) == side:
                return stride
    raise EncoderError(
        f"A map of shape {tuple(found.shape)} is of no whole stride on the grid {grid}: (B, C, "
        "ceil(X / stride), ceil(Y / stride), ceil(Z / stride)) is expected. Resample it in maps()."
    )


def _made(spec_or_module: str | object) -> object:
    """The encoder, a factory called."""
    target = resolve(spec_or_module) if isinstance(spec_or_module, str) else spec_or_module
    is_encoder = isinstance(target, nn.Module) or hasattr(target, "embed")
    if isinstance(target, type) or (callable(target) and not is_encoder):
        target = target()
    if not (isinstance(target, nn.Module) or callable(getattr(target, "embed", None))):
        raise EncoderError(
            f"{type(target).__name__} is no encoder. An object with embed(x), or an nn.Module, is "
            "expected."
        )
    return target


def _check(found: Mapping[str, object], shape: tuple[int, int, int]) -> None:
    """What only Python's side can say clearly; all else is said of the graph."""
    names = [name for name in found if name != EMBEDDING and not MAP.fullmatch(name)]
    embedding = found.get(EMBEDDING)
    if names or not isinstance(embedding, torch.Tensor) or embedding.ndim != 2:
        raise EncoderError(
            f"On a grid of {shape} the network gives {_described(found)}; an embedding (B, F), and "
            "maps called map_<stride>, are expected. Pool it, or give it embed(x) and maps(x)."
        )
    if len(embedding) != _COMPARED:
        raise EncoderError(
            f"{_COMPARED} volumes give {len(embedding)} embeddings. Give one row for each."
        )


def _described(found: Mapping[str, object]) -> str:
    return ", ".join(
        f"{name} {tuple(v.shape)}" if isinstance(v, torch.Tensor) else f"{name}: {type(v).__name__}"
        for name, v in found.items()
    )


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """On the CPU in float32, and for the time being in eval mode."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval().to("cpu", torch.float32)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


_ONE_BATCH = (
    "The network is written for one batch size only, and the batch has to stay open. Look for "
    "shapes that become Python integers, and for loops over the batch."
)


def _traced(network: _Outputs, example: torch.Tensor) -> ModelProto:
    """The graph, as torch writes it."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)  # torch logs what it raises, and every library it misses
    try:
        # it prints the whole graph that it gives up on
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own code
            program = torch.onnx.export(
                network,
                (example,),
                input_names=[INPUT],
                output_names=network.names,
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # whatever torch, or the network under tracing, can raise
        raise EncoderError(_explained(error)) from error
    finally:
        logging.disable(level)
    if program is None:
        raise EncoderError("torch gave no graph. Install a newer torch.")
    model = program.model_proto
    if any(v.type.tensor_type.shape.dim[0].HasField("dim_value") for v in model.graph.input):
        raise EncoderError(_ONE_BATCH)
    return model


def _explained(error: BaseException) -> str:
    """Why torch cannot export a network, with the operator, in two lines instead of a hundred."""
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    whole = "\n".join(texts)
    operator = re.search(r"No ONNX function found for .*?op='([\w.:]+)'", whole)
    if operator:
        return (
            f"The network cannot be exported: ONNX knows no operator '{operator[1]}'. Replace it "
            "by operators that torch.onnx knows."
        )
    if re.search(r"specializ|ConstraintViolation|marked batch as dynamic", whole):
        return _ONE_BATCH
    if re.search(r"data-dependent|GuardOnDataDependent|Dynamic control flow", whole):
        return (
            "The network decides by the values of its input, which no graph can. Replace `if` and "
            "`.item()` on tensors by torch.where."
        )
    lines = [line.strip() for line in texts[-1].splitlines() if line.strip()]
    return (
        f"The network cannot be exported. torch says: {shown(' '.join(lines), 300)}. Replace that "
        "part by operators that torch.onnx knows."
    )


def _strip(model: ModelProto) -> None:
    """Remove what is no part of the network: notes with paths of this machine, unread weights."""
    from onnx import inliner

    if model.functions:
        model.CopyFrom(inliner.inline_local_functions(model))
    for opset in list(model.opset_import):
        if opset.domain not in {node.domain for node in model.graph.node} | {""}:
            model.opset_import.remove(opset)
    model.doc_string = ""
    del model.metadata_props[:]
    read: set[str] = set()
    for graph in graphs(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:], graph.value_info[:]
        for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
            part.doc_string = ""
            del part.metadata_props[:]
        read.update(name for node in graph.node for name in node.input)
        read.update(output.name for output in graph.output)
    for tensor in list(model.graph.initializer):
        if tensor.name not in read:
            model.graph.initializer.remove(tensor)


def _compare(
    expected: Mapping[str, torch.Tensor], graph: OnnxNetwork, volumes: torch.Tensor
) -> float:
    """Largest difference between Python and the graph, which has to be small."""
    maps: Callable[[torch.Tensor], Sequence[torch.Tensor]] = graph.maps
    found = [graph.embed(volumes), *maps(volumes)]
    worst = 0.0
    for (name, wanted), given in zip(expected.items(), found, strict=True):
        scale = float(wanted.abs().max()) or 1.0
        difference = float((wanted - given).abs().max()) / scale
        if not difference <= TOLERANCE:  # NaN is no agreement
            raise EncoderError(
                f"'{name}' of the graph differs from Python's by {difference:.2g} of its largest "
                f"value; {TOLERANCE:g} is allowed. Look for random numbers, for state that changes "
                "between calls, and for values that overflow."
            )
        worst = max(worst, difference)
    turned = graph.embed(volumes.flip(0)).flip(0)
    if not torch.allclose(found[0], turned, rtol=TOLERANCE, atol=TOLERANCE * float(found[0].std())):
        raise EncoderError(
            "The embedding of a volume depends on its neighbours in the batch. Embed every volume "
            "by itself: look for reductions over dimension 0."
        )
    return worst

"""A network as an ONNX graph: checked, then run by onnxruntime, without any code of its authors."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..benchmark.errors import EncoderError, InstallationError
from .onnx_graph import EMBEDDING, INPUT, GraphFacts, read
from .onnx_limits import LIMITS, Limits, refuse, require, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

_OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc", "out of memory", "CUDA failure 2")
"""What onnxruntime says when memory runs out; its error has no type of its own."""


class OnnxNetwork:
    """An ONNX graph that keeps the contract of `onnx_graph`, ready to run. Frozen by nature."""

    def __init__(
        self,
        path: Path,
        device: str = "cpu",
        *,
        threads: int | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        """Check the graph and hand it to onnxruntime.

        Args:
            path: of the file.
            device: as torch spells it.
            threads: of a CPU; None for as many as torch uses.
            limits: of the graph.

        Raises:
            IntakeError: the graph is refused, or onnxruntime cannot run it.
            InstallationError: onnx or onnxruntime is not installed, has no such device, or cannot
                use it.
        """
        require("onnx", "onnxruntime")
        self._graph = read(path, limits)
        self._device = torch.device(device)
        self._session = _session(self._graph.data, self._device, threads)
        self._checked = {1}

    @property
    def facts(self) -> GraphFacts:
        """What the graph says about itself."""
        return self._graph.facts

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) float32 -> (B, F) on the encoder's device."""
        return self._run([EMBEDDING], x)[0]

    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """(B, C, X, Y, Z) float32 -> maps (B, C_i, x_i, y_i, z_i), fine to coarse."""
        names = [f"map_{stride}" for stride in self.facts.strides]
        return self._run(names, x) if names else []  # no names would mean all outputs

    def _run(self, names: list[str], x: torch.Tensor) -> list[torch.Tensor]:
        wanted = (self.facts.channels, *self.facts.shape)
        if tuple(x.shape[1:]) != wanted:
            raise EncoderError(
                f"An array of shape {tuple(x.shape)} is given to a graph that takes (batch, "
                f"{', '.join(map(str, wanted))}). Correct grid and channels in the manifest."
            )
        if len(x) not in self._checked:
            self._graph.check_batch(len(x))
            self._checked.add(len(x))
        array = x.detach().to("cpu", torch.float32).contiguous().numpy()
        try:
            found = self._session.run(names, {INPUT: array})
        except Exception as error:  # onnxruntime's errors share no base but this
            raise self._failed(error, len(x)) from error
        return [torch.from_numpy(values).to(self._device) for values in found]

    def _failed(self, error: Exception, batch: int) -> Exception:
        text = str(error)
        if any(sign in text for sign in _OUT_OF_MEMORY):
            if self._device.type == "cuda":
                # the batch is halved for this one, whoever ran out of memory
                return torch.cuda.OutOfMemoryError(shown(text, 200))
            return MemoryError(f"onnxruntime ran out of memory with a batch of {batch}.")
        return EncoderError(
            f"onnxruntime fails on a batch of {batch}: {shown(text, 300)}. Run the graph where it "
            "was made, on the same shape, and export it again."
        )


def _session(data: bytes, device: torch.device, threads: int | None) -> Any:
    """A session whose results depend on graph, input and device alone."""
    # without types: its names are found at run time only
    onnxruntime: Any = import_module("onnxruntime")
    providers = _providers(device, onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Without the levels above, whose fusions and layouts are chosen by the processor.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.use_deterministic_compute = True
    # Planned for one batch size and kept for ever: the batch changes here.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4  # what matters is raised
    # Waiting threads sleep: other jobs run on the same processors.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(data, options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no base but this
        refuse("not-runnable", f"onnxruntime cannot run the graph: {shown(str(error), 300)}.")
    # a provider that cannot start, for want of a library or a driver, is left out without an error
    if device.type == "cuda" and session.get_providers()[:1] != ["CUDAExecutionProvider"]:
        raise InstallationError(
            f"onnxruntime cannot use '{device}' and would run on {session.get_providers()}. "
            "Install the CUDA and cuDNN that this onnxruntime-gpu was built for, or use --device "
            "cpu."
        )
    return session


def _providers(device: torch.device, available: Sequence[str]) -> list[Any]:
    """How onnxruntime calls a device, with what makes its results repeatable."""
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    if device.type != "cuda" or "CUDAExecutionProvider" not in available:
        raise InstallationError(
            f"onnxruntime has no '{device.type}' here. Use --device cpu, or install "
            "onnxruntime-gpu in place of onnxruntime."
        )
    cuda = {
        "device_id": device.index or 0,
        "cudnn_conv_algo_search": "HEURISTIC",  # not by timing, which differs from run to run
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
    }
    return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]

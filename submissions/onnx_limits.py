"""How much an ONNX graph may hold and ask for, and how one that does not is refused."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import NoReturn

from ..benchmark.errors import InstallationError, IntakeError

EXPORT = "Write the graph with `tomoprobe pack --onnx package.module:factory`."


@dataclass(frozen=True)
class Limits:
    """Of one graph. What it computes is counted for one volume and may grow with the batch."""

    file_bytes: int = (1 << 31) - 1
    """What protobuf can hold: half a billion float32 parameters."""
    items: int = 500_000
    """Fields and list entries of the file, but for raw bytes: what parsing makes objects of. Some
    200 bytes each, so 100 MB. MONAI's SwinUNETR has 40 thousand."""
    nesting: int = 24
    """Messages within messages; four subgraphs deep. protobuf itself stops at 100."""
    subgraphs: int = 4
    """If within If."""
    nodes: int = 20_000
    ports: int = 1024
    """Inputs, and outputs, of one node."""
    attribute_bytes: int = 1 << 20
    """Of one attribute: tables belong into initialisers."""
    text: int = 1 << 20
    """Bytes of one name or note in the file."""
    name: int = 512
    """Characters of a tensor's name."""
    dims: int = 8
    tensor_bytes: int = 1 << 32
    """Of one intermediate result. 64 channels at 128x128x128 voxels are 2^29."""
    total_bytes: int = 1 << 37
    """Of all intermediate results together, as if none were ever freed: DynUNet as nnU-Net plans it
    for 128x128x128 voxels comes to 2^34."""
    operations: int = 10**13
    """Multiply-adds: ten times those of a 3D U-Net with 32 channels at 128x128x128 voxels; a
    minute or two on two CPU cores."""


LIMITS = Limits()


def refuse(code: str, message: str, hint: str = EXPORT) -> NoReturn:
    """Raise the IntakeError of a graph; codes begin with ``graph-``."""
    raise IntakeError(f"graph-{code}", message, stage="check", hint=hint)


def shown(name: str, length: int = 80) -> str:
    """A name out of the file as it may stand in a message: printable, quoted and short."""
    short = name if len(name) <= length else name[: length - 3] + "..."
    return ascii(short)


def require(*modules: str) -> None:
    """Check that optional modules are installed.

    Raises:
        InstallationError: one is not.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise InstallationError(
            f"ONNX graphs need {' and '.join(missing)}, not installed here. Install them: pip "
            "install 'tomoprobe[onnx]'."
        )

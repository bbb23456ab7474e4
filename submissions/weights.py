"""Weights in and their identity out. Only safetensors is read: data that cannot hold code."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..benchmark.errors import ManifestError

logger = logging.getLogger(__name__)

PREFIXES = ("module.", "_orig_mod.", "backbone.", "encoder.", "model.", "teacher.", "student.")
"""What wrappers put before a network's own keys: DataParallel, ``torch.compile``, and the training
code of self-supervision; in any order and number."""

_COUNTER = "num_batches_tracked"
"""Batch norm counts training batches in it; features never depend on it, and old files lack it."""

_SHOWN = 5


def load_into(network: nn.Module, path: Path, unused: Iterable[str] = ()) -> None:
    """Fill a network from a safetensors file; all of it or nothing.

    Every tensor of the network has to be in the file, with the same shape; `PREFIXES` may stand
    before its key. Where both of a self-distilled pair fit, the teacher is taken, as the features
    of DINO are (Caron et al., arXiv 2104.14294, section 3.1). Tensors in the file that the network
    has not are refused, but for those that match ``unused``. Floating point tensors of any
    precision are taken as float32; integer tensors are part of the network's construction and have
    to be equal.

    Args:
        network: changed in place.
        path: of the file.
        unused: regular expressions, matched at the start of a key, of tensors that may be ignored.

    Raises:
        ManifestError: unreadable or truncated file, missing, unexpected or twice given keys, a
            wrong shape or type, or a value that is not finite.
    """
    wanted = {k: v for k, v in network.state_dict().items()}
    ignore = re.compile("|".join(unused) or r"(?!)")
    tensors = _read(path)
    keys = _match(tensors, wanted, ignore, path)
    ignored = sorted(set(tensors) - set(keys.values()))
    if ignored:
        logger.info(
            "%s: %d tensors are not used by this encoder: %s", path, len(ignored), _few(ignored)
        )
    filled = {name: _fitting(name, tensors[key], wanted[name], path) for name, key in keys.items()}
    filled |= {name: wanted[name] for name in wanted if name not in filled}  # counters
    network.load_state_dict(filled, strict=True)


def match(
    names: Iterable[str], wanted: Collection[str], unused: Iterable[str], path: Path
) -> dict[str, str]:
    """The key in a file of each of a network's keys, as `load_into` pairs them.

    Args:
        names: of the tensors in the file.
        wanted: keys of the network's state dict.
        unused: see `load_into`.
        path: of the file, for the message.

    Raises:
        ManifestError: missing, unexpected or twice given keys.
    """
    return _match(list(names), wanted, re.compile("|".join(unused) or r"(?!)"), path)


def state_sha(modules: nn.Module) -> str | None:
    """sha256 of all tensors a network runs on, in hex; None where it has none.

    Independent of the file they came from, of its metadata and of the order of keys.
    """
    state = {k: v for k, v in modules.state_dict().items() if not k.endswith(_COUNTER)}
    if not state:
        return None
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        head = f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0"
        digest.update(head.encode())
        # A view as bytes holds for every dtype, those included that numpy does not know.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha(path: Path) -> str:
    """sha256 of a file, in hex.

    Raises:
        ManifestError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ManifestError(
            f"'{path}' cannot be read ({error.strerror}). Check the path, or copy the file there."
        ) from error


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ManifestError(
            f"There is no weights file '{path}'. Put it there, or name another one."
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ManifestError(
            f"'{path}' is not a whole safetensors file ({error}). It may be truncated: compare its "
            "size; or it may be a pickle (.pt, .pth, .ckpt), which is never opened here: convert "
            "it with safetensors.torch.save_file on the machine where it was made."
        ) from error


def _match(
    tensors: Collection[str],
    wanted: Collection[str],
    ignore: re.Pattern[str],
    path: Path,
) -> dict[str, str]:
    """The key in the file of each of the network's keys, wrappers' prefixes removed."""
    found: dict[str, str] = {}
    unexpected: list[str] = []
    stripped = {key: bare(key, wanted, ignore) for key in sorted(tensors)}
    taught = any(name in wanted and _from(key, name, "teacher.") for key, name in stripped.items())
    for key, name in stripped.items():
        if taught and _from(key, name, "student."):
            continue  # not even where the teacher lacks something: that would mix two networks
        if name in found:
            raise ManifestError(
                f"'{path}' holds '{name}' twice, as '{found[name]}' and as '{key}'. Keep one."
            )
        if name in wanted:
            found[name] = key
        elif not ignore.match(name):
            unexpected.append(key)
    missing = [n for n in wanted if n not in found and not n.endswith(_COUNTER)]
    if missing or unexpected:
        parts = [
            f"{len(names)} {what} ({_few(names)})"
            for what, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise ManifestError(
            f"'{path}' does not fit the network: of its {len(wanted)} tensors, "
            f"{' and '.join(parts)}. Check the architecture and its arguments."
        )
    return found


def bare(key: str, wanted: Collection[str], ignore: re.Pattern[str]) -> str:
    """A key without its wrappers' prefixes, or as far as they go."""
    # A network may itself have a part called 'backbone': what fits as it is stays as it is.
    while key not in wanted and not ignore.match(key):
        prefix = next((p for p in PREFIXES if key.startswith(p)), None)
        if prefix is None:
            break
        key = key.removeprefix(prefix)
    return key


def _from(key: str, name: str, wrapper: str) -> bool:
    return wrapper in key.removesuffix(name)


def _fitting(name: str, given: torch.Tensor, wanted: torch.Tensor, path: Path) -> torch.Tensor:
    """The tensor as the network wants it."""
    if given.shape != wanted.shape:
        raise ManifestError(
            f"'{path}': '{name}' has the shape {tuple(given.shape)}, the network with these "
            f"arguments wants {tuple(wanted.shape)}. Correct the arguments."
        )
    if given.is_floating_point() != wanted.is_floating_point() or given.is_complex():
        raise ManifestError(
            f"'{path}': '{name}' is {given.dtype}, the network wants {wanted.dtype}. Export the "
            "weights in floating point, unquantised."
        )
    if not given.is_floating_point():
        if not name.endswith(_COUNTER) and not torch.equal(given.to(wanted.dtype), wanted):
            raise ManifestError(
                f"'{path}': '{name}' is a table of integers that the arguments determine, and it "
                "differs from theirs. Correct the arguments."
            )
        return given.to(wanted.dtype)
    value = given.to(torch.float32)
    if not bool(torch.isfinite(value).all()):
        raise ManifestError(
            f"'{path}': '{name}' holds NaN or infinite values. Submit a checkpoint of before the "
            "training diverged."
        )
    return value


def _few(names: list[str]) -> str:
    rest = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + rest

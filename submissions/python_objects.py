"""Encoders that are written in Python, on this machine: found by name, and told apart."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..benchmark.errors import UnknownNameError
from .manifest import did_you_mean


def resolve(spec: str) -> Any:
    """The object behind ``package.module:name``, from the environment or the current folder."""
    module_name, _, name = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        # Last, so that a file of the current folder never replaces an installed package.
        sys.path.append(here)
        importlib.invalidate_caches()
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise UnknownNameError(
            f"'{module_name}' is no name of a module. An encoder in Python is written "
            "package.module:factory."
        )
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; something it imports is not
        raise UnknownNameError(
            f"No module is called '{module_name}', neither installed nor in this folder. An "
            "encoder in Python is written package.module:factory."
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            known = [n for n in dir(found) if not n.startswith("_")]
            raise UnknownNameError(
                f"Module '{module_name}' ({getattr(found, '__file__', 'built in')}) has no "
                f"'{part}'.{did_you_mean(part, known)}"
            )
        found = getattr(found, part)
    return found


def modules_of(encoder: object) -> nn.Module | None:
    """Every network of an object: itself, or those among its attributes, however nested."""
    if isinstance(encoder, nn.Module):
        return encoder
    found = [part for part in _parts(encoder) if isinstance(part, nn.Module)]
    return nn.ModuleList(found) if found else None


def values_sha(encoder: object) -> str | None:
    """sha256 of the arrays and tensors an object holds outside of networks; None without any."""
    digest = hashlib.sha256()
    found = False
    for part in _parts(encoder):
        if isinstance(part, torch.Tensor):
            part = part.detach().cpu().numpy()
        if isinstance(part, np.ndarray):
            found = True
            digest.update(f"{part.dtype}{part.shape}".encode() + part.tobytes())
    return digest.hexdigest() if found else None


def source_sha(*targets: object) -> str | None:
    """sha256 of the files in which these objects, their classes and bases are written.

    What is installed is left out: its release is named in every row.
    """
    files = set()
    for target in targets:
        is_code = isinstance(target, type) or inspect.isfunction(target)
        code: list[Any] = [target] if is_code else []
        code += (target if isinstance(target, type) else type(target)).__mro__
        for part in code:
            try:
                file = inspect.getsourcefile(part)
            except TypeError:  # built in
                continue
            if file is not None and "site-packages" not in Path(file).parts:
                files.add(Path(file))
    texts = [file.read_bytes() for file in sorted(files) if file.is_file()]
    return hashlib.sha256(b"\0".join(texts)).hexdigest() if texts else None


def _parts(value: object, depth: int = 4) -> Iterator[object]:
    """The leaves of an object's attributes, through lists, tuples and mappings; networks whole."""
    if isinstance(value, nn.Module | torch.Tensor | np.ndarray) or depth == 0:
        yield value
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _parts(value[key], depth - 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item, depth - 1)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from _parts(vars(value), depth - 1)

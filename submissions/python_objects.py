"""Encoders that are written in Python, on this machine: found by name, and told apart."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any, cast

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
    try:
        found: Any = importlib.import_module(module_name)
    except (ModuleNotFoundError, ValueError, TypeError) as error:
        missing = getattr(error, "name", None)
        if isinstance(error, ModuleNotFoundError) and not f"{module_name}.".startswith(
            f"{missing}."
        ):
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
    """Everything of the object that holds weights: itself, or the networks among its attributes."""
    if isinstance(encoder, nn.Module):
        return encoder
    attributes = getattr(encoder, "__dict__", {})
    parts = {name: v for name, v in sorted(attributes.items()) if isinstance(v, nn.Module)}
    return nn.ModuleDict(parts) if parts else None


def source_sha(target: object) -> str | None:
    """sha256 of the file in which a factory (or the class of an object) is written."""
    is_code = isinstance(target, type) or inspect.isfunction(target)
    try:
        file = inspect.getsourcefile(cast("type", target if is_code else type(target)))
    except TypeError:
        return None
    if file is None or not Path(file).is_file():
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()

"""A manifest that a stranger sent: text in, `Manifest` out, or a reason.

Imports no torch: the site reads manifests, too.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
from typing import Any

from ..benchmark.errors import IntakeError, ManifestError
from .headers import shown
from .manifest import Manifest, parse

MANIFEST_BYTES = 1 << 16
"""Of a manifest that comes in; a page of text has 2 KiB."""

_DOTS = 2048
"""In a manifest, prose included. TOML's parser takes time with the square of a key's dots: 8 s for
30,000 of them (measured)."""

VOXELS = 1 << 25
"""Of a grid, all channels: 320 x 320 x 320, or 128 MiB of float32."""

CHANNELS = 16
"""Of a grid."""

_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}
"""Characters that change the direction of the text around them."""

_EDIT = "Correct it, or let `tomoprobe pack` write it."


def read_manifest(text: str, stage: str = "check") -> Manifest:
    """Parse a manifest that a stranger sent.

    Args:
        text: TOML, as sent.
        stage: of the refusal: ``upload`` or ``check``.

    Raises:
        IntakeError: too long, no TOML, not a manifest, or text with control
            characters.
    """

    def refused(code: str, message: str, hint: str) -> IntakeError:
        return IntakeError(code, message, stage=stage, hint=hint)

    data = parsed(text, stage)
    try:
        manifest = parse(data, "manifest.toml")
    except ManifestError as error:
        raise refused("manifest-invalid", str(error), _EDIT) from error
    except (ValueError, RecursionError, OverflowError) as error:
        raise refused("manifest-invalid", shown(str(error)), _EDIT) from error
    voxels = math.prod(manifest.grid.shape) * (manifest.channels + manifest.region)
    if voxels > VOXELS or manifest.channels > CHANNELS:
        raise refused(
            "grid-size",
            f"A grid of {shown(manifest.grid.shape)} with {shown(manifest.channels)} channels is "
            f"too large: {VOXELS} voxels and {CHANNELS} channels at most are taken.",
            "Use a smaller or coarser grid, or tiling = 'tiles'.",
        )
    return manifest


def parsed(text: str, stage: str) -> dict[str, Any]:
    """The keys of a stranger's TOML, of any card; in time and depth that are bounded.

    Args:
        text: TOML, as sent.
        stage: of the refusal.

    Raises:
        IntakeError: too long, no TOML, or text with control characters.
    """

    def refused(code: str, message: str, hint: str) -> IntakeError:
        return IntakeError(code, message, stage=stage, hint=hint)

    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise refused("manifest-toml", "The manifest is not text in UTF-8.", _EDIT) from error
    if size > MANIFEST_BYTES:
        raise refused(
            "manifest-size",
            f"The manifest has {size} bytes, {MANIFEST_BYTES} at most are taken.",
            "Shorten its texts; weights belong into the .safetensors file.",
        )
    if text.count(".") > _DOTS:
        raise refused(
            "manifest-toml",
            f"The manifest has {text.count('.')} dots, {_DOTS} at most are taken: its keys are "
            "nested too deeply.",
            _EDIT,
        )
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of 5000 digits
        raise refused(
            "manifest-toml", f"The manifest is not TOML: {str(error)[:200]}.", _EDIT
        ) from error
    for value in _texts(data):
        odd = next((c for c in value if _unfit(c)), None)
        if odd is not None:
            raise refused(
                "manifest-text",
                f"The manifest's text {shown(value)} holds the control character {odd!a}.",
                "Remove it.",
            )
    return data


def _texts(value: object) -> Iterator[str]:
    """Every key and text of a TOML document; without recursion, which its depth could exhaust."""
    stack: list[object] = [value]
    while stack:
        match stack.pop():
            case str() as text:
                yield text
            case dict() as table:
                stack += [*table.keys(), *table.values()]
            case list() as items:
                stack += items
            case _:
                pass


def _unfit(c: str) -> bool:
    code = ord(c)
    control = code < 0x20 and c not in "\t\n\r"
    return control or 0x7F <= code < 0xA0 or 0xD800 <= code <= 0xDFFF or code in _BIDI

"""A look at a protobuf file before it is parsed: parsing makes objects of hundreds of two bytes.

The wire format (protobuf.dev, Encoding): a field is a varint, its number times eight plus its wire
type, and a value; messages and packed lists are values that begin with their length. Only what the
schema of ONNX knows is let through, so a file cannot carry something else beside the graph, and
nothing is there twice that can be there once, so all parsers read the same.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from .onnx_limits import Limits, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types. Groups, 3 and 4, are older than ONNX, which has none."""

_VARINT_BYTES = 10
"""Of the longest varint: 64 bits, seven at a time."""


class _Field(NamedTuple):
    name: str
    wire: int
    """Wire type of one value."""
    once: bool
    packable: bool
    text: bool
    message: Any
    """Descriptor of the message it holds, or None."""


def scan(data: bytes, limits: Limits) -> int:
    """Walk a serialised ModelProto without parsing it; returns how many items it holds.

    Raises:
        IntakeError: graph-not-onnx (not this schema, truncated), graph-repeated-field,
            graph-too-many-items, graph-too-deep.
    """
    from onnx import ModelProto

    items = 0
    position = 0
    # (end of the message, its descriptor, singular fields seen), outermost first
    stack: list[tuple[int, Any, set[int]]] = [(len(data), ModelProto.DESCRIPTOR, set())]
    while stack:
        end, descriptor, seen = stack[-1]
        if position == end:
            stack.pop()
            continue
        key, position = _varint(data, position, end)
        number, wire = key >> 3, key & 7
        field = _fields(descriptor).get(number)
        if field is None:
            refuse("not-onnx", f"A {descriptor.name} of this file has a field {number}, unknown.")
        if field.once and number in seen:
            refuse("repeated-field", f"A {descriptor.name} of this file has '{field.name}' twice.")
        seen.add(number)
        items += 1
        if wire == _BYTES:
            length, position = _varint(data, position, end)
            if length > end - position:
                refuse("not-onnx", f"'{field.name}' ends {length - end + position} bytes too late.")
            if field.message is not None:
                if len(stack) == limits.nesting:
                    refuse("too-deep", f"Messages are nested more than {limits.nesting} deep.")
                stack.append((position + length, field.message, set()))
            else:
                if field.packable:  # a list of numbers; a varint may be one byte
                    items += length // {_VARINT: 1, _FIXED32: 4, _FIXED64: 8}[field.wire]
                elif field.wire != _BYTES:
                    _mismatch(field)
                elif field.text:
                    _check_text(
                        field, data[position : position + min(length, limits.text + 1)], limits
                    )
                position += length
        else:
            if wire != field.wire:
                _mismatch(field)
            if wire == _VARINT:
                position = _varint(data, position, end)[1]
            else:
                position += 8 if wire == _FIXED64 else 4
            if position > end:
                refuse("not-onnx", f"'{field.name}' is cut off.")
        if items > limits.items:
            refuse(
                "too-many-items",
                f"The file holds more than {limits.items} fields and list entries. Weights have "
                "to be raw_data.",
            )
    return items


@cache
def _fields(descriptor: Any) -> Mapping[int, _Field]:
    """A message's fields by number."""
    wires = {1: _FIXED64, 2: _FIXED32, 9: _BYTES, 11: _BYTES, 12: _BYTES}  # double, float, text...
    return {
        field.number: _Field(
            field.name,
            wires.get(field.type, _VARINT),
            # a repeated field has no presence; in a oneof every field has
            field.has_presence,
            not field.has_presence and field.type not in (9, 11, 12),
            field.type == 9,
            field.message_type,
        )
        for field in descriptor.fields
    }


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """The number at a position, and the position behind it."""
    value = 0
    for k in range(min(_VARINT_BYTES, end - position)):
        byte = data[position + k]
        value |= (byte & 0x7F) << (7 * k)
        if byte < 0x80:
            return value, position + k + 1
    refuse("not-onnx", "The file is cut off, or no ONNX file at all.")


def _check_text(field: _Field, text: bytes, limits: Limits) -> None:
    """Names and notes are short and UTF-8: where they are not, parsers give bytes for text."""
    if len(text) > limits.text:
        refuse("not-onnx", f"'{field.name}' has more than {limits.text} bytes.")
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        refuse("not-onnx", f"'{field.name}' is not UTF-8.")


def _mismatch(field: _Field) -> None:
    refuse("not-onnx", f"'{field.name}' has another type in this file than ONNX gives it.")

"""Names for things that are what they hold: sha256 of canonical JSON."""

import hashlib
import json
from typing import Any


def sha_of(value: Any) -> str:
    """sha256 of plain JSON types, as hex; the order of an object's keys is irrelevant.

    NaN is refused: it is no JSON, and unequal to itself.

    >>> sha_of({"a": 1, "b": 2}) == sha_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()

"""The last lines of what happened in a job: for its submitter, so nothing may come through raw.

Networks and their files name things, and those names end up in terminals and browsers.
"""

from __future__ import annotations

import re
import threading
from collections import deque

MAX_LINES = 200
MAX_BYTES = 16 * 1024
"""Of all lines together, as UTF-8."""
MAX_LINE = 1000
"""Letters of one line; what is longer is cut."""

# ECMA-48: control sequences (CSI), strings (OSC, DCS, APC, PM, SOS) up to their end, other escapes
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\|$)"
    r"|\x1b[ -/]*[0-~]?"
)
# C0 and C1 but for the line feed; letters that turn the direction of text or are not seen
# (Unicode categories Cc and Cf as far as they can mislead); surrogates, which no encoding holds
_CONTROL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff]"
)


def clean(text: str) -> str:
    r"""Text without escape sequences and control characters; a tab becomes a space.

    >>> clean("\x1b[31mred\x1b[0m\tand\r plain")
    'red and plain'
    """
    text = _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\t", " "))
    return _CONTROL.sub("", text)


class JobLog:
    """Keeps the last lines; threads may write at once."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._lock = threading.Lock()

    def __call__(self, text: str) -> None:
        """Add text, cleaned; several lines are several lines."""
        lines = [line[:MAX_LINE] for line in clean(text[-MAX_BYTES:]).split("\n") if line.strip()]
        with self._lock:
            self._lines.extend(lines)

    def text(self) -> str:
        """The last lines, at most ``MAX_LINES`` and ``MAX_BYTES``."""
        with self._lock:
            lines = list(self._lines)
        kept: deque[str] = deque()
        size = 0
        for line in reversed(lines):
            size += len(line.encode()) + 1
            if size > MAX_BYTES:
                break
            kept.appendleft(line)
        return "\n".join(kept)

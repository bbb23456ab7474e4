"""The two streams of the command line: tables on stdout, progress and failures on stderr."""

import sys

from rich.console import Console

out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
"""A pipe or file has no width of its own: wide enough for every table."""

err = Console(stderr=True, highlight=False)


def clean(text: str) -> str:
    """Without control characters, which a card, a log or a server's message could hold."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)

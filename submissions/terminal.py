"""The two streams of the command line: tables on stdout, progress and failures on stderr."""

import sys

from rich.console import Console

out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
"""A pipe or file has no width of its own: wide enough for every table."""

err = Console(stderr=True, highlight=False)

"""What the operator of a site decides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Settings:
    """Everything has a default that suits a board on one's own machine."""

    title: str = "How good are the frozen features?"
    """Heading of the board."""
    base_url: str = ""
    """Public address, e.g. ``"https://example.org/board"``, when it differs from the one uvicorn
    listens on; its path is put before every link."""
    suites: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of tasks by name of the suite, to filter by."""

    @property
    def root(self) -> str:
        """What stands before the path of every link: empty, or a path without a final slash."""
        return urlsplit(self.base_url).path.rstrip("/")

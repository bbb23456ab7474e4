"""A site that may be killed: ``python -m tests.killed_site URL FOLDER PORT TASK...`` serves one."""

import sys
from pathlib import Path

from tomoprobe.benchmark import probes
from tomoprobe.leaderboard.settings import Current, Settings
from tomoprobe.submissions import _linux, site
from tomoprobe.submissions.configuration import Configuration


def main() -> None:
    """Serve until killed. As ``tomoprobe serve``, but for tasks that are none of the release."""
    url, folder, port, *tasks = sys.argv[1:]
    _linux.die_with_parent()
    settings = Settings(
        tasks={name: Current(1) for name in tasks},
        probes={"knn": Current(probes.get("knn").version)},
    )
    configuration = Configuration(
        store=Path(folder) / "uploads", free_bytes=0, chunk_bytes=1 << 18, log_level="error"
    )
    site.serve(url, port=int(port), settings=settings, configuration=configuration)


if __name__ == "__main__":
    main()

"""Starts workers at a word: ``python -m tests.killed_worker URL FOLDER``.

Writes the id of a new process for every line that it reads. They are forked, because a start of
Python with torch takes longer than a test of many starts may.
"""

import os
import signal
import sys
from pathlib import Path

import pandas as pd  # noqa: F401 - here once, and not in each of the processes
import pyarrow.parquet  # noqa: F401
import torch

from tomoprobe.benchmark import evaluate, predictions, probes, statistics
from tomoprobe.leaderboard import db
from tomoprobe.submissions import _linux, intake, worker  # noqa: F401

from . import jobs

TERMS = {"lease_s": 4.0, "beat_s": 0.5, "poll_s": 0.1, "retry_s": 0.2, "left_s": 0.2}


def main() -> None:
    """Fork a worker for every line."""
    torch.set_num_threads(1)
    # intervals and spreads do not matter here, and cost most of the time
    statistics.DRAWS, evaluate.REFITS = 20, 0
    said = predictions.software()
    predictions.software = lambda: said
    probes.get("knn")
    url, folder = sys.argv[1], Path(sys.argv[2])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            _linux.die_with_parent()
            os.close(0)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            work(url, folder)
            os._exit(0)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


def work(url: str, folder: Path) -> None:
    """Be a worker until killed or asked to stop."""
    engine = db.connect(url)
    worker.work(jobs.bench(engine, folder, unsafe_local=True), worker.Terms(**TERMS))


if __name__ == "__main__":
    main()

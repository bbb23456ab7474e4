"""The whole platform on this machine: a real server, a real database, a worker of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
import uvicorn

from tomoprobe.leaderboard import accounts, db
from tomoprobe.submissions import upkeep
from tomoprobe.submissions.configuration import Configuration
from tomoprobe.submissions.site import create_site


@contextlib.contextmanager
def site(url: str, store: Path, free_bytes: int = 0) -> Iterator[tuple[str, sa.Engine]]:
    """Serve a database on a free port of this machine; gives the address and an engine."""
    engine = db.connect(url)
    db.migrate(engine)
    configuration = Configuration(store=store, chunk_bytes=1 << 20, free_bytes=free_bytes)
    app = create_site(engine, upkeep.site_settings(), configuration)
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1)
    )
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", engine
        server.should_exit = True
        thread.join(20)
    engine.dispose()


@contextlib.contextmanager
def worker(
    url: str, store: Path, home: Path, log: Path, data_root: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """``tomoprobe worker`` until the end of the block; what it logs is in ``log``.

    With a data root it takes incomplete copies of data sets.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TOMOPROBE_DB": url,
        "TOMOPROBE_HOME": str(home),
        "TOMOPROBE_STORE": str(store),
    }
    command = [sys.executable, "-m", "tomoprobe.submissions", "worker", "--poll", "0.2"]
    if data_root is not None:
        command += ["--data-root", str(data_root), "--subset"]
    with log.open("ab") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def token_of(engine: sa.Engine, name: str, role: accounts.Role = "submitter") -> str:
    """A new user's token."""
    accounts.add_user(engine, name, role)
    secret, _ = accounts.issue_token(engine, name, ["read", "submit"])
    return secret


# --- what is submitted ---------------------------------------------------------------------------

SHAPES = {"resnet18": "16,16,16", "swin_unetr": "32,32,32"}
"""The smallest grids that these networks take: hundreds of volumes are to be embedded."""

TITLE = "A checkpoint of MONAI"

FACTS = (
    *("--title", TITLE, "--authors", "Ada", "--license", "Apache-2.0"),
    *("--pretraining", "none", "--hu", "-160,240", "--scanner", "zscore"),
)


def resnet18(path: Path) -> None:
    """A state dict as MONAI has it."""
    import torch
    from monai.networks.nets import resnet18

    torch.manual_seed(0)
    network = resnet18(spatial_dims=3, n_input_channels=1, num_classes=2)
    torch.save(network.state_dict(), path)


def swin_unetr(path: Path) -> None:
    """Inside what a training loop would have saved."""
    import torch
    from monai.networks.nets import SwinUNETR

    torch.manual_seed(0)
    network = SwinUNETR(in_channels=1, out_channels=2, feature_size=12)
    torch.save({"epoch": 3, "state_dict": network.state_dict()}, path)

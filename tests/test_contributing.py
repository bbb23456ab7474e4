"""The three complete files in CONTRIBUTING.md do what the page says."""

import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tomoprobe.benchmark import evaluate, predictions
from tomoprobe.benchmark.features import extract
from tomoprobe.benchmark.types import Probe
from tomoprobe.submissions.load import load
from tomoprobe.tasks import check, load_file, open_cases

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
TASK_FILE, PROBE_FILE, ENCODER_FILE = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The three files, and the data that the task file describes."""
    (tmp_path / "my_task.py").write_text(TASK_FILE)
    (tmp_path / "my_probe.py").write_text(PROBE_FILE)
    (tmp_path / "my_encoder.py").write_text(ENCODER_FILE)
    (tmp_path / "my_task").mkdir()
    for number in range(40):
        voxels = np.random.default_rng(number).normal(100, 5, (24, 24, 24)).astype(np.float32)
        half = slice(12, None) if number % 2 else slice(None, 12)
        voxels[half] += 40
        path = tmp_path / "my_task" / f"{number:03d}.nii.gz"
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_probe", "my_encoder"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_the_three_files_evaluate_one_another(folder: Path) -> None:
    task = load_file(folder / "my_task.py")
    check(task)
    cases, complete = open_cases(task, folder, subset=False)
    assert complete

    encoder = load("my_encoder:build", arguments=None, weights=None, device="cpu")
    x = extract(encoder, cases, task.card.field_of_view_mm)

    import my_probe  # type: ignore[import-not-found]

    (probe,) = my_probe.PROBES
    assert isinstance(probe, Probe)
    table = evaluate.predict(task.card, cases, x, probe)
    headline = table[table["refit"] == predictions.HEADLINE]
    assert ((headline["p1"] > 0.5) == (headline["target"] == 1)).all()

"""The commands, as they are typed."""

import gc
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from tomoprobe.benchmark import probes
from tomoprobe.submissions import choosing, cli
from tomoprobe.submissions.baselines._pretraining import SYSTEMS

from .test_contributing import ENCODER_FILE, TASK_FILE

FIELDS = (
    "model, model_sha, task, task_version, probe, probe_version, metric, shots, seed, score, low, "
    "high, spread, n_test, subset, seconds, device, software, dataset_sha, split_sha"
)


ALL_PROBES = {p.name for p in probes.for_kind("classification")} & set(probes.default())


def typed(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``tomoprobe ARGUMENTS``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tomoprobe", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    output = capsys.readouterr()
    return int(stopped.value.code or 0), output.out, output.err


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private task with its data, and a private encoder."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "my_task.py").write_text(TASK_FILE)
    (folder / "my_encoder.py").write_text(ENCODER_FILE)
    (folder / "data" / "my_task").mkdir(parents=True)
    for number in range(40):
        voxels = np.random.default_rng(number).normal(100, 20, (24, 24, 24)).astype(np.float32)
        half = slice(12, None) if number % 2 else slice(None, 12)
        voxels[half] += 3
        nib.save(
            nib.Nifti1Image(voxels, np.eye(4)), folder / "data" / "my_task" / f"{number:03d}.nii.gz"
        )
    return folder


@pytest.fixture
def evaluate(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """``evaluate(*more)``: the private encoder on the private task, into a database of its own."""
    monkeypatch.setenv("TOMOPROBE_HOME", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(str(work))

    def run(*more: object, data: Path = work / "data") -> tuple[int, str, str]:
        base = ("evaluate", "--encoder", "my_encoder:build", "--task", work / "my_task.py")
        return typed(capsys, *base, "--data-root", data, "--db", tmp_path / "scores.db", *more)

    return run


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_evaluate_writes_rows_predictions_and_a_table(evaluate, tmp_path: Path) -> None:
    code, out, err = evaluate("--json", tmp_path / "rows.jsonl", "--predictions", tmp_path / "p")
    assert code == 0, err
    assert "my_task: AUROC" in out and "blocks" in out
    written = rows(tmp_path / "rows.jsonl")
    assert {row["probe"] for row in written} == ALL_PROBES
    assert all(", ".join(row) == FIELDS for row in written)
    assert not any(row["subset"] for row in written)
    files = sorted((tmp_path / "p").glob("*.parquet"))
    assert len(files) == len(ALL_PROBES)
    table = pd.read_parquet(files[0])
    assert {"case", "patient", "target", "p0", "p1"} <= set(table.columns)


def test_a_second_run_computes_nothing_and_says_the_same(
    evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate("--json", tmp_path / "first.jsonl")
    from tomoprobe.benchmark import cache
    from tomoprobe.benchmark import evaluate as spine

    def never(*arguments: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(cache, "extract", never)
    monkeypatch.setattr(spine, "predict", never)
    code, _, err = evaluate("--json", tmp_path / "second.jsonl")
    assert code == 0, err
    assert (tmp_path / "first.jsonl").read_text() == (tmp_path / "second.jsonl").read_text()


def test_two_runs_from_nothing_give_identical_scores(
    evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate("--json", tmp_path / "first.jsonl")
    monkeypatch.setenv("TOMOPROBE_HOME", str(tmp_path / "another_home"))
    evaluate("--json", tmp_path / "second.jsonl", "--db", tmp_path / "another.db")
    timed = {"seconds": 0}
    first, second = (
        [{**row, **timed} for row in rows(tmp_path / f"{n}.jsonl")] for n in ("first", "second")
    )
    assert first == second


def test_both_kinds_of_database_get_the_same_rows(evaluate, tmp_path: Path, new_url) -> None:
    written = []
    for kind in ("sqlite", "postgresql"):
        url, file = new_url(kind), tmp_path / f"{kind}.jsonl"
        code, _, err = evaluate("--probe", "knn", "--db", url, "--json", file)
        assert code == 0, err
        written.append([row | {"seconds": None} for row in rows(file)])
    gc.collect()  # a connection that a command leaves open warns here and not in a later test
    assert len(written[0]) > 2
    assert written[0] == written[1]


def test_recompute_finds_every_row_and_notices_a_changed_one(
    evaluate, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    evaluate("--json", tmp_path / "rows.jsonl")
    stored = rows(tmp_path / "rows.jsonl")
    code, out, _ = typed(capsys, "recompute", "--db", tmp_path / "scores.db")
    assert code == 0
    assert f"{len(stored)} of {len(stored)} rows equal" in out
    with sqlite3.connect(tmp_path / "scores.db") as connection:
        connection.execute("update results set score = score + 1e-9 where metric = 'auroc'")
    code, out, _ = typed(capsys, "recompute", "--db", tmp_path / "scores.db")
    assert code == 1
    changed = sum(row["metric"] == "auroc" and row["score"] is not None for row in stored)
    assert changed > len(ALL_PROBES)
    assert f"{len(stored) - changed} of {len(stored)} rows equal" in out


def test_an_incomplete_copy_is_refused_unless_marked(evaluate, work: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    (part / "my_task").mkdir(parents=True)
    for path in sorted((work / "data" / "my_task").iterdir())[2:]:
        (part / "my_task" / path.name).symlink_to(path)
    code, _, err = evaluate(data=part)
    assert code == 2 and "--subset" in err and "38" in err and "40" in err
    code, out, err = evaluate("--subset", "--json", tmp_path / "rows.jsonl", data=part)
    assert code == 0, err
    assert "never ranked" in out
    assert all(row["subset"] for row in rows(tmp_path / "rows.jsonl"))


def test_a_fault_of_one_encoder_does_not_stop_the_others(
    evaluate, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (work / "bad_encoder.py").write_text(ENCODER_FILE.replace("width=64", "width=63"))
    code, out, err = evaluate("-e", "bad_encoder:build", "--json", tmp_path / "rows.jsonl")
    assert code == 2
    assert "63" in err and "Traceback" not in err
    assert "blocks" in out
    assert {row["probe"] for row in rows(tmp_path / "rows.jsonl")} == ALL_PROBES


def test_an_edited_private_task_is_computed_again(evaluate, work: Path, tmp_path: Path) -> None:
    evaluate("--json", tmp_path / "first.jsonl", "--probe", "knn")
    file = work / "my_task.py"
    text = file.read_text()
    try:
        file.write_text(text.replace("target=number % 2", "target=number // 2 % 2"))
        assert evaluate("--json", tmp_path / "second.jsonl", "--probe", "knn")[0] == 0
    finally:
        file.write_text(text)
    first, second = (rows(tmp_path / f"{name}.jsonl") for name in ("first", "second"))
    assert {r["dataset_sha"] for r in first} != {r["dataset_sha"] for r in second}
    assert first[0]["score"] != second[0]["score"]


def test_a_changed_card_of_the_same_version_is_refused(evaluate, work: Path) -> None:
    evaluate("--probe", "knn")
    file = work / "my_task.py"
    text = file.read_text()
    try:
        file.write_text(text.replace("(24.0, 24.0, 24.0)", "(12.0, 12.0, 12.0)"))
        code, _, err = evaluate("--probe", "knn")
    finally:
        file.write_text(text)
    assert code == 2 and "field_of_view_mm" in err and "Raise the version" in err


def test_a_kind_that_no_probe_serves_is_told(
    capsys: pytest.CaptureFixture, data_root: Path
) -> None:
    base = ("evaluate", "-e", "intensity", "--task", "msd_hippocampus", "--data-root", data_root)
    code, _, err = typed(capsys, *base, "--subset", "--probe", "linear")
    assert code == 2 and "segmentation" in err


@pytest.mark.parametrize("command", ["recompute", "serve"])
def test_a_database_that_is_not_there_is_not_made(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, _, err = typed(capsys, command, "--db", tmp_path / "typo.db")
    assert code == 2 and "typo.db" in err
    assert not (tmp_path / "typo.db").exists()


def test_ctrl_c_says_what_is_kept(evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    from tomoprobe.submissions import runner

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupted)
    code, _, err = evaluate()
    assert code == 130 and "What is finished is stored" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("tasks", "--kind", "clasification"),
        ("encoders", "--accepts", "kelvin"),
        ("probes", "--kind", "x"),
    ],
)
def test_a_filter_without_a_meaning_is_refused(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture
) -> None:
    code, _, err = typed(capsys, *arguments)
    assert code == 2 and "Known:" in err


def test_a_dry_run_tells_the_cost_and_stores_nothing(evaluate, tmp_path: Path) -> None:
    code, out, err = evaluate("--dry-run")
    assert code == 0, err
    assert "my_task" in out and "40" in out and "MB" in out
    with sqlite3.connect(tmp_path / "scores.db") as connection:
        assert connection.execute("select count(*) from results").fetchone() == (0,)
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_a_read_only_data_root_is_enough(evaluate, work: Path) -> None:
    folders = [work / "data", work / "data" / "my_task"]
    before = sorted(work.joinpath("data").rglob("*"))
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert evaluate()[0] == 0
    finally:
        for folder in folders:
            folder.chmod(0o755)
    # root may write where the mode says no: nothing new is there either
    assert sorted(work.joinpath("data").rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "smoke_lession"), "Did you mean 'smoke_lesion'"),
        (("--suite", "smok"), "Did you mean 'smoke'"),
        (("--probe", "linaer"), "Did you mean 'linear'"),
        (("--encoder", "textrue"), "Did you mean 'texture'"),
        (("--task", "./nowhere.py"), "nowhere.py"),
        (("--arguments", "{"), "not a JSON object"),
        (("--arguments", "[1]"), "not a JSON object"),
        (("--device", "cuda:99"), "cuda:99"),
    ],
)
def test_a_slip_of_the_pen_is_told(evaluate, arguments: tuple[str, str], message: str) -> None:
    code, _, err = evaluate(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_task_without_data_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("TOMOPROBE_DATA", raising=False)
    monkeypatch.setenv("TOMOPROBE_HOME", str(tmp_path))
    base = ("evaluate", "--encoder", "texture", "--task", "adrenal_mnist3d")
    for more in ((), ("--data-root", tmp_path / "empty")):
        code, _, err = typed(capsys, *base, *more)
        assert code == 2
        assert "--data-root" in err or "TOMOPROBE_DATA" in err


def test_a_locked_database_is_told(evaluate, tmp_path: Path, monkeypatch) -> None:
    evaluate("--probe", "knn")
    from tomoprobe.leaderboard import db

    monkeypatch.setattr(db, "connect", partial(db.connect, timeout_s=0.2))
    holder = sqlite3.connect(tmp_path / "scores.db")
    try:
        holder.execute("begin exclusive")
        code, _, err = evaluate()
    finally:
        holder.close()
    assert code == 2
    assert "locked" in err and "Traceback" not in err


@pytest.mark.slow
def test_a_killed_run_loses_at_most_the_unit_in_hand(work: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "TOMOPROBE_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(work),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tomoprobe.submissions", "evaluate", "--encoder"]
    command += ["my_encoder:build", "--task", str(work / "my_task.py"), "--db"]
    command += [str(tmp_path / "scores.db"), "--data-root", str(work / "data")]
    command += ["--probe", "linear", "--probe", "linear_pca64", "--probe", "knn"]

    def stored() -> set[tuple]:
        try:
            with sqlite3.connect(tmp_path / "scores.db") as connection:
                return set(connection.execute("select probe, metric, score, added from results"))
        except sqlite3.OperationalError:
            return set()

    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not stored() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = stored()
    assert before, "the run was killed before anything was stored"
    assert len(before) % 5 == 0, "a unit is stored whole or not at all"
    subprocess.run([*command, "--json", str(tmp_path / "rows.jsonl")], env=environment, check=True)
    assert before <= stored()
    assert len(stored()) == len(rows(tmp_path / "rows.jsonl")) == 15


def test_every_run_leaves_a_summary(evaluate, tmp_path: Path) -> None:
    code, out, err = evaluate("--probe", "label_efficiency", "--out", tmp_path / "run")
    assert code == 0, err
    page = (tmp_path / "run" / "summary.html").read_text()
    assert "tomoprobe evaluate --encoder my_encoder:build" in page
    assert "data:image/png;base64" in page
    assert (tmp_path / "run" / "curves-my_task-label_efficiency.svg").read_text().startswith("<")
    assert rows(tmp_path / "run" / "rows.jsonl")
    assert "summary.html" in out
    evaluate("--probe", "knn")
    (folder,) = (tmp_path / "home" / "runs").iterdir()
    assert (folder / "summary.html").exists()


def test_shards_together_are_the_whole_run(
    evaluate, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (work / "other_encoder.py").write_text(ENCODER_FILE.replace("blocks", "others"))
    both = ("--probe", "knn", "-e", "other_encoder:build")
    for i in (1, 2):
        code, _, err = evaluate(*both, "--shard", f"{i}/2", "--db", tmp_path / f"{i}.db")
        assert code == 0, err
    code, out, err = typed(
        capsys, "db", "merge", tmp_path / "1.db", tmp_path / "2.db", "--db", tmp_path / "all.db"
    )
    assert code == 0, err
    assert out.count("1 units added, 0 there already") == 2
    evaluate(*both, "--json", tmp_path / "whole.jsonl")
    evaluate(*both, "--json", tmp_path / "merged.jsonl", "--db", tmp_path / "all.db")
    timed = {"seconds": None}
    whole, merged = (
        [row | timed for row in rows(tmp_path / f"{name}.jsonl")] for name in ("whole", "merged")
    )
    assert whole == merged and {row["model"] for row in whole} == {"blocks", "others"}


def test_of_several_tasks_one_may_lack_its_data(
    evaluate, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, out, err = evaluate("--task", "adrenal_mnist3d", "--probe", "knn")
    assert code == 2
    assert "adrenalmnist3d.npz" in err and "my_task: AUROC" in out


def test_rescoring_says_what_it_did(evaluate, work: Path, tmp_path: Path, capsys) -> None:
    evaluate("--probe", "knn")
    code, out, err = typed(capsys, "rescore", "--db", tmp_path / "scores.db")
    assert code == 0, err
    assert "0 units were recomputed, 0 were queued, 0 waited before, 0 were left alone" in out


@pytest.mark.parametrize("option", ["--out", "--predictions", "--json"])
def test_an_output_that_cannot_be_written_is_told_before_anything_is_computed(
    option: str, evaluate, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = evaluate(option, tmp_path / "file" / "x")
    assert code == 2 and "Nothing was computed" in err
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_a_part_without_work_says_so(evaluate) -> None:
    code, out, _ = evaluate("--shard", "2/5")
    assert code == 0 and "nothing to do" in out


def test_cache_shows_and_cleans(evaluate, capsys: pytest.CaptureFixture) -> None:
    evaluate()
    code, out, _ = typed(capsys, "cache", "--json")
    assert code == 0
    (entry,) = json.loads(out)
    assert entry["model"] == "blocks" and entry["n"] == 40 and entry["width"] == 64
    assert "freed" in typed(capsys, "cache", "--clean")[1]
    assert json.loads(typed(capsys, "cache", "--json")[1]) == []


@pytest.mark.parametrize("command", ["tasks", "encoders", "probes"])
def test_listings_speak_json_and_tables(command: str, capsys: pytest.CaptureFixture) -> None:
    code, out, _ = typed(capsys, command, "--json")
    assert code == 0 and json.loads(out)
    assert typed(capsys, command)[0] == 0


def test_tasks_are_filtered(capsys: pytest.CaptureFixture) -> None:
    found = json.loads(
        typed(capsys, "tasks", "--json", "--modality", "ct", "--kind", "regression")[1]
    )
    assert {card["name"] for card in found} == {"sarcoma_ct_age"}
    smoke = json.loads(typed(capsys, "tasks", "--json", "--suite", "smoke")[1])
    assert {card["name"] for card in smoke} == {"smoke_lesion", "smoke_ventricles"}


@pytest.mark.slow
def test_quickstart_fills_a_board_without_a_terminal(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    everybody = choosing.baselines()
    assert {"intensity", "texture", "random_swin", *(f"{s}_tiny" for s in SYSTEMS)} <= set(
        everybody
    )
    assert not {"nothing", "mind", "patches", "radiomics"} & set(everybody)
    # three of them: the others are loaded elsewhere, and each takes ten seconds here
    shown = {name: everybody[name] for name in ("intensity", "random_swin", "cspr_tiny")}
    monkeypatch.setattr(choosing, "baselines", lambda: shown)
    code, out, err = typed(capsys, "quickstart", "--db", tmp_path / "board.db")
    assert code == 0, err
    assert "tomoprobe serve --db" in out
    for name in shown:
        assert name in out
    assert "never evidence" in out
    with sqlite3.connect(tmp_path / "board.db") as connection:
        query = "select task, count(distinct model || probe) from results where low < high"
        done = dict(connection.execute(f"{query} group by task").fetchall())
    n = {
        kind: sum(kind in probes.get(name).kinds for name in probes.default())
        for kind in ("classification", "regression")
    }
    assert done == {
        "smoke_lesion": len(shown) * n["classification"],
        "smoke_ventricles": len(shown) * n["regression"],
    }

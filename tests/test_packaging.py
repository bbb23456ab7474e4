"""What is installed is what is in the folders, and the documents tell the truth."""

import doctest
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from typer.main import get_command

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()
ROOMS = ("benchmark", "tasks", "leaderboard", "submissions")
MODULES = sorted(
    "tomoprobe." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for room in ROOMS
    for path in (ROOT / room).rglob("*.py")
    if "migrations" not in path.parts and path.name != "__init__.py"
)


def in_a_fresh_process(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_folder_with_python_files_is_a_listed_package() -> None:
    folders = {
        "tomoprobe." + ".".join(path.parent.relative_to(ROOT).parts)
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert sorted(folders) == sorted(PROJECT["tool"]["setuptools"]["packages"])


def test_every_dependency_is_pinned_without_a_local_tag() -> None:
    pins = dict(
        line.lower().split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins.values())
    extras = PROJECT["project"]["optional-dependencies"]
    ours = "tomoprobe["  # an extra that contains another
    asked = [*PROJECT["project"]["dependencies"], *(r for e in extras.values() for r in e)]
    for requirement in (r for r in asked if not r.startswith(ours)):
        name = re.split(r"[>=\[]", requirement)[0]
        assert name in pins, f"{name} is not pinned in constraints.txt"


@pytest.mark.parametrize(
    "package", ["torchvision", "timm", "lightning", "transformers", "medmnist"]
)
def test_heavy_packages_stay_out(package: str) -> None:
    assert package not in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["tasks"], ["tasks", "--json"], ["encoders"], ["probes"]]
)
def test_listing_imports_neither_torch_nor_monai(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from tomoprobe.submissions.cli import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        "print('LOADED', [m for m in ('torch', 'monai', 'sklearn') if m in sys.modules])\n"
    )
    assert in_a_fresh_process("-c", code).endswith("LOADED []\n")


def test_the_site_imports_no_way_to_load_a_model() -> None:
    code = (
        "import sys, tomoprobe.leaderboard.site\n"
        "print([m for m in ('torch', 'monai', 'sklearn', 'nibabel') if m in sys.modules])\n"
    )
    assert in_a_fresh_process("-c", code) == "[]\n"


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_are_true(module: str) -> None:
    failed, _ = doctest.testmod(import_module(module))
    assert failed == 0


def test_every_command_is_in_the_readme() -> None:
    from tomoprobe.submissions.cli import app

    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"`{name}`" in README or f"`tomoprobe {name}`" in README, name
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name} has no help"


def test_every_setting_is_in_the_readme() -> None:
    used = {
        name
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for name in re.findall(r"\bTOMOPROBE_[A-Z_]+", path.read_text())
    }
    documented = set(re.findall(r"^\| `(TOMOPROBE_[A-Z_]+)`", README, re.M))
    assert used == documented


def test_the_readme_has_exactly_two_commands_to_install() -> None:
    commands = re.findall(r"^pip install .*$", README, re.M)
    assert commands == [
        "pip install -c constraints.txt . && tomoprobe quickstart",
        "pip install -c constraints.txt '.[test]' && pytest",
    ]


def test_no_room_loads_a_pickle() -> None:
    pattern = re.compile(
        r"torch\.load\((?!.*weights_only=True)|pickle\.loads?\(|joblib\.load\(|allow_pickle=True"
    )
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert not pattern.search(path.read_text()), path


def test_the_docker_files_copy_what_exists() -> None:
    for path in (ROOT / "docker").glob("*.Dockerfile"):
        for line in re.findall(r"^COPY (.+)$", path.read_text(), re.M):
            *sources, _ = line.split()
            for source in sources:
                assert (ROOT / source).exists(), f"{path.name}: {source}"


def test_cards_in_json_have_the_published_fields() -> None:
    cards = json.loads(in_a_fresh_process("-m", "tomoprobe.submissions", "tasks", "--json"))
    fields = re.findall(
        r"\w+",
        "name version title kind modality anatomy classes metric license source citation counts "
        "field_of_view_mm split_sha",
    )
    assert len(cards) >= 10
    for card in cards:
        assert set(fields) <= set(card)
        assert card["license"] and card["citation"]


def test_the_command_is_installed_and_knows_its_way_around(tmp_path: Path) -> None:
    command = Path(sys.executable).parent / "tomoprobe"
    done = subprocess.run(
        [command, "evaluate", "--encoder", "texture", "--task", "smoke_lession"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TOMOPROBE_HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 2
    assert "Did you mean 'smoke_lesion'" in done.stderr
    assert "Traceback" not in done.stderr

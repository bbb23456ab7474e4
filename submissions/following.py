"""How an upload and a submission go, on stderr: bars on a terminal, lines elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.text import Text

from .progress import duration
from .terminal import clean, err

if TYPE_CHECKING:
    from .client import Client

_SETTLED = ("done", "failed", "cancelled")
"""States of a unit after which nothing more happens to it."""

_TENTH = 10  # where nothing can be redrawn, a line for every tenth of the file


def say(text: str) -> None:
    """One line on stderr."""
    err.print(Text(clean(text)), soft_wrap=True)


def trying_again(what: str, seconds: float) -> None:
    """Of a broken connection, while it is waited."""
    say(f"{what} Trying again in {duration(seconds)}.")


# --- upload --------------------------------------------------------------------------------------


@contextmanager
def uploading(name: str) -> Iterator[Callable[[int, int], None]]:
    """Gives what hears bytes sent and bytes in all."""
    if not redrawn():
        yield _Tenths(name)
        return
    columns = (
        TextColumn("Uploading {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as progress:
        bar = progress.add_task(clean(name), total=None)

        def sent(offset: int, size: int) -> None:
            progress.update(bar, completed=offset, total=size)

        yield sent


class _Tenths:
    """A line for each tenth of a file."""

    def __init__(self, name: str) -> None:
        self._name, self._told = name, -1

    def __call__(self, offset: int, size: int) -> None:
        tenth = offset * _TENTH // max(1, size)
        if tenth > self._told:
            self._told = tenth
            say(f"Uploading {self._name}: {tenth * 100 // _TENTH} % of {size / 1e6:,.1f} MB")


# --- submission ----------------------------------------------------------------------------------


def follow(client: Client, found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Show how it goes until nothing more happens by itself; gives its last state.

    Args:
        client: of the server.
        found: the submission, as the server told it.
    """
    if not redrawn():
        told = ""
        for last in client.follow(found["id"]):
            found = last
            line = in_words(found)
            if line != told:
                say(line)
                told = line
        return found
    with Live(_Shown(found), console=err, refresh_per_second=8, transient=True) as live:
        for last in client.follow(found["id"]):
            found = last
            live.update(_Shown(found))
    return found


class _Shown:
    """State, bar and running units; redrawn as time passes."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._found = found
        self._spinner = Spinner("dots")

    def __rich__(self) -> Group:
        found = self._found
        settled, total = units_of(found)
        lines: list[Any] = [self._spinner]
        self._spinner.update(text=Text(clean(in_words(found))))
        if found["state"] == "evaluating":
            lines.append(ProgressBar(max(1, total), settled, width=40))
        lines += [Text(clean(f"  {unit_name(u)}"), style="dim") for u in running_of(found)[:4]]
        lines.append(Text("  Ctrl-C stops following, not the job.", style="dim"))
        return Group(*lines)


def in_words(found: Mapping[str, Any]) -> str:
    """The state of a submission in one line.

    >>> place = {"ahead": 2, "wait_s": 200.0, "workers": 1}
    >>> in_words({"name": "m", "state": "queued", "place": place, "jobs": []})
    'm is queued: 2 jobs ahead, starts in about 3 min'
    """
    state, told = found["state"], f"{found['name']} is {found['state']}"
    place = found.get("place")
    if state == "evaluating":
        settled, total = units_of(found)
        told += f": {settled} of {total} units"
    elif reason := reason_of(found):
        told += f": {reason}"
    if state == "queued" and place:
        told += f": {waiting(place)}"
    elif place and not running_of(found):
        told += f"; {waiting(place)}"
    return told


def waiting(place: Mapping[str, Any]) -> str:
    """Place in the queue, and how long it may take."""
    ahead, seconds = place["ahead"], place.get("wait_s")
    told = "next in line" if not ahead else f"{ahead} job{'s' * (ahead != 1)} ahead"
    if place.get("held"):
        return place["held"]
    if place.get("workers") == 0:
        return f"{told}, but no worker is running: ask the operator of the server"
    return told if seconds is None else f"{told}, starts in about {duration(seconds)}"


def units_of(found: Mapping[str, Any]) -> tuple[int, int]:
    """How many units are settled, and how many there are."""
    states = Counter(unit["state"] for unit in found.get("jobs") or ())
    return sum(states[state] for state in _SETTLED), states.total()


def running_of(found: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The units that run now."""
    return [unit for unit in found.get("jobs") or () if unit["state"] == "running"]


def unit_name(unit: Mapping[str, Any]) -> str:
    """What a unit does.

    >>> unit_name({"kind": "probe", "data_set": "", "task": "smoke_lesion", "probe": "knn"})
    'probe smoke_lesion knn'
    """
    return " ".join(filter(None, (unit[k] for k in ("kind", "data_set", "task", "probe"))))


def reason_of(found: Mapping[str, Any]) -> str:
    """Why a submission or a unit failed, and what to do; empty where nothing did.

    >>> reason_of({"code": "nan", "stage": "check", "message": "Tensor 'a' is NaN.", "hint": ""})
    "Tensor 'a' is NaN. (nan, in check)"
    """
    if not found.get("code"):
        return ""
    where = (
        f"({found['code']}, in {found['stage']})" if found.get("stage") else f"({found['code']})"
    )
    return " ".join(filter(None, (found.get("message"), found.get("hint"), where)))


def redrawn() -> bool:
    """Whether stderr is a terminal; FORCE_COLOR makes Rich call a log one."""
    return err.is_interactive and err.is_terminal and err.file.isatty()

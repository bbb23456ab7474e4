"""What a visitor asks the board for: GET parameters -> View, and back into a link."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal
from urllib.parse import urlencode

from ..benchmark.errors import UnknownNameError
from .records import Json, StoredTask, Unit
from .sizes import default_size

Suites = Mapping[str, Sequence[str]]
"""Names of tasks by name of the suite. Handed in: the site does not see the tasks folder."""

Order = Literal["asc", "desc"]

_LONGEST_SEARCH = 100  # characters; more is no name of a model


class ParameterError(UnknownNameError):
    """A GET parameter has a value that means nothing here."""


@dataclass(frozen=True)
class Choices:
    """What can be asked of this database."""

    kind: tuple[str, ...]
    modality: tuple[str, ...]
    anatomy: tuple[str, ...]
    probe: tuple[str, ...]
    suite: tuple[str, ...]
    task: tuple[str, ...]

    @classmethod
    def of(cls, tasks: Iterable[StoredTask], units: Iterable[Unit], suites: Suites) -> "Choices":
        """From what is stored; a suite is offered when one of its tasks is."""
        cards = {task.name: task.card for task in tasks}

        def values(name: str) -> tuple[str, ...]:
            return tuple(sorted({str(card[name]) for card in cards.values() if card.get(name)}))

        return cls(
            kind=values("kind"),
            modality=values("modality"),
            anatomy=values("anatomy"),
            probe=tuple(sorted({unit.probe for unit in units})),
            suite=tuple(
                sorted(s for s, names in suites.items() if not cards.keys().isdisjoint(names))
            ),
            task=tuple(sorted(cards)),
        )


@dataclass(frozen=True)
class View:
    """The GET parameters of the board. An empty value lets everything through."""

    kind: str = ""
    modality: str = ""
    anatomy: str = ""
    probe: str = ""
    """Empty: of each kind its standard probe, see ``protocols``."""
    shots: str = ""
    """Empty: all training data where there are such rows, else the most shots."""
    suite: str = ""
    task: tuple[str, ...] = field(default=())
    q: str = ""
    """Part of a model's name."""
    complete: str = ""
    """``"1"``: only models that are ranked on every task that counts."""
    sort: str = "rank"
    """``rank``, ``model``, ``done`` or ``task.NAME``."""
    order: str = ""
    """``asc`` or ``desc``; empty: the better, first or larger one on top."""

    @classmethod
    def parse(cls, parameters: Iterable[tuple[str, str]], choices: Choices) -> "View":
        """Check every value; names of parameters that are not ours are ignored.

        Raises:
            ParameterError: a value that this board does not know.
        """
        given: dict[str, str] = {}
        tasks: list[str] = []
        for name, value in parameters:
            if name == "task" and value and value not in tasks:
                tasks.append(_checked("task", value, choices.task))
            elif name in PARAMETERS and name != "task":
                given[name] = value.strip()
        for name in ("kind", "modality", "anatomy", "probe", "suite"):
            if given.get(name):
                _checked(name, given[name], getattr(choices, name))
        if given.get("order"):
            _checked("order", given["order"], ("asc", "desc"))
        if given.get("complete"):
            _checked("value of complete", given["complete"], ("1",))
        if given.get("shots"):
            _checked_number("shots", given["shots"])
        sort = given.pop("sort", "") or "rank"
        _checked("sorting", sort, ("rank", "model", "done", *(f"task.{t}" for t in choices.task)))
        given["q"] = given.get("q", "")[:_LONGEST_SEARCH]
        return cls(**given, sort=sort, task=tuple(sorted(tasks)))

    def query(self, **changes: str) -> str:
        """The query string of this view with some parameters changed; defaults are left out."""
        view = replace(self, **changes)
        pairs: list[tuple[str, str]] = []
        for item in fields(View):
            value = getattr(view, item.name)
            if value != item.default:
                pairs += [(item.name, v) for v in ((value,) if isinstance(value, str) else value)]
        return f"?{urlencode(pairs)}" if pairs else ""

    def shows(self, task: Json, suites: Suites) -> bool:
        """Whether the filters let this task's card through."""
        return (
            all(
                getattr(self, name) in ("", task.get(name))
                for name in ("kind", "modality", "anatomy")
            )
            and (not self.task or task["name"] in self.task)
            and (not self.suite or task["name"] in suites[self.suite])
        )

    @property
    def chooses_tasks(self) -> bool:
        """Whether tasks were named, by name or by suite."""
        return bool(self.task or self.suite)


PARAMETERS = frozenset(item.name for item in fields(View))
"""Names of the board's GET parameters."""


def chosen_shots(
    asked: str,
    known: Iterable[int | None],
    scored: Iterable[int | None] = (),
    elsewhere: Iterable[int] = (),
) -> int | None:
    """The number of shots to show.

    Args:
        asked: the parameter; empty: ``sizes.default_size``.
        known: of the rows there are.
        scored: of those rows that have a score: a default that was skipped would show nothing.
        elsewhere: sizes of other probes. One of them means the default here, so that a visitor
            who changes the probe need not change the shots first.

    Raises:
        ParameterError: there are no rows with that many shots.
    """
    there = set(known)
    if asked:
        shots = _checked_number("shots", asked)
        if shots in there:
            return shots
        if shots not in set(elsewhere):
            names = [str(k) for k in there if k is not None]
            raise ParameterError.of("number of shots", asked, names)
    return default_size(set(scored) or there)


def _checked(what: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ParameterError.of(what, value, known)
    return value


def _checked_number(what: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise ParameterError(f"{what} is '{value}', but a whole number is expected.")
    return int(value)

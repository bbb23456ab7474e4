"""``tomoprobe db``: look after the database. Heavy imports wait until a command needs them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

db_app = typer.Typer(
    help="Look after the database: upgrade, check, backup, restore, merge.", no_args_is_help=True
)

Database = Annotated[
    str | None,
    typer.Option(
        "--db",
        envvar="TOMOPROBE_DB",
        help="Database URL, or path of a SQLite file. Default: a file in TOMOPROBE_HOME.",
    ),
]
BackupFile = Annotated[Path, typer.Argument(metavar="FILE", help="The backup, a SQLite file.")]


@db_app.command()
def upgrade(db: Database = None) -> None:
    """Bring the tables to this release, or make them."""
    from . import databases, session

    before, after = databases.upgrade(session.database_url(db))
    if before == after:
        typer.echo(f"Revision {after} already.")
    else:
        typer.echo(f"Revision {before or 'none'} -> {after}.")


@db_app.command()
def check(db: Database = None) -> None:
    """Read everything once; exit 1 and list the faults where something is wrong."""
    from . import databases, session

    found = databases.check(session.existing_database(db))
    typer.echo(f"Revision {found.revision}; {_counted(found.counts)}.")
    if found.revision != found.newest:
        typer.echo(f"This release has revision {found.newest}: run `tomoprobe db upgrade`.")
    for fault in found.faults:
        typer.echo(f"FAULT  {fault}")
    if found.faults:
        raise typer.Exit(1)
    typer.echo("No faults.")


@db_app.command()
def backup(
    file: BackupFile,
    db: Database = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Copy everything into one file, also while others write to the database."""
    from . import databases, session

    counts = databases.backup(session.existing_database(db), file, force=force)
    typer.echo(f"{file}: {_counted(counts)}.")
    if counts.get("users"):
        typer.echo(
            "It holds accounts, digests of their tokens, and what is withdrawn or anonymous: keep "
            "it as safe as the database."
        )


@db_app.command()
def restore(file: BackupFile, db: Database = None) -> None:
    """Fill an empty database from a backup, of this or of another kind of database."""
    from . import databases, session

    counts = databases.restore(session.database_url(db), file)
    typer.echo(f"Restored {_counted(counts)}.")


@db_app.command()
def merge(
    others: Annotated[
        list[str], typer.Argument(metavar="OTHER...", help="URLs or SQLite files to add.")
    ],
    db: Database = None,
) -> None:
    """Add the results of other databases: the shards of a run, or colleagues' files."""
    from . import databases, session

    url = session.database_url(db)
    for other in others:
        added, present, withheld = databases.merge(url, session.existing_database(other))
        kept = f", {withheld} withdrawn, under embargo or anonymous left out" if withheld else ""
        typer.echo(f"{other}: {added} units added, {present} there already{kept}.")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "no rows"

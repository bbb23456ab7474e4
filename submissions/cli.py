"""The ``tomoprobe`` command. Heavy imports wait until a command needs them."""

import os
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ..benchmark.errors import TomoprobeError, UnknownNameError
from .db_commands import Database, db_app
from .pack_commands import inspect, pack
from .pretrain_commands import pretrain, synthesize
from .submit_commands import cancel, edit, login, logs, status, submit, withdraw
from .user_commands import users_app
from .worker_commands import worker

if TYPE_CHECKING:
    from .session import Session

app = typer.Typer(
    name="tomoprobe",
    help="Frozen-encoder benchmark and leaderboard for 3D radiology backbones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        envvar="TOMOPROBE_DATA",
        help="Folder that holds the data sets. May be read-only.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Port = Annotated[int, typer.Option(help="Port of the board.")]
Host = Annotated[str, typer.Option(help="Address the board listens on.")]


@app.command()
def quickstart(
    context: typer.Context,
    db: Database = None,
    serve: Annotated[bool, typer.Option(help="Serve the board afterwards.")] = True,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    device: Device = "auto",
) -> None:
    """Evaluate the baselines on the built-in smoke suite and open the leaderboard.

    Needs no data and no network: a cohort is derived from the one template head that nilearn
    ships. A check of the machinery, never evidence.
    """
    from . import choosing, console, runs, upkeep

    work = _open(context, db, None, device)
    loaders, chosen, protocols = (
        choosing.baselines(),
        choosing.suite("smoke"),
        choosing.probes(None),
    )
    with console.progress(list(loaders), chosen, protocols) as reporter:
        ran = runs.evaluate(
            work,
            encoders=loaders,
            tasks=chosen,
            probes=protocols,
            subset=False,
            reporter=reporter,
        )
    console.print_scores(work, ran)
    if serve and sys.stdout.isatty():
        console.print_address(host, port)
        upkeep.serve(work.url, host, port)
    else:
        console.print_serve_hint(work.shown_url)
    _exit_with(ran.outcome.failures)


@app.command()
def evaluate(
    context: typer.Context,
    encoder: Annotated[
        list[str],
        typer.Option(
            "--encoder",
            "-e",
            help="Baseline, manifest (.toml), architecture, or package.module:factory. Repeatable.",
        ),
    ],
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", help="Name, or a private ./my_task.py. Repeatable."),
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", "-s", help="A named set of tasks.")
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option("--probe", "-p", help="Default: all that serve the task. Repeatable."),
    ] = None,
    data_root: DataRoot = None,
    db: Database = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows as JSON Lines.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Folder for the per-case predictions, as Parquet.")
    ] = None,
    arguments: Annotated[
        str | None, typer.Option(help="Arguments of an architecture, as a JSON object.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="safetensors file for an architecture.")
    ] = None,
    subset: Annotated[
        bool, typer.Option("--subset", help="Accept an incomplete copy; its rows are marked.")
    ] = False,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for summary.html, curves, pictures and the rows. Default: a new one in "
            "TOMOPROBE_HOME/runs."
        ),
    ] = None,
    shard: Annotated[
        str,
        typer.Option(
            help="i/n: only the i-th of n parts of as many (encoder, data set) pairs, for machines "
            "that share nothing; name the same encoders and tasks on each, then bring the files "
            "together by 'db merge'."
        ),
    ] = "1/1",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print volumes, forwards, memory and time; store nothing."),
    ] = False,
) -> None:
    """Evaluate encoders on tasks and store the scores.

    What is stored already for the same weights, images and sides is not computed again.
    """
    from . import choosing, console, dense_report, dry_runs, report, runner, runs, tables

    part = runner.Shard.parse(shard)
    started = datetime.now(UTC)
    work = _open(context, db, data_root, device)
    chosen, protocols = choosing.tasks(task or [], suite), choosing.probes(probe)
    loaders = choosing.encoders(encoder, arguments, weights)
    if dry_run:
        tables.print_plan(dry_runs.plan(work, loaders, chosen, subset, protocols))
        return
    if not any(runner.parts(list(loaders), chosen, part).values()):
        typer.echo(f"Part {shard} has nothing to do: there are fewer (encoder, data set) pairs.")
        return
    folder = out or runs.run_folder(started)
    runs.check_writable(folder, predictions, json_file and json_file.absolute().parent)
    with console.progress(list(loaders), chosen, protocols) as reporter:
        ran = runs.evaluate(
            work,
            encoders=loaders,
            tasks=chosen,
            probes=protocols,
            subset=subset,
            reporter=reporter,
            json_file=json_file,
            shard=part,
            pictures=folder / dense_report.FOLDER,
        )
    scores = console.print_scores(work, ran)
    if predictions:
        runs.export_predictions(work, ran, predictions)
    console.print_summary(report.write_report(work, ran, folder, _command_line(), started, scores))
    _exit_with(ran.outcome.failures)


@app.command()
def recompute(context: typer.Context, db: Database = None) -> None:
    """Rebuild every stored score from its per-case predictions and compare to the last digit."""
    from . import session, tables, upkeep

    work = _open(context, session.existing_database(db), None, "cpu")
    differing = tables.print_recomputed(upkeep.recompute(work))
    if differing:
        raise typer.Exit(1)


@app.command()
def rescore(
    context: typer.Context,
    db: Database = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", "-t", help="A private ./my_task.py. Repeatable.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")
    ] = False,
) -> None:
    """Bring scores of older task and probe versions up to today's.

    What stored predictions allow is recomputed; what needs features is queued, and the board says
    that it waits. The old rows stay, marked as superseded.
    """
    from . import session, tables, upkeep

    work = _open(context, session.existing_database(db), None, "cpu")
    tables.print_rescored(upkeep.rescore(work, task or [], dry_run), dry_run)


@app.command()
def tasks(
    kind: Annotated[str | None, typer.Option(help="classification, regression, ...")] = None,
    modality: Annotated[str | None, typer.Option(help="CT or MR.")] = None,
    anatomy: Annotated[str | None, typer.Option(help="Part of the anatomy's name.")] = None,
    suite: Annotated[str | None, typer.Option(help="Only the tasks of a suite.")] = None,
    as_json: Json = False,
) -> None:
    """List the tasks."""
    from . import listing, tables

    tables.print_tasks(listing.tasks(kind, modality, anatomy, suite), as_json)


@app.command()
def encoders(
    accepts: Annotated[
        str | None, typer.Option(help="Only those that accept HU, scanner or relative.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the baselines and the architectures that a manifest may name."""
    from . import listing, tables

    tables.print_encoders(listing.encoders(accepts), listing.architectures(), as_json)


@app.command()
def probes(
    kind: Annotated[str | None, typer.Option(help="Only those that serve this kind.")] = None,
    as_json: Json = False,
) -> None:
    """List the probes."""
    from . import listing, tables

    tables.print_probes(listing.probes(kind), as_json)


@app.command()
def cache(
    clean: Annotated[bool, typer.Option("--clean", help="Delete cached features.")] = False,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    as_json: Json = False,
) -> None:
    """Show or clean the cached features."""
    from ..benchmark.cache import FeatureCache
    from ..benchmark.paths import cache_home
    from . import tables

    store = FeatureCache(cache_home() / "features")
    known = sorted({entry.model for entry in store.entries()})
    if model is not None and model not in known:
        raise UnknownNameError.of("model with cached features", model, known)
    if clean:
        tables.print_freed(store.clean(model))
    else:
        entries = [e for e in store.entries() if model is None or e.model == model]
        tables.print_cache(store.folder, entries, as_json)


@app.command()
def serve(db: Database = None, host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Serve the leaderboard."""
    from . import console, session, upkeep

    url = session.existing_database(db)
    upkeep.check_database(url)
    console.print_address(host, port)
    upkeep.serve(url, host, port)


app.add_typer(db_app, name="db")
app.add_typer(users_app, name="users")
app.command()(pretrain)
app.command()(synthesize)
app.command()(inspect)
app.command()(pack)
app.command()(worker)
app.command()(login)
app.command()(submit)
app.command()(status)
app.command()(logs)
app.command()(cancel)
app.command()(withdraw)
app.command()(edit)


def _open(context: typer.Context, db: str | None, data_root: Path | None, device: str) -> "Session":
    """A session whose connections end with the command."""
    from . import session

    work = session.open_session(db, data_root, device)
    context.call_on_close(work.engine.dispose)
    return work


def _command_line() -> str:
    """As it was typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


_INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT."""


def _exit_with(failures: tuple) -> None:
    """2 if a unit failed; the reasons are printed already."""
    if failures:
        raise typer.Exit(2)


def main() -> NoReturn:
    """Run the command; a ``TomoprobeError`` is a message and exit 2, anything else a traceback."""
    # Read by OpenMP when torch is first imported, which is later. By default its threads spin
    # while they wait, and a neighbour on the machine then makes an encoder ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(standalone_mode=True)
    except TomoprobeError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:  # typer has turned the KeyboardInterrupt into this
            sys.stderr.write("Stopped. What is finished is stored; the same command goes on.\n")
        raise
    sys.exit(0)

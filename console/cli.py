"""`llmctl`, the gateway from the shell.

Data goes to standard output and everything else to standard error. Exit codes: 0, 1 for a failure, 2 for wrong usage.
Modules that take long to load are loaded by the command that needs them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

import app
from console.backup_cli import backup, restore
from console.keys_cli import keys
from console.options import FOLDER, HELP, AsJson, Folder
from console.served import check_served, doubts, served
from console.tables import of_models, of_organizations, print_table, say, told
from console.teams_cli import teams
from console.usage_cli import usage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.organizations import Organization
    from console.finding import Finding
    from console.gateway_report import Gateway

LOOK_SECONDS = 2
cli = typer.Typer(
    name="llmctl",
    help='Ask the gateway from the shell:  llmctl chat "hello"',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)
org = typer.Typer(
    help="Organizations and their models:  llmctl org create acme", no_args_is_help=True, context_settings=HELP
)
migrate = typer.Typer(
    help="The database's schema:  llmctl migrate status", no_args_is_help=True, context_settings=HELP
)
cli.add_typer(org, name="org")
cli.add_typer(migrate, name="migrate")
cli.add_typer(keys, name="keys")
cli.add_typer(teams, name="teams")

Model = Annotated[str | None, typer.Option("--model", "-m", help="The model to ask, as `llmctl models` names it.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The organization's id, as `llmctl org list` shows it.")]
Fallback = Annotated[str | None, typer.Option(help="The model to ask once if the preferred one fails.")]
NoFallback = Annotated[bool, typer.Option("--no-fallback", help="Use no fallback.")]
Force = Annotated[bool, typer.Option("--force", help="Accept models that the gateway does not serve.")]


@cli.command()
def chat(
    prompt: Annotated[str | None, typer.Argument(help="The question; standard input if omitted or `-`.")] = None,
    model: Model = None,
    organization: Annotated[str | None, typer.Option("--org", help="Ask as this organization (its id).")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="The system message.")] = None,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Print it as it arrives; the default on a terminal.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a model:  llmctl chat "hello"."""
    question = _text(prompt)
    messages = [app.ChatMessage("system", system)] if system else []
    messages.append(app.ChatMessage("user", question))
    streaming = sys.stdout.isatty() if stream is None else stream
    options = app.ChatCompletionOptions(model=model, stream=streaming)
    if streaming and not as_json:
        answer = (
            app.stream_chat_completion_for_org(organization, messages, options)
            if organization
            else app.stream_chat_completion(messages, options)
        )
        with answer:
            try:
                for text in answer:
                    sys.stdout.write(text)
                    sys.stdout.flush()
            finally:  # why an answer broke off goes on its own line
                sys.stdout.write("\n")
        return
    result = (
        app.chat_completion_for_org(organization, messages, options)
        if organization
        else app.chat_completion(messages, options)
    )
    print(_json(result) if as_json else result.content or result.refusal or "")


@cli.command()
def embed(
    text: Annotated[str | None, typer.Argument(help="The text; standard input if omitted or `-`.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The embedding model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a text's vector, one number per line:  llmctl embed "hello"."""
    given = _text(text)
    result = app.generate_embedding(given, model) if model else app.generate_embedding(given)
    print(_json(result) if as_json else "\n".join(map(str, result.embedding)))


@cli.command()
def models(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show all that is known of each.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the models that the gateway serves, and say on stderr which of them will end:  llmctl models."""
    gateway = served()
    if as_json:
        print(json.dumps(told(gateway) if verbose else gateway.models))
    elif verbose:
        print_table(of_models(gateway))
    else:
        print("\n".join(gateway.models))
        for name, ending in gateway.endings.items():
            say(f"{name}: {ending}")


@org.command("create")
def org_create(
    name: Annotated[str, typer.Argument(help="The organization's name.")],
    model: Model = None,
    fallback: Fallback = None,
    no_fallback: NoFallback = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Add an organization:  llmctl org create acme --model claude-3-5-sonnet --fallback gpt-4o."""
    from app import organizations  # noqa: PLC0415

    gateway = _check_models(model, fallback, no_fallback=no_fallback, force=force)
    given = None if no_fallback else ... if fallback is None else fallback
    made = organizations.create(name, model=model, fallback=given)
    _show([made], as_json=as_json, one=True)
    _say_doubts(made, gateway, force=force)


@org.command("list")
def org_list(as_json: AsJson = False) -> None:
    """List the organizations:  llmctl org list."""
    from app import organizations  # noqa: PLC0415

    _show(organizations.listed(), as_json=as_json)


@org.command("show")
def org_show(organization: Id, as_json: AsJson = False) -> None:
    """Show one organization:  llmctl org show ID."""
    from app import organizations  # noqa: PLC0415

    _show([organizations.get(organization)], as_json=as_json, one=True)


@org.command("set-model")
def org_set_model(
    organization: Id,
    model: Annotated[str, typer.Argument(help="The preferred model.")],
    fallback: Fallback = None,
    no_fallback: NoFallback = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Set an organization's models:  llmctl org set-model ID gpt-4o --fallback claude-3-5-sonnet."""
    from app import organizations  # noqa: PLC0415

    gateway = _check_models(model, fallback, no_fallback=no_fallback, force=force)
    if fallback is None and not no_fallback:
        fallback = organizations.get(organization).llm_fallback_model
    changed = organizations.set_models(organization, model=model, fallback=fallback)
    _show([changed], as_json=as_json, one=True)
    _say_doubts(changed, gateway, force=force)


@migrate.command("status")
def migrate_status(folder: Folder = FOLDER, as_json: AsJson = False) -> None:
    """Show which migrations are applied and which are pending:  llmctl migrate status."""
    from app import migrations  # noqa: PLC0415

    found = migrations.status(_database_url(), folder)
    rows = [(each.file, each.applied_at.isoformat()) for each in found.applied]
    rows += [(each.file, "pending") for each in found.pending]
    if as_json:
        print(json.dumps([{"file": file, "applied_at": None if at == "pending" else at} for file, at in rows]))
        return
    print_table(rows)


@migrate.command("up")
def migrate_up(folder: Folder = FOLDER) -> None:
    """Apply the pending migrations:  llmctl migrate up."""
    from app import migrations  # noqa: PLC0415

    applied = migrations.up(_database_url(), folder, report=say)
    say(f"{len(applied)} applied" if applied else "nothing is pending")


@migrate.command("check")
def migrate_check(folder: Folder = FOLDER) -> None:
    """Exit with 1 if a migration is pending:  llmctl migrate check."""
    from app import migrations  # noqa: PLC0415

    pending = migrations.status(_database_url(), folder).pending
    for migration in pending:
        say(f"{migration.file} is pending: llmctl migrate up")
    if pending:
        raise typer.Exit(1)


@migrate.command("new")
def migrate_new(
    name: Annotated[str, typer.Argument(help="What it does, such as `add budgets`.")], folder: Folder = FOLDER
) -> None:
    """Create the next migration file:  llmctl migrate new "add budgets"."""
    from app import migrations  # noqa: PLC0415

    print(migrations.new(folder, name))


cli.command()(backup)
cli.command()(restore)


@cli.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep the screen up to date until Ctrl-C.")] = False,
    every: Annotated[
        float | None,
        typer.Option(min=0.2, help=f"Seconds between updates (default {LOOK_SECONDS}). Implies --watch."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what runs, its state and its requests:  llmctl status --watch.

    Exits with 1 if something is down. Changes nothing, and asks no provider. Reads from the engine that `docker`
    uses; set DOCKER_HOST for another one.
    """
    from console.screen import Screen, repeat  # noqa: PLC0415
    from console.status import Status, read  # noqa: PLC0415

    def print_json(found: Status) -> None:
        print(_json(found), flush=True)

    watch = watch or every is not None
    with Screen(live=watch and not as_json) as screen:
        show = print_json if as_json else screen.show
        if watch:
            repeat(every or LOOK_SECONDS, show)
            return
        found = read()
        show(found)
    if found.wrong:
        raise typer.Exit(1)


@cli.command()
def doctor(folder: Folder = FOLDER, as_json: AsJson = False) -> None:
    """Check settings, gateway, databases and what runs, and change nothing:  llmctl doctor."""
    from console import doctor, status  # noqa: PLC0415

    findings: list[Finding] = []

    def examined() -> Iterator[Finding]:
        yield from doctor.examine(folder)
        failed = {finding.check for finding in findings if finding.status == "failure"}
        yield from status.down(answers=not failed & {"gateway", "key"})

    marks = {"ok": "[green]OK[/]     ", "warning": "[yellow]WARNING[/]", "failure": "[red]FAILURE[/]"}
    console = Console(highlight=False, soft_wrap=True)
    for finding in examined():
        findings.append(finding)
        if not as_json:
            console.print(marks[finding.status], end=" ")
            console.print(f"{finding.check}: {finding.detail}", markup=False)
            if finding.fix:
                console.print(f"          {finding.fix}", markup=False)
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings]))
    if any(finding.status == "failure" for finding in findings):
        raise typer.Exit(1)


cli.command()(usage)


def _text(given: str | None) -> str:
    text = sys.stdin.read() if given in (None, "-") else given
    if not text or not text.strip():
        raise typer.BadParameter("it is empty", param_hint="the text")
    return text


def _check_models(model: str | None, fallback: str | None, *, no_fallback: bool, force: bool) -> Gateway | None:
    if fallback is not None and no_fallback:
        raise typer.BadParameter("--fallback and --no-fallback cannot be combined")
    return check_served([name for name in (model, fallback) if name is not None], force=force)


def _say_doubts(organization: Organization, gateway: Gateway | None, *, force: bool) -> None:
    """Also of models that were not named: the database's defaults, and a fallback that was there before."""
    if force:
        return
    with suppress(app.LLMError):  # the organization is changed, whether or not the gateway answers
        for doubt in doubts(organization, (gateway or served()).models):
            say(f"{doubt}: llmctl org set-model {organization.id} MODEL --fallback MODEL")


def _database_url() -> str:
    from app._settings import Settings  # noqa: PLC0415

    return Settings.load().required_database_url()


def _show(listed: list[Organization], *, as_json: bool, one: bool = False) -> None:
    if as_json:
        print(_json(listed[0]) if one else json.dumps([dataclasses.asdict(each) for each in listed], default=str))
        return
    print_table(of_organizations(listed))


def _json(result: Any) -> str:  # noqa: ANN401 -- any of the module's results
    return json.dumps(dataclasses.asdict(result), default=str)


def main() -> None:
    """Run the command line; show no traceback for anything that a user can cause."""
    try:
        cli()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader has gone; the interpreter must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ValueError as error:
        say(f"llmctl: {error}")
        sys.exit(2)
    except OSError as error:
        say(f"llmctl: {error.filename or 'the system'}: {error.strerror or error}")
        sys.exit(1)
    except Exception as error:
        if not _expected(error):
            raise
        say(f"llmctl: {error}")
        sys.exit(1)


def _expected(error: Exception) -> bool:
    import psycopg  # noqa: PLC0415

    from app import LLMError, migrations  # noqa: PLC0415
    from console.management import ManagementError  # noqa: PLC0415
    from console.postgres_programs import BackupError  # noqa: PLC0415
    from console.programs import ProgramError  # noqa: PLC0415

    known = (LLMError, BackupError, ManagementError, ProgramError, migrations.MigrationError, psycopg.Error)
    return isinstance(error, known)

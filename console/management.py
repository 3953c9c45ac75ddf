"""LiteLLM's keys and teams, if the stack has LiteLLM's database: asked from within a replica's container."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from app._settings import Settings
from console import containers, edge_statistics, in_replica
from console.durations import DURATION
from console.programs import ProgramError, output
from console.status import found

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SECONDS = 120.0
PROGRAM = Path(in_replica.__file__).read_text(encoding="utf-8")
NO_DATABASE = (
    "this stack's LiteLLM has no database, which keeps keys, teams and what they spend:\n"
    "    ./pulumiw config set litellmDatabase true && ./pulumiw up"
)
FAILED = 400
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,99}", re.ASCII)
HASH_BEGINNING = 8
"""How many characters of its hash are the name of a key without an alias."""

Named = TypeVar("Named", "Key", "Team")
Request = tuple[str, str, Any]


class ManagementError(Exception):
    """The request was not carried out. The message says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limited:
    """What keys and teams have in common, by LiteLLM's names."""

    models: tuple[str, ...]
    """The models that it may use; all if empty."""
    spend: float
    """US dollars, since the budget last started over."""
    max_budget: float | None
    budget_duration: str | None
    budget_reset_at: datetime | None
    rpm_limit: int | None
    tpm_limit: int | None
    blocked: bool
    created_at: datetime | None

    def told(self) -> dict[str, Any]:
        """The fields by name: those that only a key or only a team has come first."""
        common = {each.name for each in fields(Limited)}
        return dict(sorted(asdict(self).items(), key=lambda item: item[0] in common))


@dataclass(frozen=True, slots=True, kw_only=True)
class Key(Limited):
    """A virtual key. Only its holder knows the key itself."""

    kind = field = "key"  # LiteLLM's name for the id in a request; with an `s` for several ids

    key_alias: str | None
    key_name: str
    """The start and the end of the key."""
    token: str
    """Its hash, by which LiteLLM knows it."""
    team_id: str | None
    team_alias: str | None
    expires: datetime | None

    def __str__(self) -> str:
        return f"key {self.key_alias or self.token} ({self.key_name}), team {self.team}"

    @property
    def id(self) -> str:
        return self.token

    @property
    def team(self) -> str:
        """The alias of its team."""
        return self.team_alias or self.team_id or "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Team(Limited):
    """A team, whose keys share its budget and limits."""

    kind, field = "team", "team_id"

    team_id: str
    team_alias: str | None
    keys: tuple[str, ...]
    """The aliases of its keys."""

    def __str__(self) -> str:
        keys = f" and its keys ({', '.join(self.keys)})" if self.keys else ""
        return f"team {self.team_alias or self.team_id}{keys}"

    @property
    def id(self) -> str:
        return self.team_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a key or a team, by LiteLLM's names; None for no limit."""

    models: tuple[str, ...] = ()
    max_budget: float | None = None
    """US dollars."""
    budget_duration: str | None = None
    """After how long the budget starts over, such as `30d`."""
    rpm_limit: int | None = None
    tpm_limit: int | None = None

    def body(self) -> dict[str, Any]:
        """In LiteLLM's form. Raises ManagementError for values that it would misread or not accept."""
        if self.budget_duration is not None:
            if self.max_budget is None:
                raise ManagementError("--budget-duration needs --max-budget")
            checked_duration(self.budget_duration)
        names = ("max_budget", "budget_duration", "rpm_limit", "tpm_limit")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {**given, "models": list(self.models)}


def checked_duration(text: str) -> str:
    """A duration that every release of LiteLLM reads the same. Raises ManagementError."""
    if not DURATION.fullmatch(text):
        raise ManagementError(f"{text} is not a duration: use 30d, 12h, 30m, 90s or 1mo")
    return text


def checked_name(text: str) -> str:
    """A name for a key or a team. Raises ManagementError."""
    if text.startswith("sk-"):
        raise ManagementError("name a key by its alias (llmctl keys list): a command line can be read by all")
    if not NAME.fullmatch(text):
        raise ManagementError(
            f"{text!r} is not a valid name: 1 to 100 letters, digits or ._:@/-, the first a letter or digit"
        )
    return text


class Gateway:
    """A replica whose LiteLLM can be asked. All replicas share one database."""

    def __init__(self, container: str, edge: str | None = None) -> None:
        """`edge` is the container of the stack's edge, if it is on this engine."""
        self.container, self.edge = container, edge

    def ask(self, *requests: Request) -> list[tuple[int, Any]]:
        """The status and body of each answer. Raises ProgramError."""
        answered = json.loads(self.run(PROGRAM, json.dumps(requests)))
        return [(status, body) for status, body in answered]

    def run(self, program: str, given: str) -> str:
        """What the text of a program prints in the container, with `given` as its input. Raises ProgramError."""
        command = ["docker", "exec", "--interactive", self.container, "python3", "-I", "-c", program]
        printed = output(command, given=given, seconds=SECONDS)
        if not printed.strip():  # as an engine under load may end it
            raise ProgramError("docker exec printed nothing: run the command again")
        return printed

    def has_database(self) -> bool:
        """Whether LiteLLM has a database. Raises ProgramError, and ManagementError if it does not answer."""
        [(_, body)] = self.ask(("GET", "/health/readiness", None))
        state = str(body["db"]) if isinstance(body, dict) and "db" in body else sentence(body)[:200]
        if state == "connected":
            return True
        if state.lower() == "not connected":
            return False
        raise ManagementError(f"LiteLLM does not reach its database (it says {state!r}): llmctl status")

    def answers(self, *requests: Request) -> list[Any]:
        """The bodies of answers. Raises ProgramError, and ManagementError for a refusal."""
        answered = self.ask(*requests)
        for status, body in answered:
            if status >= FAILED:
                raise ManagementError(f"LiteLLM refused: {sentence(body)}")
        return [body for _, body in answered]

    def all(self) -> tuple[list[Key], list[Team]]:
        """All keys and teams, by alias. Raises ProgramError and ManagementError."""
        key_rows, team_rows = self.answers(("GET", "/spend/keys", None), ("GET", "/team/list", None))
        names = {row["team_id"]: row.get("team_alias") for row in team_rows}
        keys = sorted((key_of(row, names) for row in key_rows), key=lambda key: (key.key_alias or "~", key.token))
        teams = [team_of(row, [key for key in keys if key.team_id == row["team_id"]]) for row in team_rows]
        return keys, sorted(teams, key=lambda team: (team.team_alias or "~", team.team_id))

    def keys(self) -> list[Key]:
        """All keys. Raises ProgramError and ManagementError."""
        return self.all()[0]

    def teams(self) -> list[Team]:
        """All teams. Raises ProgramError and ManagementError."""
        return self.all()[1]

    def key(self, name: str) -> Key:
        """The key with this alias or start of its hash. Raises ProgramError and ManagementError."""
        checked_name(name)
        return key_called(name, self.keys())

    def team(self, name: str) -> Team:
        """The team with this alias or id. Raises ProgramError and ManagementError."""
        return team_called(name, self.teams())

    def create_key(self, alias: str, limits: Limits, *, team: str | None, duration: str | None) -> tuple[Key, str]:
        """A new key's row, and the key itself, which is shown only once. Raises ProgramError and ManagementError."""
        body = {"key_alias": checked_name(alias), **limits.body()}
        if duration is not None:
            body["duration"] = checked_duration(duration)
        keys, teams = self.all()
        if any(key.key_alias == alias for key in keys):
            raise ManagementError(f"there is a key {alias} already: llmctl keys show {alias}")
        if self.edge and alias in edge_statistics.clients(self.edge):
            raise ManagementError(
                f"{alias} is a client of the stack config, and has a key of that name in LiteLLM: use another alias"
            )
        if team is not None:
            of = team_called(team, teams)
            wrong = sorted(set(limits.models) - set(of.models)) if of.models else []
            if wrong:
                raise ManagementError(f"team {team} may not ask {', '.join(wrong)}, only {', '.join(of.models)}")
            body["team_id"] = of.team_id
        try:
            [made] = self.answers(("POST", "/key/generate", body))
        except ProgramError as error:
            raise ProgramError(
                f"{error}. If `llmctl keys list` has {alias} now, nobody knows that key: llmctl keys delete {alias}"
            ) from None
        try:
            return self.key(alias), made["key"]
        except (Exception, KeyboardInterrupt):  # noqa: BLE001 -- whatever it is: who made the key must see it
            names = {each.team_id: each.team_alias for each in teams}
            return key_of({**made, "token": made["token_id"]}, names), made["key"]

    def create_team(self, alias: str, limits: Limits) -> Team:
        """A new team. Raises ProgramError and ManagementError."""
        body = {"team_alias": checked_name(alias), **limits.body()}
        if any(alias in (team.team_alias, team.team_id) for team in self.teams()):
            raise ManagementError(f"there is a team {alias} already: llmctl teams show {alias}")
        [made] = self.answers(("POST", "/team/new", body))
        return self.team(made["team_id"])

    def named(self, kind: str, name: str) -> Key | Team:
        """The `key` or `team` with this name. Raises ProgramError and ManagementError."""
        return self.key(name) if kind == Key.kind else self.team(name)

    def block(self, each: Key | Team, *, blocked: bool) -> Key | Team:
        """Refuse a key, or all keys of a team, or accept them again. Raises ProgramError and ManagementError."""
        verb = "block" if blocked else "unblock"
        [(status, body)] = self.ask(("POST", f"/{each.kind}/{verb}", {each.field: each.id}))
        now = self.named(each.kind, each.id)
        if now.blocked != blocked:  # LiteLLM 1.55.0 answers 500 when it has blocked a key
            why = sentence(body) if status >= FAILED else f"it is as before: llmctl {each.kind}s list"
            raise ManagementError(f"LiteLLM did not {verb} the {each.kind}: {why}")
        return now

    def delete(self, each: Key | Team) -> None:
        """Delete a key, or a team and its keys. Raises ProgramError and ManagementError."""
        self.answers(("POST", f"/{each.kind}/delete", {f"{each.field}s": [each.id]}))


def gateway() -> Gateway:
    """The gateway at LITELLM_URL, whose LiteLLM has a database.

    Raises NotConfiguredError, ProgramError if its containers cannot be reached, and ManagementError without a
    database.
    """
    made = replica()
    if not made.has_database():
        raise ManagementError(NO_DATABASE)
    return made


def replica() -> Gateway:
    """A replica of the gateway at LITELLM_URL, with a database or without. Raises what `gateway` raises otherwise."""
    return of_stack(stack())


def replicas() -> dict[str, Gateway]:
    """Each replica on the engine that `docker` uses, by its name. Raises what `replica` raises."""
    return _replicas_of(stack())


def stack() -> containers.Stack:
    """The stack at LITELLM_URL. Raises NotConfiguredError, and ProgramError if it is not seen."""
    unseen: list[str] = []
    seen, _ = found(Settings.load(), unseen)
    if seen is None:
        raise ProgramError(unseen[0])
    return seen


def of_stack(stack: containers.Stack) -> Gateway:
    """A replica of a stack that can be asked on this engine. Raises ProgramError if there is none."""
    return next(iter(_replicas_of(stack).values()))


def _replicas_of(stack: containers.Stack) -> dict[str, Gateway]:
    up = [part for part in stack.parts if part.kind == containers.REPLICA and part.up]
    edge = stack.edge.container if stack.edge else None
    here = {part.name: Gateway(part.container, edge) for part in up if part.container}
    if not here:
        raise ProgramError(
            "no replica runs on the engine that `docker` uses: set DOCKER_HOST to a node that has one"
            if up
            else "no replica of the stack is up: llmctl status"
        )
    return here


def key_called(name: str, keys: Sequence[Key]) -> Key:
    """The key with this alias or start of its hash. Raises ManagementError."""
    checked_name(name)
    named = [key for key in keys if key.key_alias == name] or [
        key for key in keys if len(name) >= HASH_BEGINNING and key.token.startswith(name)
    ]
    return one(named, f"no key has the alias {name}: llmctl keys list")


def team_called(name: str, teams: Sequence[Team]) -> Team:
    """The team with this alias or id. Raises ManagementError."""
    named = [team for team in teams if name == team.team_id] or [team for team in teams if name == team.team_alias]
    return one(named, f"no team is called {name}: llmctl teams list")


def one(named: Sequence[Named], nobody: str) -> Named:
    """The one that matches a name. Raises ManagementError if there are several or none."""
    if not named:
        raise ManagementError(nobody)
    if len(named) > 1:
        ids = ", ".join(each.id[:12] if each.kind == Key.kind else each.id for each in named)
        raise ManagementError(f"several have this name: give the id of one ({ids})")
    return named[0]


def sentence(body: Any) -> str:  # noqa: ANN401 -- any JSON
    """The message in any of LiteLLM's error formats."""
    while isinstance(body, dict):
        body = next((body[name] for name in ("error", "detail", "message") if body.get(name)), "it says nothing")
    if isinstance(body, list):
        fields = [
            f"{'.'.join(map(str, each.get('loc', ())[1:]))}: {each.get('msg')}"
            if isinstance(each, dict)
            else str(each)
            for each in body
        ]
        return "; ".join(fields)
    text = " ".join(str(body).split())
    if inner := re.fullmatch(r"\{'(?:error|message)': '(.*)'\}", text):  # Python's text for a JSON object
        text = inner[1]
    return text.removeprefix("Internal Server Error, ")


def key_of(row: Mapping[str, Any], teams: Mapping[str, str | None]) -> Key:
    """A key, from LiteLLM's row."""
    return Key(
        key_alias=row.get("key_alias"),
        key_name=row.get("key_name") or "",
        token=row["token"],
        team_id=row.get("team_id"),
        team_alias=teams.get(row.get("team_id") or ""),
        expires=_time(row.get("expires")),
        **_common(row),
    )


def team_of(row: Mapping[str, Any], keys: Sequence[Key]) -> Team:
    """A team, from LiteLLM's row."""
    return Team(
        team_id=row["team_id"],
        team_alias=row.get("team_alias"),
        keys=tuple(key.key_alias or key.key_name for key in keys),
        **_common(row),
    )


def _common(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("max_budget", "budget_duration", "rpm_limit", "tpm_limit")
    return {
        **{name: row.get(name) for name in names},
        "models": tuple(row.get("models") or ()),
        "spend": float(row.get("spend") or 0),
        "blocked": bool(row.get("blocked")),
        "budget_reset_at": _time(row.get("budget_reset_at")),
        "created_at": _time(row.get("created_at")),
    }


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None

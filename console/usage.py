"""`llmctl usage`: who used what, from LiteLLM's database, or else from the lines that the replicas write.

The database does its own sums (litellm/spend.py). The engine keeps a replica's lines (litellm/usage.py) as long as
the replica's container exists, and only the latest megabytes of them. The lines that a log collector kept can be read
instead.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from app import organizations
from app._errors import LLMError
from console import containers, management
from console.programs import ProgramError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

MARK = '{"event": "usage"'
FAILED, LEFT = "failure", "left"
NEEDED = {
    *("time", "client", "call_id", "organization", "model", "answered_by", "provider", "status"),
    *("prompt_tokens", "completion_tokens", "total_tokens", "cost", "estimated"),
}
"""The fields of a line that are used here."""
UNITS = {"min": 60, "h": 3600, "d": 86400}
DATABASE, LINES = "database", "lines"
ONLY_IN_DATABASE = {"team", "key"}
"""Groups that the lines do not have."""
EVER = "-infinity"
ADD_UP = "/llm-gateway/spend"
NOT_FOUND = 404
NOBODY = "-"
"""The name of a group without a name: the caller named no organization."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one group has used. A call is a request, however often its provider was tried."""

    group: Mapping[str, str]
    """Its `client`, `team`, `key`, `org`, `model` and `day` (in UTC), as requested."""
    calls: int
    failed: int | None
    """Calls without an answer; None if the source does not have them."""
    left: int
    """Calls whose caller did not wait for the end."""
    prompt_tokens: int
    completion_tokens: int
    estimated_tokens: int
    """The tokens of both kinds that LiteLLM counted, and not the provider."""
    uncounted: int
    """Calls with an answer whose tokens nobody counted."""
    cost: float | None
    """US dollars, for everything with a price; None if nothing has a price."""
    unpriced_tokens: int
    """Tokens for which LiteLLM knows no price. They are not free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A replica whose lines were read."""

    name: str
    since: datetime | None
    """The time of the oldest line that is left; None for a log without any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Who used what."""

    source: str
    """`database`, or `lines`."""
    since: datetime | None
    """The start of the requested period."""
    rows: tuple[Row, ...]
    without_price: tuple[str, ...]
    """The providers' models whose cost is unknown."""
    begins: datetime | None
    """When the oldest row of the database was written; None for lines."""
    logs: tuple[Log, ...]
    unseen: tuple[str, ...]
    """What could not be read, and why."""


@dataclass(slots=True)
class _Group:
    calls: int = 0
    failed: int = 0
    left: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated_tokens: int = 0
    uncounted: int = 0
    costs: list[float] = field(default_factory=list)
    unpriced_tokens: int = 0

    def add(self, event: Mapping[str, Any], *, is_new: bool) -> None:
        """Add the outcome of a call, or another answer to one that is already counted."""
        self.calls += is_new
        if event["status"] == FAILED:
            self.failed += 1
            return
        self.left += is_new and event["status"] == LEFT
        tokens = event["total_tokens"] or 0
        self.prompt_tokens += event["prompt_tokens"] or 0
        self.completion_tokens += event["completion_tokens"] or 0
        self.estimated_tokens += tokens if event["estimated"] else 0
        if event["cost"] is not None:
            self.costs.append(event["cost"])
        elif tokens:
            self.unpriced_tokens += tokens
        if not tokens:
            self.uncounted += event["cost"] is None

    def row(self, group: Mapping[str, str]) -> Row:
        return Row(
            group=group,
            calls=self.calls,
            failed=self.failed,
            left=self.left,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            estimated_tokens=self.estimated_tokens,
            uncounted=self.uncounted,
            cost=sum(self.costs) if self.costs else None,
            unpriced_tokens=self.unpriced_tokens,
        )


def moment(text: str, *, now: datetime) -> datetime:
    """The time that `7d`, `12h`, `30min`, `2026-11-01` or `2026-11-01T12:00` means; days are in UTC.

    Raises ValueError.
    """
    if ago := re.fullmatch(rf"(\d{{1,6}}) ?({'|'.join(UNITS)})", text):
        return now - timedelta(seconds=int(ago[1]) * UNITS[ago[2]])
    try:
        return _time(text)
    except ValueError:
        raise ValueError(f"{text} is not a time: use 7d, 12h, 30min, 2026-11-01 or 2026-11-01T12:00") from None


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def of_stack(by: Sequence[str], since: datetime | None, *, source: str | None = None) -> Usage:
    """What the stack at LITELLM_URL knows: from LiteLLM's database if it has one, unless a source is named.

    Raises ProgramError, NotConfiguredError, and ManagementError for what the stack does not know.
    """
    stack = management.stack()
    if source != LINES:
        told = _told(stack, by, since)
        if told is not None:
            return of_database(told, by, since)
        if source == DATABASE:
            raise management.ManagementError(management.NO_DATABASE)
    check_lines(by)
    return _of_logs(stack, by, since)


def check_lines(by: Sequence[str]) -> None:
    """Refuse groups that the lines do not have. Raises ManagementError."""
    if wanted := ONLY_IN_DATABASE.intersection(by):
        raise management.ManagementError(
            f"only LiteLLM's database has what was used by {' and '.join(sorted(wanted))}; {management.NO_DATABASE}"
        )


def _told(stack: containers.Stack, by: Sequence[str], since: datetime | None) -> Mapping[str, Any] | None:
    """The sums of the stack's database; None without one. Raises ProgramError and ManagementError."""
    try:
        gateway = management.of_stack(stack)
    except ProgramError:
        return None  # lines of replicas elsewhere or from yesterday may still be read
    start = f"{since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if since else EVER
    [(status, body)] = gateway.ask(("GET", f"{ADD_UP}/{','.join(by)}/{start}", None))
    if status == NOT_FOUND:
        return None
    if status >= management.FAILED:
        raise management.ManagementError(f"{management.sentence(body)}: llmctl usage --source lines")
    told: Mapping[str, Any] = body
    return told


def of_database(told: Mapping[str, Any], by: Sequence[str], since: datetime | None) -> Usage:
    """What LiteLLM's database has answered (litellm/spend.py)."""
    names = _names({row["by_org"] for row in told["rows"]} - {NOBODY}) if "org" in by else {}
    rows = []
    for row in told["rows"]:
        group = {each: row.pop(f"by_{each}") for each in by}
        if "org" in group:
            group["org"] = names.get(group["org"], group["org"])
        if not told["has_failures"]:
            row["failed"] = None
        rows.append(Row(group=group, **row))
    return Usage(
        source=DATABASE,
        begins=_time(told["since"]) if told["since"] else None,
        since=since,
        rows=tuple(sorted(rows, key=lambda row: tuple(row.group.values()))),
        without_price=tuple(told["without_price"]),
        logs=(),
        unseen=(),
    )


def _of_logs(stack: containers.Stack, by: Sequence[str], since: datetime | None) -> Usage:
    """What the replicas of a stack have written."""
    unseen = [stack.unseen] if stack.unseen else []
    lines: list[str] = []
    logs: list[Log] = []
    for part in stack.parts:
        if part.kind == containers.REPLICA:
            try:
                written = containers.log(part)
            except ProgramError as error:
                unseen.append(f"the log of {part.name}: {error}")
                continue
            # Not in the middle of a line: that may be text from a caller or a provider.
            lines += (text for _, text in written if text.startswith(MARK))
            logs.append(Log(name=part.name, since=min((time for time, _ in written), default=None)))
    return of_lines(lines, by, since, logs=logs, unseen=unseen)


def of_lines(
    lines: Iterable[str],
    by: Sequence[str],
    since: datetime | None,
    *,
    logs: Sequence[Log] = (),
    unseen: Sequence[str] = (),
) -> Usage:
    """What these lines say, whatever else is among them. A line that appears twice counts once."""
    doubts = list(unseen)
    calls = list(_calls(_events(lines, since, doubts)))
    names = _names({event["organization"] for event, _ in calls} - {None}) if "org" in by else {}
    groups: dict[tuple[str, ...], _Group] = defaultdict(_Group)
    without_price = set()
    for event, is_new in calls:
        groups[tuple(_value(event, each, names) for each in by)].add(event, is_new=is_new)
        if event["status"] != FAILED and event["cost"] is None and event["total_tokens"]:
            without_price.add(f"{event['provider']}/{event['answered_by']}")
    return Usage(
        source=LINES,
        begins=None,
        since=since,
        rows=tuple(groups[key].row(dict(zip(by, key, strict=True))) for key in sorted(groups)),
        without_price=tuple(sorted(without_price)),
        logs=tuple(logs),
        unseen=tuple(doubts),
    )


def _events(lines: Iterable[str], since: datetime | None, unseen: list[str]) -> Iterator[dict[str, Any]]:
    """The events since a time."""
    found_lines = dict.fromkeys(line[line.index(MARK) :].strip() for line in lines if MARK in line)
    broken = 0
    for line in found_lines:
        try:
            event, _ = json.JSONDecoder().raw_decode(line)
            at = _time(event["time"])
        except (ValueError, KeyError):
            broken += 1
            continue
        if not event.keys() >= NEEDED:
            broken += 1
        elif since is None or at >= since:
            yield event
    if broken:
        unseen.append(f"{broken} incomplete lines")


def _calls(events: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bool]]:
    """The outcome of each call, and whether it is new: its answers, or else the last of its failed tries.

    A call has several answers if LiteLLM asks another model on the way, as a guardrail or a semantic cache does.
    """
    calls: dict[object, list[dict[str, Any]]] = defaultdict(list)
    for number, event in enumerate(events):
        calls[event["call_id"] or number].append(event)
    for tries in calls.values():
        answers = [event for event in tries if event["status"] != FAILED] or tries[-1:]
        for event in answers:
            yield event, event is answers[0]


def _value(event: Mapping[str, Any], group: str, names: Mapping[str, str]) -> str:
    if group == "day":
        return str(event["time"])[:10]
    if group == "org":
        organization = event["organization"] or NOBODY
        return names.get(organization, organization)
    return event[group] or NOBODY


def _names(ids: Collection[str]) -> Mapping[str, str]:
    """The names of organizations by their ids, if the app's database has them."""
    if not ids:
        return {}
    try:
        return {str(each.id): each.name for each in organizations.listed()}
    except LLMError:
        return {}

"""LiteLLM's table of spend, if the stack has LiteLLM's database: what is added to its rows, and their sums.

In LiteLLM, the key of a row is the provider's id of the answer, and a later row with the same id is dropped: if a
provider uses an id twice, only one of the answers would be billed. So here the key is LiteLLM's id of the call, which
callers see as `x-litellm-call-id`. What the edge and the caller say about a request goes to `spend_logs_metadata`,
LiteLLM's own place for labels. It is added once the answer is there, so no provider can see it.
"""

from __future__ import annotations

import hmac
import importlib
import json
import logging
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from answers import current
from usage import FAILED, event_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]

LOG = logging.getLogger("litellm.spend")
LABELS, OURS = "spend_logs_metadata", "llm_gateway"
ADDED = ("client", "call_id", "organization", "model", "answered_by", "provider", "status", "estimated")
"""Fields of an event (usage.py)."""
KEEPS_IDS = "responses"
"""Calls of that type: LiteLLM finds an earlier answer by its id in a row."""
PATH = "/llm-gateway/spend/"
"""The path that `llmctl usage` requests from inside the container, with the master key. It is followed by the groups
and the start of the period: `client,model/2026-11-01T00:00:00Z`."""
EVER = "-infinity"
SECONDS = 60
"""How long Postgres may add up."""

NOBODY = "'-'"
GROUPS = {
    "client": f"COALESCE(user_api_key_alias, said->>'client', {NOBODY})",
    "team": f"COALESCE(team_alias, user_api_key_team_alias, NULLIF(team_id, ''), {NOBODY})",
    # LiteLLM 1.55.0 has a row for the master key, later releases a fixed word.
    "key": f"""CASE
        WHEN api_key = 'litellm_proxy_master_key' OR (holder = 'default_user_id' AND key_alias IS NULL)
        THEN 'master key' ELSE COALESCE(key_name, key_alias, LEFT(NULLIF(api_key, ''), 8) || '…', {NOBODY}) END""",
    "org": f"COALESCE(said->>'organization', {NOBODY})",
    "model": f"COALESCE(said->>'model', NULLIF(model_group, ''), NULLIF(model, ''), {NOBODY})",
    "day": "to_char(\"startTime\", 'YYYY-MM-DD')",
}
"""What can be added up by, as `console/usage.py` names it."""
SQL = """
WITH told AS MATERIALIZED (
    SELECT
        request_id, api_key, team_id, model, model_group, custom_llm_provider, cache_hit, "startTime",
        spend, prompt_tokens, completion_tokens, total_tokens,
        -- Once for each row: it is large, and kept compressed and apart.
        of.user_api_key_alias, of.user_api_key_team_alias, of.{LABELS}->'{OURS}' AS said,
        of.status IS NOT DISTINCT FROM 'failure' AS is_failure
    FROM "LiteLLM_SpendLogs", jsonb_to_record(COALESCE(metadata, '{{}}')) AS of (
        status text, user_api_key_alias text, user_api_key_team_alias text, {LABELS} jsonb
    )
    WHERE "startTime" >= ($1::text)::timestamptz AT TIME ZONE 'UTC'
), answers AS (
    SELECT
        {groups},
        COALESCE(said->>'call_id', request_id) AS call,
        is_failure,
        said->>'status' IS NOT DISTINCT FROM 'left' AS is_left,
        -- LiteLLM guesses the tokens of a prompt that failed. What broke off midway it has a price for.
        NOT is_failure OR spend > 0 AS is_used,
        is_failure OR said->>'estimated' IS NOT DISTINCT FROM 'true' AS is_estimate,
        prompt_tokens, completion_tokens, total_tokens, "startTime",
        CASE WHEN cache_hit = 'True' THEN 0 WHEN spend > 0 THEN spend END AS cost,
        COALESCE(
            (said->>'provider') || '/' || (said->>'answered_by'),
            CASE WHEN custom_llm_provider = '' OR starts_with(model, custom_llm_provider || '/') THEN model
                ELSE custom_llm_provider || '/' || model END
        ) AS answered_by
    FROM told
    LEFT JOIN (SELECT team_id, team_alias FROM "LiteLLM_TeamTable") team USING (team_id)
    LEFT JOIN (
        SELECT token AS api_key, key_name, key_alias, user_id AS holder FROM "LiteLLM_VerificationToken"
    ) held USING (api_key)
), calls AS (
    SELECT
        answers.*,
        row_number() OVER (PARTITION BY call ORDER BY is_failure, "startTime") = 1 AS is_first
    FROM answers
), added AS (
    SELECT
        {names},
        count(*) FILTER (WHERE is_first) AS calls,
        count(*) FILTER (WHERE is_first AND is_failure) AS failed,
        count(*) FILTER (WHERE is_first AND is_left) AS "left",
        COALESCE(sum(prompt_tokens) FILTER (WHERE is_used), 0) AS prompt_tokens,
        COALESCE(sum(completion_tokens) FILTER (WHERE is_used), 0) AS completion_tokens,
        COALESCE(sum(total_tokens) FILTER (WHERE is_used AND is_estimate), 0) AS estimated_tokens,
        count(*) FILTER (WHERE is_used AND cost IS NULL AND total_tokens = 0) AS uncounted,
        round(sum(cost::numeric) FILTER (WHERE is_used), 12) AS cost,
        COALESCE(sum(total_tokens) FILTER (WHERE is_used AND cost IS NULL), 0) AS unpriced_tokens
    FROM calls
    GROUP BY {names}
)
SELECT json_build_object(
    'rows', (SELECT COALESCE(json_agg(added ORDER BY {names}), '[]') FROM added),
    'without_price', (
        SELECT COALESCE(json_agg(DISTINCT answered_by), '[]')
        FROM calls WHERE is_used AND cost IS NULL AND total_tokens > 0
    ),
    'since', (SELECT min("startTime") FROM "LiteLLM_SpendLogs"),
    'has_failures', EXISTS (
        SELECT FROM information_schema.columns WHERE table_name = 'LiteLLM_SpendLogs' AND column_name = 'status'
    )
)::text AS told
"""


def query(by: Sequence[str]) -> str:
    """The query for what was used since $1, by these GROUPS. Raises KeyError for another group."""
    return SQL.format(
        LABELS=LABELS,
        OURS=OURS,
        groups=", ".join(f'{GROUPS[each]} AS "by_{each}"' for each in by),
        names=", ".join(f'"by_{each}"' for each in by),
    )


class Spend:
    """ASGI middleware that answers what was used, to anyone with the master key."""

    def __init__(self, app: App, proxy: Any) -> None:
        self.app, self.proxy = app, proxy

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer, or leave it to LiteLLM."""
        if scope["type"] != "http" or not scope["path"].startswith(PATH):
            await self.app(scope, receive, send)
            return
        wanted = f"Bearer {os.environ.get('LITELLM_MASTER_KEY', '')}".encode()
        if hmac.compare_digest(dict(scope["headers"]).get(b"authorization", b""), wanted):
            by, _, since = scope["path"].removeprefix(PATH).partition("/")
            status, told = await self._told(by.split(","), since or EVER)
        else:
            status, told = 401, {"error": "this wants the master key"}
        content_type = (b"content-type", b"application/json")
        await send({"type": "http.response.start", "status": status, "headers": [content_type]})
        await send({"type": "http.response.body", "body": json.dumps(told).encode()})

    async def _told(self, by: Sequence[str], since: str) -> tuple[int, Any]:
        if self.proxy.prisma_client is None:
            return 404, {"error": "LiteLLM has no database"}
        try:
            question = query(by)
        except KeyError as error:
            return 400, {"error": f"spend is not added up by {error}"}
        try:
            async with self.proxy.prisma_client.db.tx(timeout=timedelta(seconds=SECONDS)) as transaction:
                await transaction.execute_raw("SET TRANSACTION READ ONLY")
                await transaction.execute_raw(f"SET LOCAL statement_timeout = '{SECONDS}s'")
                rows = await transaction.query_raw(question, since)
        except Exception as problem:
            LOG.exception("What was used cannot be read")
            return 503, {"error": f"LiteLLM's database did not answer ({type(problem).__name__})"}
        return 200, json.loads(rows[0]["told"])


def labelled(payload: dict[str, Any], kwargs: Mapping[str, Any], answer: Any, version: str) -> dict[str, Any]:
    """A row as LiteLLM makes it, with what is known of its request."""
    exchange = current.get()
    if exchange is None:  # no request, but LiteLLM by itself
        return payload
    event = event_of(kwargs, exchange, failed=payload.get("status") == FAILED, version=version)
    metadata = json.loads(payload["metadata"])
    labels = {name: value for name in ADDED if (value := getattr(event, name))}
    metadata[LABELS] = {**(metadata.get(LABELS) or {}), OURS: labels}
    payload["metadata"] = json.dumps(metadata)
    own = answer.get("id") if isinstance(answer, dict) else getattr(answer, "id", None)
    call = kwargs.get("litellm_call_id")
    if own and call and payload["request_id"] == own and KEEPS_IDS not in payload["call_type"]:
        payload["request_id"] = str(call)
    return payload


def install(version: str) -> None:
    """Make LiteLLM label its rows, and answer for them. Raises if it creates rows elsewhere, so it does not start.

    Without a database it makes no rows, so that nothing is changed.
    """
    proxy = importlib.import_module("litellm.proxy.proxy_server")
    proxy.app.add_middleware(Spend, proxy=proxy)
    if not os.environ.get("DATABASE_URL"):
        return
    tracking = importlib.import_module("litellm.proxy.spend_tracking.spend_tracking_utils")
    made = tracking.get_logging_payload
    if proxy.get_logging_payload is not made:
        raise RuntimeError("LiteLLM makes the rows of its table of spend in a way that is not known")

    def get_logging_payload(kwargs: Any, response_obj: Any, *args: Any, **others: Any) -> dict[str, Any]:
        return labelled(made(kwargs, response_obj, *args, **others), kwargs or {}, response_obj, version)

    tracking.get_logging_payload = proxy.get_logging_payload = get_logging_payload

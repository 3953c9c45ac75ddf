"""Give a static client its limits in LiteLLM's database: infra/client_limits.py runs this in a replica.

Usage: python3 run.py apply_limits CLIENT [LIMITS]

LIMITS is a JSON object with each of LIMITS below, null for none. Without it nothing changes. Prints `{"database":
whether LiteLLM has one, "limits": those of the client's key}`, null where there is no such key. LiteLLM is asked on
loopback, as by console/in_replica.py: neither its master key nor the salt key leaves the container.
"""

from __future__ import annotations

import http.client
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import guard
import keys

if TYPE_CHECKING:
    from collections.abc import Mapping

SECRETS = Path("/run/secrets")
FIRST_PROCESS = Path("/proc/1/cmdline")
"""LiteLLM's own command line, which has its port."""
SECONDS = 20
"""For an answer."""
LIMITS = ("rpm_limit", "tpm_limit", "max_budget", "budget_duration", "models")
NEVER = "36500d"
"""LiteLLM 1.55.0 cannot remove a budget's period, and would go on to reset what was spent. So the period becomes a
hundred years, which counts as none here."""
WAIT_SECONDS = 1.0
TRIES = int(keys.FRESH_SECONDS / WAIT_SECONDS) + 2
"""How often a replica is asked to make a key, which it may remember for some seconds though somebody deleted it."""
OK, NOT_FOUND = 200, 404


class LiteLLM:
    """The LiteLLM of this replica, asked about the key of a client."""

    def __init__(self, client: str, *, port: int, master_key: str, salt_key: str) -> None:
        self.client, self.port, self.master_key = client, port, master_key
        self.token = keys.hash_of(keys.key_of(client, salt_key))

    def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """The status and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        own = {"Authorization": f"Bearer {self.master_key}", "Content-Type": "application/json", **(headers or {})}
        connection.request(method, path, None if body is None else json.dumps(body), own)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        connection.close()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text

    def has_database(self) -> bool:
        """Whether LiteLLM was started with a database, which need not answer."""
        _, body = self.ask("GET", "/health/readiness")
        return not isinstance(body, dict) or str(body.get("db")).lower() != "not connected"

    def row(self) -> dict[str, Any] | None:
        """The limits of the client's key, as the database has them; None where there is no such key."""
        status, body = self.ask("GET", f"/key/info?key={self.token}")
        # 1.108.14 also reports a deleted key.
        if status == NOT_FOUND or (status == OK and body["info"].get("deleted_at")):
            return None
        if status != OK:
            raise SystemExit(f"LiteLLM did not say what the key of {self.client} may ({status}): {shown(body)}")
        return {name: body["info"].get(name) or None for name in LIMITS}

    def made(self) -> dict[str, Any]:
        """The same, once the key exists. The client's first request creates it (keys.py), so this sends one."""
        as_client = {name.decode(): self.client for name in (guard.CLIENT, guard.CALL)}
        for _ in range(TRIES):
            status, body = self.ask("GET", keys.MODELS, headers=as_client)
            if (row := self.row()) is not None:
                return row
            time.sleep(WAIT_SECONDS)
        raise SystemExit(f"LiteLLM did not make a key for {self.client} ({status}): {shown(body)}")

    def update(self, **limits: object) -> str:
        """Change limits of the key, and return what LiteLLM says: 1.55.0 may answer 500 though it has done it."""
        status, body = self.ask("POST", "/key/update", {"key": self.token, **limits})
        return f"({status}): {shown(body)}"


def shown(body: object) -> str:
    """An answer in one line."""
    return " ".join(str(body).split())[:300]


def told(row: Mapping[str, Any]) -> dict[str, Any]:
    """Limits as they were asked for."""
    return {**row, "budget_duration": None if row["budget_duration"] == NEVER else row["budget_duration"]}


def apply(litellm: LiteLLM, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Give the key its limits, and return those that it has then. Raises SystemExit where LiteLLM does not take them.

    Only what differs is sent: anything else would restart a budget's period.
    """
    row = litellm.row()
    if row is None:
        row = litellm.made() if any(wanted.values()) else dict.fromkeys(LIMITS)
    changes = {name: wanted[name] for name in LIMITS if told(row)[name] != wanted[name]}
    if not changes:
        return told(row)
    if changes.get("models", ()) is None:
        changes["models"] = []  # LiteLLM's word for all of them
    said = litellm.update(**changes)
    row = litellm.row() or dict.fromkeys(LIMITS)
    if wanted["budget_duration"] is None and told(row)["budget_duration"] is not None:
        said = litellm.update(budget_duration=NEVER)
        row = litellm.row() or dict.fromkeys(LIMITS)
    if told(row) != dict(wanted):
        raise SystemExit(f"LiteLLM did not take the limits of {litellm.client} {said}")
    return told(row)


def main(client: str, limits: str = "null") -> None:
    """Do as the arguments say."""
    words = FIRST_PROCESS.read_text().split("\0")
    master_key, salt_key = ((SECRETS / f"LITELLM_{name}_KEY").read_text().strip() for name in ("MASTER", "SALT"))
    litellm = LiteLLM(client, port=int(words[words.index("--port") + 1]), master_key=master_key, salt_key=salt_key)
    has_database = litellm.has_database()
    has: dict[str, Any] | None = None
    if has_database:
        wanted = json.loads(limits)
        row = litellm.row() if wanted is None else None
        has = apply(litellm, wanted) if wanted is not None else told(row) if row else None
    print(json.dumps({"database": has_database, "limits": has}))

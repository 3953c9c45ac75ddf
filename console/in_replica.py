"""Ask the LiteLLM of a replica, from within its container: `console/management.py` runs this text there.

The edge lets nobody manage keys, and only containers have LiteLLM's master key. Standard input has the requests, as a
command line can be read by all: a JSON list of `[method, path, body]`. Standard output gets the answers, a JSON list
of `[status, body]`.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MASTER_KEY = Path("/run/secrets/LITELLM_MASTER_KEY")
FIRST_PROCESS = Path("/proc/1/cmdline")
"""The command line of LiteLLM's process, which contains its port."""
SECONDS = 90
"""For an answer. LiteLLM's database may need 60 (litellm/spend.py)."""


def port_of(command: str) -> int:
    """The port on which a command makes LiteLLM listen."""
    words = command.split("\0")
    return int(words[words.index("--port") + 1])


def hidden(body: Any, key: str) -> Any:  # noqa: ANN401 -- any JSON
    """An answer without the row that LiteLLM 1.55.0 has for its own master key."""
    own = hashlib.sha256(key.encode()).hexdigest()
    if isinstance(body, list):
        return [each for each in body if not (isinstance(each, dict) and each.get("token") == own)]
    return body


def answers(requests: Iterable[tuple[str, str, Any]], port: int, key: str) -> Iterator[tuple[int, Any]]:
    """The status and body of each answer; a body that is not JSON is text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    for method, path, body in requests:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        try:
            yield response.status, hidden(json.loads(text), key)
        except ValueError:
            yield response.status, text
    connection.close()


if __name__ == "__main__":
    given = json.load(sys.stdin)
    print(json.dumps(list(answers(given, port_of(FIRST_PROCESS.read_text()), MASTER_KEY.read_text().strip()))))

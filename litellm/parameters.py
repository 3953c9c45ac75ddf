"""Parameters that a model's provider refuses: left out, or refused by name, as the stack config says.

The same with every release of LiteLLM. By themselves, releases pass on parameters that they do not know, refuse some
of them, or lose the limit on an answer's length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from answers import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

DROP, ERROR = "drop", "error"
"""What happens to a parameter (infra/model_list.py); anything else is the name under which it is sent."""
CHAT = "/chat/completions"
ALSO = {"stop": ("stop_sequences",)}
"""What Anthropic's API calls a parameter of OpenAI's."""
DEFAULTS = {"temperature": 1, "top_p": 1}
"""Values that change nothing, so a request with them is not refused."""


def fitting(path: str, fields: Mapping[str, Any], refused: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a request as its model takes them; `refused` says what becomes of each parameter.

    Raises Refusal that names one which is not taken.
    """
    fitted = dict(fields)
    for name, fate in refused.items():
        if fate not in {DROP, ERROR}:
            if path.rstrip("/").endswith(CHAT) and (value := fitted.pop(name, None)) is not None:
                fitted.setdefault(fate, value)
            continue
        for given in (name, *ALSO.get(name, ())):
            value = fitted.pop(given, None)
            if fate == ERROR and value is not None and value != DEFAULTS.get(name):
                model = str(fields.get("model"))[:100]
                message = f"`{given}` is not accepted by the model behind {model}: leave it out."
                raise Refusal(message, param=given, code="unsupported_parameter")
    return fitted

"""What becomes of a request's parameters that its model's provider refuses."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from tests.stack_config import PROJECT

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
LIMIT = {"max_tokens": "max_completion_tokens"}


@pytest.fixture(scope="module")
def parameters() -> Any:
    """The module, as a replica has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT / "litellm"))
        yield importlib.import_module("parameters")


@pytest.mark.parametrize(
    ("path", "given", "fates", "fitted"),
    [
        (CHAT, {"max_tokens": 5}, LIMIT, {"max_completion_tokens": 5}),
        (CHAT, {"max_tokens": 5, "max_completion_tokens": 9}, LIMIT, {"max_completion_tokens": 9}),
        ("/v1/completions", {"max_tokens": 5, "prompt": "a"}, LIMIT, {"max_tokens": 5, "prompt": "a"}),
        (CHAT, {"temperature": 0.2, "stop": "x", "seed": 1}, {"temperature": "drop", "stop": "drop"}, {"seed": 1}),
        (CHAT, {"temperature": 1, "top_p": 1.0}, {"temperature": "error", "top_p": "error"}, {}),
        (MESSAGES, {"max_tokens": 5, "stop_sequences": ["x"]}, {**LIMIT, "stop": "drop"}, {"max_tokens": 5}),
    ],
)
def test_what_a_model_refuses_goes_by_its_other_name_or_is_left_out(
    parameters: Any, path: str, given: dict[str, Any], fates: dict[str, str], fitted: dict[str, Any]
) -> None:
    """As the model list says. A value that changes nothing is no reason to refuse a request."""
    assert parameters.fitting(path, {"model": "m", **given}, fates) == {"model": "m", **fitted}


@pytest.mark.parametrize(
    ("path", "given", "refused"),
    [(CHAT, {"temperature": 0.2}, "temperature"), (MESSAGES, {"stop_sequences": ["x"]}, "stop")],
)
def test_what_a_model_refuses_is_named_where_the_stack_says_so(
    parameters: Any, path: str, given: dict[str, Any], refused: str
) -> None:
    (name,) = given
    with pytest.raises(Exception, match=f"`{name}` is not accepted by the model behind m: leave it out") as caught:
        parameters.fitting(path, {"model": "m", **given}, {refused: "error"})
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")  # type: ignore[attr-defined]

"""The tokens of a prompt are counted once: LiteLLM 1.55.0 counts them five times for a stream without usage.

Twice to send the same prompt to the same deployment again, and three times to build the whole answer. It does so in
the thread that every other request needs.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections import OrderedDict
from typing import Any

import orjson
from patching import put_in_place

KEPT = 1000
"""How many counts are kept: enough for those of the requests that run."""


def install() -> None:
    """Have LiteLLM keep its counts, without the texts. Newer releases count once."""
    utils = importlib.import_module("litellm.utils")
    if not hasattr(utils, "openai_token_counter"):
        return
    count, kept = utils.token_counter, OrderedDict[bytes, int]()

    @functools.wraps(count)
    def token_counter(*arguments: Any, **options: Any) -> int:
        try:
            key = hashlib.sha256(orjson.dumps((arguments, options))).digest()
        except orjson.JSONEncodeError:  # a tokenizer of the caller's
            return int(count(*arguments, **options))
        if (counted := kept.get(key)) is None:
            kept[key] = counted = int(count(*arguments, **options))
            if len(kept) > KEPT:
                kept.popitem(last=False)
        return counted

    put_in_place(count.__name__, count, token_counter)

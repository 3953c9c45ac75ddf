"""What a stack config lays over LiteLLM's settings, and what is refused of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from infra import model_list
from infra.litellm_settings import SECTIONS, laid_over
from infra.stack_config import validate
from tests.stack_config import PROJECT, raw_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.settings import Settings

NEWEST = "ghcr.io/berriai/litellm:v1.108.14"
FILE = (PROJECT / "litellm/config.yaml").read_text()


def problems(**changes: object) -> list[tuple[str, str, str]]:
    """What is wrong with settings, of whose variables all are encrypted."""
    found = validate(raw_config("dev", **changes), {"litellmEnvironment", "litellmFiles"}, {})[1]
    return [(each.key, each.what, each.command) for each in found]


def test_settings_are_laid_over_the_file_key_by_key() -> None:
    """Within nested keys too; keys that are not named stay. Numbers are numbers, although Pulumi stores texts."""
    config = {"router_settings": {"num_retries": 2, "retry_policy": {"A": 0, "B": 0}}, "litellm_settings": None}
    given: dict[str, Any] = {
        "routerSettings": {"num_retries": 1, "retry_policy": {"B": 3}},
        "litellmSettings": {"cache_params": {"ttl": "0.5", "namespace": "v1"}},
        "generalSettings": {},
    }
    assert laid_over(config, given) == {
        "router_settings": {"num_retries": 1, "retry_policy": {"A": 0, "B": 3}},
        "litellm_settings": {"cache_params": {"ttl": 0.5, "namespace": "v1"}},
    }


def test_the_rendered_config_has_them(settings: Callable[..., Settings]) -> None:
    """The edge then waits as long as LiteLLM does, and knows the aliases of the served models."""
    chosen = settings(
        "dev",
        litellmSettings={"request_timeout": 120},
        routerSettings={"model_group_alias": {"gpt": "gpt-4o", "gone": "nothing"}},
        generalSettings={"max_parallel_requests": 5},
    )
    result = model_list.render(FILE, chosen, demo_url="http://demo:8080")
    config = yaml.safe_load(result.config)
    assert result.request_timeout == config["litellm_settings"]["request_timeout"] == 120
    assert config["litellm_settings"]["json_logs"] is True
    assert config["general_settings"] == {"master_key": "os.environ/LITELLM_MASTER_KEY", "max_parallel_requests": 5}
    assert {"gpt", "gpt-4o"} <= {*result.served}
    assert "gone" not in result.served


def test_without_any_the_file_is_what_litellm_reads() -> None:
    config = yaml.safe_load(FILE)
    assert laid_over(config, {key: {} for key in SECTIONS}) == config


@pytest.mark.parametrize(
    ("section", "name", "value", "why"),
    [
        ("generalSettings", "master_key", "os.environ/X", "set masterKey instead"),
        ("generalSettings", "database_url", "os.environ/X", "litellmDatabaseUrl another"),
        ("generalSettings", "store_model_in_db", True, "use `models`"),
        ("generalSettings", "allow_requests_on_db_unavailable", True, "while the database is away"),
        ("generalSettings", "custom_auth", "mine.auth", "changes who may send requests"),
        ("generalSettings", "enable_oauth2_auth", True, "changes who may send requests"),
        ("generalSettings", "public_routes", ["/key/generate"], "changes who may send requests"),
        ("generalSettings", "pass_through_endpoints", [], "opens paths that the edge does not let anyone reach"),
        ("generalSettings", "key_management_system", "aws_kms", "takes keys from elsewhere"),
        ("litellmSettings", "set_verbose", True, "would write keys and prompts to the log"),
        ("litellmSettings", "ssl_verify", False, "set SSL_CERT_FILE"),
        ("litellmSettings", "api_base", "http://elsewhere", "the keys of all providers to one address"),
        ("litellmSettings", "custom_provider_map", [], "names Python code"),
        ("routerSettings", "model_list", [], "is `models` of the stack config"),
        ("routerSettings", "debug_level", "DEBUG", "would write keys and prompts to the log"),
    ],
)
def test_what_would_undo_a_guarantee_is_refused_with_the_reason(
    section: str, name: str, value: object, why: str
) -> None:
    [(key, what, command)] = problems(**{section: {name: value}})
    assert key == f"{section}.{name}"
    assert "cannot be set: it " in what
    assert why in what
    assert command == f"rm --path {section}.{name}"


@pytest.mark.parametrize(
    ("names", "said", "command"),
    [
        (["langfus"], "did you mean langfuse?", "set --path 'litellmSettings.callbacks[0]' langfuse"),
        (["mine.handler"], "names Python code", "rm --path 'litellmSettings.callbacks[0]'"),
        (["prometheus"], "metricsPort", "rm --path 'litellmSettings.callbacks[0]'"),
        (["s3_v2"], "1.108.14 does", "rm --path 'litellmSettings.callbacks[0]'"),
        ("langfuse", "must be a list", "set --path 'litellmSettings.callbacks[0]' NAME"),
    ],
)
def test_a_callback_that_is_not_there_is_refused(names: object, said: str, command: str) -> None:
    [(_, what, fix)] = problems(litellmSettings={"callbacks": names})
    assert said in what
    assert fix == command or said == "1.108.14 does"


def test_a_callback_is_accepted_when_its_variables_are_set() -> None:
    """Otherwise each missing one is named, with the command that sets it."""
    given = {"litellmSettings": {"success_callback": ["langfuse"]}}
    assert problems(**given) == [
        (
            "litellmSettings.success_callback[0]",
            f"langfuse needs the variable {name}, which is not set",
            f"set --secret --path litellmEnvironment.{name} …",
        )
        for name in ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY")
    ]
    keys = {"LANGFUSE_PUBLIC_KEY": "pk", "LANGFUSE_SECRET_KEY": "sk", "LANGFUSE_HOST": "https://langfuse.example"}
    assert problems(**given, litellmEnvironment=keys) == []


def test_a_setting_of_the_router_is_one_that_the_release_knows() -> None:
    """LiteLLM itself would silently ignore others."""
    [(key, what, _)] = problems(routerSettings={"num_retry": 1})
    assert key == "routerSettings.num_retry"
    assert "did you mean num_retries?" in what
    [(_, what, _)] = problems(routerSettings={"enable_weighted_failover": True})
    assert "LiteLLM 1.55.0 knows: 1.108.14 does" in what
    assert problems(routerSettings={"enable_weighted_failover": True}, litellmImage=NEWEST) == []
    [(_, what, command)] = problems(routerSettings={"routing_strategy": "latency-based"})
    assert command == "set --path routerSettings.routing_strategy latency-based-routing"


def test_variables_files_and_keys_are_as_in_models() -> None:
    """Named variables must be there, files too, and no key may be in clear; all is said at once."""
    cache = {"type": "redis", "host": "os.environ/REDIS_HOST", "password": "hunter"}
    found = problems(
        litellmSettings={"cache": True, "cache_params": cache, "callbacks_file": "/run/secrets/files/x.json"},
        routerSettings={"redis_password": "os.environ/LITELLM_MASTER_KEY"},
    )
    assert [(key, what.partition(",")[0]) for key, what, _ in found] == [
        ("litellmSettings.cache_params.password", "is not encrypted"),
        ("litellmSettings.cache_params", "names the variable REDIS_HOST"),
        ("litellmSettings.callbacks_file", "names the file x.json"),
        ("routerSettings.redis_password", "names the variable LITELLM_MASTER_KEY"),
    ]


def test_a_cache_in_redis_needs_its_address() -> None:
    [(key, _, command)] = problems(litellmSettings={"cache": True})
    assert (key, command) == ("litellmSettings.cache", "set --secret --path litellmEnvironment.REDIS_HOST …")
    assert problems(litellmSettings={"cache": True}, litellmEnvironment={"REDIS_HOST": "redis"}) == []
    assert problems(litellmSettings={"cache": True, "cache_params": {"type": "local"}}) == []


@pytest.mark.parametrize("seconds", [0, -1, "soon", True, 6001])
def test_a_time_out_is_one_that_the_edge_can_follow(seconds: object) -> None:
    [(key, _, command)] = problems(litellmSettings={"request_timeout": seconds})
    assert (key, command) == ("litellmSettings.request_timeout", "set --path litellmSettings.request_timeout 600")

"""The stand-ins do as the official images do, as far as their Dockerfiles tell."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest

from infra import edge, postgres, redis
from tests.stack_config import PROJECT, project_file
from toolchain.__main__ import IMAGE_SETTINGS, REDIS_IMAGE
from toolchain.maintenance.official_images import load
from toolchain.recipes import STAND_INS

TABLE = load()
STOOD_IN_FOR = [it for it in TABLE["images"] if it.get("stand_in")]
BY_IMAGE: dict[str, Any] = {"ids": lambda it: it["image"]}
FIELDS = ("entrypoint", "command", "workdir", "ports", "volumes", "stop_signal")
LIST = re.compile(r"^\[.*\]$")


def interface(part: str) -> dict[str, Any]:
    """What the last stage of a stand-in's Dockerfile promises, in the words of the table."""
    text = (PROJECT / "images" / part / "Dockerfile").read_text(encoding="utf-8")
    last = re.sub(r"\\\n\s*", " ", text.rpartition("\nFROM ")[2])
    found: dict[str, Any] = {}
    for instruction, value in re.findall(r"^([A-Z]+) (.+)$", last, re.MULTILINE):
        match instruction:
            case "ENTRYPOINT" | "CMD":
                assert LIST.match(value)
                found["entrypoint" if instruction == "ENTRYPOINT" else "command"] = json.loads(value)
            case "VOLUME" | "EXPOSE":
                key, kind = ("volumes", str) if instruction == "VOLUME" else ("ports", int)
                found[key] = [kind(each) for each in value.split()]
            case "ENV":
                found["environment"] = dict(each.split("=", 1) for each in shlex.split(value))
            case _:
                found[{"WORKDIR": "workdir", "STOPSIGNAL": "stop_signal", "USER": "user"}.get(instruction, "")] = (
                    value
                )
    return found


@pytest.mark.parametrize("official", STOOD_IN_FOR, **BY_IMAGE)
def test_a_stand_in_has_the_interface_of_the_official_image(official: dict[str, Any]) -> None:
    """Each difference is in the table with its reason, and the table has no others."""
    own, differs = interface(official["part"]), set()
    for field in FIELDS:
        if own.get(field) != official.get(field):
            differs.add(field)
    environment = own.get("environment", {})
    wanted = official.get("environment", {})
    if set(environment) - set(wanted) - {"PATH"} or any(
        environment.get(key) != value for key, value in wanted.items()
    ):
        differs.add("environment")
    assert differs == set(TABLE["differs"].get(official["part"], {}))
    user = own.get("user", "root")
    assert official["user"].startswith(user)


def test_all_that_can_be_stood_in_for_is_in_the_table() -> None:
    assert {it["part"] for it in STOOD_IN_FOR} == set(STAND_INS)
    keys = {**IMAGE_SETTINGS, "valkey": REDIS_IMAGE}
    defaults = {str(project_file()["config"][keys[part]]["default"]) for part in STAND_INS}
    assert {it["image"] for it in STOOD_IN_FOR} == defaults


def test_the_user_ids_that_secrets_are_given_to_are_those_of_the_images() -> None:
    ids: dict[str, set[int]] = {it["part"]: set() for it in TABLE["images"]}
    for it in TABLE["images"]:
        ids[it["part"]] |= {it["user_id"]} if "user_id" in it else set()
    assert ids == {
        "litellm": set(),
        "postgres": {postgres.USER_ID},
        "haproxy": {edge.USER_ID},
        "valkey": {redis.USER_ID},
    }


@pytest.mark.parametrize("official", [it for it in TABLE["images"] if it["part"] == "postgres"], **BY_IMAGE)
def test_the_volume_is_mounted_where_the_image_has_it(official: dict[str, Any]) -> None:
    mounted_at, data = postgres._layout(int(official["environment"]["PG_MAJOR"]))
    assert [mounted_at] == official["volumes"]
    assert data == official["environment"]["PGDATA"]

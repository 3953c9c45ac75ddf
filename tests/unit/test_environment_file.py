"""`.env`, as each `up` writes it."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from toolchain import environment_file
from toolchain.progress import SetupError

if TYPE_CHECKING:
    from pathlib import Path

OUTPUTS = {
    "litellmUrl": "https://localhost:4000",
    "litellmApiKey": "sk-1",
    "databaseUrl": "postgresql://app:p@localhost/app?a=b&c=d",
    "replicas": 2,
}


def test_it_follows_the_stack_and_keeps_other_lines(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# mine\nMINE=1\nexport LITELLM_URL=http://localhost:4000\n")
    environment_file.write(path, OUTPUTS)  # type: ignore[arg-type]
    assert path.read_text() == (
        "# mine\nMINE=1\nLITELLM_URL=https://localhost:4000\nLITELLM_API_KEY=sk-1\n"
        "DATABASE_URL='postgresql://app:p@localhost/app?a=b&c=d'\n"
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_the_database_of_a_litellm_that_has_none_any_more_goes(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    with_database = {**OUTPUTS, "litellmDatabaseUrl": "postgresql://litellm_1@localhost/litellm"}
    environment_file.write(path, with_database)  # type: ignore[arg-type]
    assert "LITELLM_DATABASE_URL=postgresql://litellm_1@localhost/litellm" in path.read_text()
    environment_file.write(path, OUTPUTS)  # type: ignore[arg-type]
    assert "LITELLM_DATABASE_URL" not in path.read_text()


def test_a_stack_without_a_gateway_leaves_it_alone(tmp_path: Path) -> None:
    environment_file.write(tmp_path / ".env", {"databaseUrl": "x"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("made", "why"), [(b"\xe9", "is not UTF-8"), (None, "cannot be written")])
def test_what_cannot_be_kept_is_reported(tmp_path: Path, made: bytes | None, why: str) -> None:
    path = tmp_path / ".env"
    path.write_bytes(made) if made else path.mkdir()
    with pytest.raises(SetupError, match=f"the stack is up, but .*{why}"):
        environment_file.write(path, OUTPUTS)  # type: ignore[arg-type]

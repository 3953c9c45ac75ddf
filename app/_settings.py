"""The module's settings, from its environment."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Annotated

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, AnyHttpUrl, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from app._errors import NotConfiguredError

ENVIRONMENT_FILE = ".env"
FILE = Path(ENVIRONMENT_FILE)
HINT = "set it in the environment or in .env, which `make up` writes"


def _key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value().strip()
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("a key has at least one character, and no spaces or special characters")
    return SecretStr(text)


def _database_url(url: SecretStr) -> SecretStr:
    try:
        conninfo_to_dict(url.get_secret_value())
    except psycopg.Error:  # its message quotes the whole URL
        raise ValueError("not a database URL such as postgresql://user:password@host:5432/name") from None
    return url


def _root(url: AnyHttpUrl) -> AnyHttpUrl:
    if (url.path or "").rstrip("/").endswith("/v1"):
        raise ValueError("leave /v1 out: it is the address of the gateway, not of its API")
    return url


class Settings(BaseSettings):
    """Settings from environment variables of the same names, then from `.env` in the working directory."""

    model_config = SettingsConfigDict(
        env_file=ENVIRONMENT_FILE,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    litellm_url: Annotated[AnyHttpUrl, AfterValidator(_root)] = AnyHttpUrl("http://localhost:4000")
    """Where the gateway is."""
    litellm_api_key: Annotated[SecretStr, AfterValidator(_key)] | None = None
    """This client's key; needed for any request."""
    database_url: Annotated[SecretStr, AfterValidator(_database_url)] | None = None
    """The database with the organizations; needed by everything that reads them."""
    litellm_database_url: Annotated[SecretStr, AfterValidator(_database_url)] | None = None
    """LiteLLM's own database, if the stack has it; `llmctl` backs it up, restores and checks it.

    From `.env` only if `database_url` is too: the two belong to one stack.
    """

    @classmethod
    def load(cls) -> Settings:
        """Return the settings, which are read again only if a variable or the file has changed.

        Raises NotConfiguredError that names every problem and shows no value.
        """
        return _load(tuple(map(os.environ.get, VARIABLES)), _changed(FILE), _folder())

    @functools.cached_property
    def base_url(self) -> str:
        """The address of the OpenAI API at the gateway."""
        return f"{str(self.litellm_url).rstrip('/')}/v1"

    def required_api_key(self) -> str:
        """Return the client's key. Raises NotConfiguredError when it is not set."""
        if self.litellm_api_key is None:
            raise NotConfiguredError(f"LITELLM_API_KEY is not set: {HINT}")
        return self.litellm_api_key.get_secret_value()

    def required_database_url(self) -> str:
        """Return the database's URL. Raises NotConfiguredError when it is not set."""
        if self.database_url is None:
            raise NotConfiguredError(f"DATABASE_URL is not set: {HINT}")
        return self.database_url.get_secret_value()


VARIABLES = tuple(name.upper() for name in Settings.model_fields)


def _changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 -- each request asks, and making a Path takes longer than all else here
    except FileNotFoundError:  # the working directory was removed, and `.env` with it
        return None


@functools.lru_cache(maxsize=1)
def _load(_values: tuple[str | None, ...], _changed: int | None, _folder: str | None) -> Settings:
    try:
        made = Settings()
    except OSError as error:
        raise NotConfiguredError(
            f"{ENVIRONMENT_FILE} cannot be read ({error.strerror}); if another user wrote it: "
            f'sudo chown "$(id -un)" {ENVIRONMENT_FILE}'
        ) from None
    except UnicodeDecodeError:
        raise NotConfiguredError(f"{ENVIRONMENT_FILE} is not UTF-8: save it as UTF-8, or remove it") from None
    except ValidationError as error:
        problems = "; ".join(f"{str(each['loc'][0]).upper()}: {each['msg']}" for each in error.errors())
        raise NotConfiguredError(f"{problems} ({HINT})") from None
    if os.environ.get("DATABASE_URL") and not os.environ.get("LITELLM_DATABASE_URL"):
        return made.model_copy(update={"litellm_database_url": None})  # the value in `.env` may be another stack's
    return made

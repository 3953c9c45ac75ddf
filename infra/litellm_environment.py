"""LiteLLM's environment: the variables and files that a stack config gives it, and those that it must not have.

`litellmEnvironment` has variables, `litellmFiles` files. Both are files in the replicas: litellm/entrypoint.py turns
those in `/run/secrets` into environment variables, and leaves those in its folder `files` where they are.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic.alias_generators import to_camel

from infra.problem import Problem
from infra.workload import SECRETS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import SecretStr

REFERENCE = "os.environ/"
"""How LiteLLM's config names a variable."""
FOLDER = "files"
FILES = f"{SECRETS}/{FOLDER}"
"""The folder of `litellmFiles` in a replica."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,47}")
"""The name of a Swarm secret has at most 64 characters, and `litellm-` and the ending use up some of them."""
FILE = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}\.[a-z0-9]{1,10}")
MAX_BYTES = 500_000
"""A Swarm secret has at most 500 KB."""
NAMED = ("openai_api_key", "anthropic_api_key")
"""Keys of the stack config that set a variable themselves: the one with their own name, in capitals."""
UNVERIFIED = (
    "would send keys and prompts to anyone who answers. Put the certificate of a private authority into "
    f"litellmFiles, and set SSL_CERT_FILE in litellmEnvironment to {FILES}/NAME"
)
REFUSED = {
    "LITELLM_MASTER_KEY=.*": "is the stack's own, which the edge uses: set masterKey instead",
    "LITELLM_SALT_KEY=.*": "is the stack's own: set saltKey instead",
    r"(DATABASE|DIRECT)_\w+=.*|IAM_TOKEN_DB_AUTH=.*|LITELLM_PGBOUNCER\w*=.*": (
        "would give LiteLLM another database than the stack's: litellmDatabase gives it one"
    ),
    "STORE_PROMPTS_IN_SPEND_LOGS=.*": "would keep prompts and answers in the database",
    "STORE_MODEL_IN_DB=.*": "serves models that no preview shows: use `models`",
    r"(DISABLE_SCHEMA_UPDATE|USE_\w*MIGRAT\w*|LITELLM_MIGRATION_\w+|PRISMA_\w+)=.*": (
        "is for what changes LiteLLM's schema, which an `up` does before the replicas"
    ),
    r"LLM_GATEWAY_\w+=.*": "is for this project's own programs: set fastStreams and fetchUrls instead",
    "(HF_HUB_OFFLINE|HOME|LITELLM_LOCAL_MODEL_COST_MAP|LITELLM_MODE)=.*": (
        "is set by the stack: replicas start and answer without asking other servers first"
    ),
    r"(PATH|IFS|PYTHON\w*|LD_\w+)=.*": "decides which programs run in a replica",
    r"(HOST|PORT|NUM_WORKERS|SSL_(KEY|CERT)FILE_PATH|KEEPALIVE_TIMEOUT|LIMIT_CONCURRENCY)=.*"
    r"|(TIMEOUT_WORKER_HEALTHCHECK|PROMETHEUS_METRICS_PORT|MAX_REQUESTS_BEFORE_RESTART\w*)=.*": (
        "changes how a replica listens and when it ends, which the edge relies on"
    ),
    r"(CONFIG_FILE_PATH|WORKER_CONFIG|LITELLM_CONFIG_BUCKET_\w+)=.*": (
        "names a configuration other than the one that the preview shows"
    ),
    "(DEBUG|DETAILED_DEBUG)=.*|LITELLM_LOG=(?i:debug)": "would write keys and prompts to the log",
    r"SSL_VERIFY=(?i:false|0|no)": UNVERIFIED,
    r"MODEL_\d+_API_KEY=.*": "is the variable of a key in modelKeys",
}
"""Variables that are refused, as NAME=value, with the reason."""
SECRET_NAME = re.compile(
    r"(?<!PUBLIC_)KEY$|TOKEN$|SECRET|PASSWORD|PASSPHRASE|CREDENTIAL|HEADERS$|AUTHORIZATION|DSN$|WEBHOOK",
    re.IGNORECASE,
)
"""Names of variables and parameters whose values are secret."""
PASSWORD_IN_URL = re.compile(r"\w+://[^/@\s]*:[^/@\s]+@")
PLACEHOLDER = re.compile(r"(?!sk-)[A-Za-z][A-Za-z_-]{0,19}|sk-\d{1,8}")
"""A placeholder `api_key`, for a server that needs no key: `none`, `EMPTY`, `not-needed`, `sk-1234`."""
NAMES_A_FILE = re.compile(rf"{FILES}/([^\s,;:\"']+)")


def variables(values: Mapping[str, Any]) -> dict[str, SecretStr]:
    """LiteLLM's variables by name, from the valid fields of a stack config, without the stack's own."""
    named = {field.upper(): values[field] for field in NAMED if values.get(field) is not None}
    return dict(sorted({**values.get("litellm_environment", {}), **named}.items()))


def set_arguments(variable: str) -> str:
    """What to type after `pulumi config set` to set a variable."""
    if variable.lower() in NAMED:
        return f"--secret {to_camel(variable.lower())} …"
    return f"--secret --path litellmEnvironment.{variable} …"


def refusal(name: str, text: str = "") -> str | None:
    """Why a variable must not be this text."""
    return next((why for what, why in REFUSED.items() if re.fullmatch(what, f"{name}={text}", re.DOTALL)), None)


def must_be_encrypted(key: str, name: str, value: object) -> bool:
    """Whether the stack config may have this variable or file only as a secret; `key` is where it is."""
    text = str(value)
    if key == "litellmFiles":
        return "PRIVATE KEY" in text or "BEGIN CERTIFICATE" not in text
    if PASSWORD_IN_URL.search(text):
        return True
    return SECRET_NAME.search(name) is not None and not text.startswith(f"{FILES}/")


def problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with the variables and files of a stack config; `values` has its valid fields."""
    for name, value in values.get("litellm_environment", {}).items():
        entry = f"litellmEnvironment.{name}"
        remove = f"rm --path 'litellmEnvironment[\"{name}\"]'"
        text = value.get_secret_value()
        if not VARIABLE.fullmatch(name):
            what = "is not a valid variable name: at most 48 letters, digits and `_`, and the first is not a digit"
            yield Problem(entry, what, remove)
        elif name.lower() in NAMED and values.get(name.lower()):
            field = to_camel(name.lower())
            yield Problem(entry, f"is set by {field} too: keep one of the two", f"rm {field}")
        elif why := refusal(name, text):
            yield Problem(entry, f"cannot be set: it {why}", remove)
        elif "\0" in text or len(text.encode()) > MAX_BYTES:
            yield Problem(entry, f"is not text of at most {MAX_BYTES:,} bytes", f"set --secret --path {entry} VALUE")
        yield from missing_files(entry, text, values)
    for name, value in values.get("litellm_files", {}).items():
        place = f'litellmFiles["{name}"]'
        if not FILE.fullmatch(name):
            what = "is not a valid file name: at most 32 of a-z, 0-9, `_`, `-`, then an extension, such as ca.pem"
            yield Problem(f"litellmFiles.{name}", what, f"rm --path '{place}'")
        elif len(value.get_secret_value().encode()) > MAX_BYTES:
            what = f"is larger than {MAX_BYTES:,} bytes, the limit of a secret in Swarm"
            yield Problem(f"litellmFiles.{name}", what, f"rm --path '{place}'")


def in_clear(place: str, value: object, name: str = "") -> Iterator[str]:
    """Each place in a part of LiteLLM's config, which is not secret, that has a key instead of its variable."""
    if isinstance(value, dict):
        for each, inner in value.items():
            yield from in_clear(f"{place}.{each}", inner, str(each))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from in_clear(f"{place}[{index}]", inner, name)
    elif isinstance(value, str) and not value.startswith((REFERENCE, f"{FILES}/")):
        stands_for_none = name == "api_key" and PLACEHOLDER.fullmatch(value) is not None
        is_key = SECRET_NAME.search(name) is not None and not stands_for_none
        if PASSWORD_IN_URL.search(value) or (value and is_key):
            yield place


def named_variables(value: object) -> Iterator[str]:
    """Each variable that a part of LiteLLM's config names."""
    if isinstance(value, dict):
        for each in value.values():
            yield from named_variables(each)
    elif isinstance(value, list):
        for each in value:
            yield from named_variables(each)
    elif isinstance(value, str) and value.startswith(REFERENCE):
        yield value.removeprefix(REFERENCE)


def missing_files(place: str, text: str, values: Mapping[str, Any]) -> Iterator[Problem]:
    """Each file that a text of the stack config names but `litellmFiles` does not have."""
    if "litellm_files" not in values:
        return
    for name in dict.fromkeys(NAMES_A_FILE.findall(text)):
        if name not in values["litellm_files"]:
            yield Problem(
                place,
                f"names the file {name}, which litellmFiles does not have",
                f"set --secret --path 'litellmFiles[\"{name}\"]' < {name}",
            )

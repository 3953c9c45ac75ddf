"""The page of providers, `docs/providers.md`, from `litellm/providers.yaml`."""

from __future__ import annotations

import shlex
import textwrap
from typing import TYPE_CHECKING

from infra import providers
from infra.litellm_environment import FILES, must_be_encrypted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from infra.providers import Provider

WIDTH = 118
"""How many characters a line of prose has at most."""
SET = "./pulumiw config set"
ABOUT = f"""
# Providers

<!-- Written by `make docs` from litellm/providers.yaml. Change that, then run it again. -->

How a model of each provider is added to a stack. The commands are for the stack that is selected, and for its
first model: take `models[1]` for the second. Where a command ends without a value, Pulumi asks for it, so that
a key is in no process list and no shell history.

A model is served when every variable that its entry names is there. Else `./pulumiw preview` says which one is
missing, with the command that sets it, and the others are served without it. A provider that is not on this
page works as well: write the entry in LiteLLM's form, and name the variable of its key in it (`api_key:
os.environ/NAME`).

## Two forms of a model

In short: `name`, which callers ask for; `model`, which is LiteLLM's provider/model; `apiBase` for a server of
your own; `inputCostPerToken` and `outputCostPerToken` in US dollars. Without prices a provider's model has
those of LiteLLM's list, and a model on a server of your own costs nothing.

In LiteLLM's own form: `model_name`, `litellm_params`, `model_info`, as in LiteLLM's `model_list`. It takes all
that LiteLLM does: several deployments of one name with their `weight`, `order`, `rpm` and `tpm`, patterns
(`model_name: groq/*` with `model: groq/*`), and what a provider needs beside a key. Write a longer list into
the stack's file:

```yaml
config:
  llm-infrastructure:models:
    - model_name: gpt
      litellm_params:
        model: azure/east
        api_base: https://east.openai.azure.com
        api_version: '2024-10-21'
        weight: 3
    - model_name: gpt
      litellm_params:
        model: azure/west
        api_base: https://west.openai.azure.com
        api_version: '2024-10-21'
        weight: 1
```

Keys are variables of `litellmEnvironment`, and entries name them `os.environ/NAME`; a key in clear in an entry
is refused. Files, as a service account's, are `litellmFiles`, and entries find them in `{FILES}`. Both are
files in the replicas alone, and a change replaces the replicas in waves, without interruption.
"""
PROVEN = """
## What was tried of each

Each provider was asked for a completion, a stream, a call of a function (whole and as a stream), a vector, and for
what it says of a mistake (400), a refused key (401) and too many requests (429), before a server that speaks its
protocol as its documents have it, by LiteLLM {releases}. "yes" is that the caller got what the provider
said, with its status; "broken off" that half a stream ends with an error, and not with "stop"; "reasoning" that what
the model thought is no part of the answer's text, and is counted; "key" that every request went to the provider's own
host with the provider's key, and no key to anybody else: for Bedrock the signature was verified, for Vertex AI the
exchange of the service account's signature for a token. "-" is that the provider has no vectors; a number is the note
on what one release does otherwise.

{table}

{notes}

The real providers were not asked.
"""
COLUMNS = ("chat", "stream", "broken off", "tools", "reasoning", "embedding", "error", "key")
OTHERWISE = """
## What callers are told otherwise than the provider said

The gateway puts these right, the same on each release:

- The status of errors, and streams that are broken off.
- Why an answer ended. A full context is "length". A reason that LiteLLM would call "stop", though it does not say
  that the answer is whole, is told as the provider has it: `pause_turn`.
- A blank message, for which newer releases write a sentence of their own to Anthropic. It goes there as it came, and
  is refused there.
- `reasoning_effort` without `max_tokens`, at which newer releases leave older Claude models a tenth of what they may
  write otherwise. It changes no limit.

What is left:

- 1.55.0 loses a refusal that is not streamed: the answer is empty. 1.108.14 has it in `provider_specific_fields`,
  where the app module finds it.
- A page of HTML with status 200, as a proxy's sign-in, is a 400 or a 500 that quotes it.
"""
AFTER = """
## Call it from the OpenAI SDK

Every provider's models are called the same way: the gateway's address as `base_url`, a client's key, the
model's name.

```python
import os

from openai import OpenAI

client = OpenAI(base_url="http://localhost:4000/v1", api_key=os.environ["LITELLM_API_KEY"])
answer = client.chat.completions.create(model="gemini", messages=[{{"role": "user", "content": "hello"}}])
```

```js
import OpenAI from "openai";

const client = new OpenAI({{ baseURL: "http://localhost:4000/v1", apiKey: process.env.LITELLM_API_KEY }});
const answer = await client.chat.completions.create({{
  model: "gemini",
  messages: [{{ role: "user", content: "hello" }}],
}});
```

`./pulumiw stack output litellmUrl` is the address, without `/v1`; `./pulumiw stack output litellmApiKey
--show-secrets` the key of client `app`. [clients.md](clients.md) has other clients' keys, and which paths there
are. Python code of this project uses the `app` module, which knows both.

## Callbacks

`litellmSettings` is laid over `litellm_settings` of [litellm/config.yaml](../litellm/config.yaml),
`routerSettings` and `generalSettings` over their sections. A callback is taken when its variables are there;
`preview` names those that are missing.

{callbacks}

Python code of your own cannot be a callback: a replica has none but LiteLLM's and this project's.

## A private authority

For providers and servers whose certificates come from an authority of your own. The file must hold the public
authorities too if public providers are asked:

```sh
{set} --path 'litellmFiles["ca.pem"]' < ca.pem
{set} --path litellmEnvironment.SSL_CERT_FILE {files}/ca.pem
./pulumiw up
```

`SSL_VERIFY=False` is refused: keys and prompts would go to anyone who answers. Seen with LiteLLM 1.55.0 and
1.108.14, for every provider of this page.

Python 3.13, as in the image of 1.108.14 that is built here, accepts only certificates as RFC 5280 has them: with the
key identifiers of the authority and of what it signed, and with the authority's key usage. Otherwise no provider
behind it is reached: "certificate verify failed: Missing Authority Key Identifier".

## An outgoing proxy

```sh
{set} --path litellmEnvironment.HTTPS_PROXY http://proxy.example:3128
{set} --path litellmEnvironment.NO_PROXY localhost,127.0.0.1,host.docker.internal
./pulumiw up
```

A URL with a password in it must be set with `--secret`. Seen with LiteLLM 1.55.0 and 1.108.14: requests to
every provider of this page go to the proxy, those to hosts of `NO_PROXY` do not.
"""


def page() -> str:
    """The whole page."""
    table = providers.load()
    parts = [ABOUT]
    for prefix, provider in listed():
        parts.append(_section(prefix, provider))
    parts += [_proven(), OTHERWISE]
    shown = {name: table.callbacks[name] for name in ("langfuse", "otel", "datadog")}
    parts.append(
        AFTER.format(
            files=FILES,
            set=SET,
            callbacks="\n\n".join(_block(callback_commands(name, it.variables)) for name, it in shown.items()),
        )
    )
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _proven() -> str:
    """What of each provider was seen to work, and with which release it does not."""
    releases = [it.version for it in providers.load().releases]
    rows = [f"| provider | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    notes: list[str] = []
    for _, provider in listed():
        cells = []
        for column in COLUMNS:
            cell = "yes" if column != "embedding" or provider.embedding else "-"
            for version in releases:
                if sentence := provider.otherwise.get(version, {}).get(column):
                    notes.append(f"{len(notes) + 1}. {provider.title}, {column}, LiteLLM {version}: {sentence}.")
                    cell += f" ({len(notes)})"
            cells.append(cell)
        rows.append(f"| {provider.title} | {' | '.join(cells)} |")
    return PROVEN.format(
        releases=" and ".join(releases),
        table="\n".join(rows),
        notes="\n".join(
            textwrap.fill(each, WIDTH, subsequent_indent="   ", break_on_hyphens=False) for each in notes
        ),
    )


def listed() -> Iterator[tuple[str, Provider]]:
    """The providers of the page, with the prefixes of their models."""
    table = providers.load()
    yield from ((prefix, it) for prefix, it in table.providers.items() if it.title)
    yield table.compatible_prefix, table.compatible


def commands(prefix: str, provider: Provider) -> list[str]:
    """What adds a provider's first model to a stack that has none."""
    names = [name for name in (provider.key, *provider.variables) if name]
    secret = [name for name in names if must_be_encrypted("litellmEnvironment", name, "")]
    plain = {f"litellmEnvironment.{name}": "…" for name in names if name not in secret}
    return [
        *(f"{SET} --secret --path litellmEnvironment.{name}" for name in secret),
        *(f"{SET} --secret --path 'litellmFiles[\"{name}\"]' < {name}" for name in provider.files),
        _set_all({**plain, **_entry(prefix, provider)}),
        "./pulumiw up",
    ]


def callback_commands(name: str, variables: tuple[str, ...]) -> list[str]:
    """What turns a callback on."""
    return [
        *(
            f"{SET} --secret --path litellmEnvironment.{each}"
            if must_be_encrypted("litellmEnvironment", each, "")
            else f"{SET} --path litellmEnvironment.{each} …"
            for each in variables
        ),
        f"{SET} --path 'litellmSettings.callbacks[0]' {name}",
        "./pulumiw up",
    ]


def _entry(prefix: str, provider: Provider) -> Mapping[str, str]:
    """The first entry of `models`, by path: in short where that is enough."""
    model = f"{prefix}/{provider.example}"
    name = prefix.replace("_", "-")
    if not provider.needs and not provider.parameters:
        server = {"models[0].apiBase": provider.server} if provider.server else {}
        return {"models[0].name": name, "models[0].model": model, **server}
    parameters = {"model": model, **provider.needs, **provider.parameters}
    return {
        "models[0].model_name": name,
        **{f"models[0].litellm_params.{key}": str(value) for key, value in parameters.items()},
    }


def _set_all(values: Mapping[str, str]) -> str:
    pairs = (f"--plaintext {shlex.quote(f'{path}={value}')}" for path, value in values.items())
    return " \\\n  ".join(("./pulumiw config set-all --path", *pairs))


def _section(prefix: str, provider: Provider) -> str:
    facts = [f"[What it is asked]({provider.page}).", provider.note.strip()]
    if provider.files:
        facts.insert(0, " ".join(f"`{name}` is {what}." for name, what in provider.files.items()))
    if provider.package:
        facts.append(
            f"LiteLLM's image needs the Python package `{provider.package}`: `preview` warns if it is missing."
        )
    text = textwrap.fill(
        " ".join(fact for fact in facts if fact), WIDTH, break_long_words=False, break_on_hyphens=False
    )
    return f"## {provider.title}\n\n{_block(commands(prefix, provider))}\n\n{text}"


def _block(lines: list[str]) -> str:
    return "\n".join(["```sh", *lines, "```"])

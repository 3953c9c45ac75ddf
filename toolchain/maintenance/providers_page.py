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
"""The maximum length of a line of prose."""
SET = "./pulumiw config set"
ABOUT = f"""
# Providers

<!-- Written by `make docs` from litellm/providers.yaml. Change that, then run it again. -->

How to add a model of each provider. The commands work on the selected stack and add its first model. Use
`models[1]` for the second one, and so on: `./pulumiw config get models` shows those that are there. If a command
ends without a value, Pulumi asks for it, so the key is in no process list and no shell history.

With the first key of any provider the demo provider stops, for all models: `gpt-4o` is then served only with OpenAI's
key, and `llmctl chat` needs `--model`.

A model is served when every variable that its entry names is set. Otherwise it is left out, and `./pulumiw preview`
names the variable and the command that sets it. Providers that are not on this page work too: write the entry in
LiteLLM's form, and name the variable of the key in it (`api_key: os.environ/NAME`).

## Two forms of a model

The short form has `name`, which callers ask for; `model`, LiteLLM's provider/model; `apiBase` for your own server;
and `inputCostPerToken` and `outputCostPerToken` in US dollars. Without prices, a provider's model has those of
LiteLLM's list, and what a model on your own server costs is unknown.

A server on the engine's own machine is `http://host.docker.internal:PORT`. It must listen on an address that
containers reach, not on 127.0.0.1 alone (Docker Desktop reaches that too): Ollama with `OLLAMA_HOST=0.0.0.0`, and a
firewall that keeps others out.

LiteLLM's own form has `model_name`, `litellm_params` and `model_info`, as in LiteLLM's `model_list`. It accepts
everything that LiteLLM does: several deployments of one name with their `weight`, `order`, `rpm` and `tpm`, patterns
(`model_name: groq/*` with `model: groq/*`), and what a provider needs besides a key. Write a longer list into
`Pulumi.STACK.yaml`:

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

Keys are variables in `litellmEnvironment`, and entries name them as `os.environ/NAME`. A key in clear in an entry is
refused. Files, such as a service account's key, are in `litellmFiles`, and entries find them in `{FILES}`.
Only the replicas get them. A change replaces the replicas in waves, without interruption.
"""
PROVEN = """
## What was tested

The real providers were not called. LiteLLM {releases} called a server that speaks each provider's
protocol as its documents describe it. "yes" means that the caller got what the provider sent, with its status. "-"
means that the provider has no embeddings. A number is a note below, on a release that does something else.

| column | what was seen |
|---|---|
| chat, stream, embedding | an answer in one piece, a stream, a vector |
| broken off | half a stream ends with an error, not with "stop" |
| tools | a function call, whole and as a stream |
| reasoning | what the model thought is not in the answer's text, and is counted |
| error | a mistake (400), a refused key (401), too many requests (429) |
| key | every request went to the provider's own host with the provider's key, and no key went anywhere else |

For Bedrock the signature was verified, and for Vertex AI the exchange of the service account's signature for a token.

{table}

{notes}
"""
COLUMNS = ("chat", "stream", "broken off", "tools", "reasoning", "embedding", "error", "key")
OTHERWISE = """
## Where an answer differs from the provider's

The gateway corrects these, the same on each release:

- The status of errors, and streams that are broken off.
- Why an answer ended. A full context is "length". LiteLLM calls `pause_turn` "stop", although the answer is not
  complete; callers get `pause_turn`.
- A blank message. Newer releases replace it with a sentence of theirs when they call Anthropic. Here it is sent as it
  is, and Anthropic refuses it.
- `reasoning_effort` without `max_tokens`. With it, newer releases cut the longest answer of older Claude models to a
  tenth. Here it changes no limit.

What remains:

- 1.55.0 loses a refusal that is not streamed: the answer is empty. 1.108.14 has it in `provider_specific_fields`,
  where the app module finds it.
- A page of HTML with status 200, such as a proxy's sign-in page, becomes a 400 or a 500 that quotes it.
"""
AFTER = """
## Call it from the OpenAI SDK

All models are called the same way: with the gateway's address as `base_url`, a client's key, and the model's name.

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

`.env` has the address, without `/v1`, and the key of client `app`. [clients.md](clients.md) has the keys of other
clients, and the API paths. Python code in this project uses the [app module](app.md), which reads both by itself.

## Callbacks

`litellmSettings` is merged into `litellm_settings` of [litellm/config.yaml](../litellm/config.yaml), and
`routerSettings` and `generalSettings` into their sections. A callback is used when its variables are set. `preview`
names those that are missing.

{callbacks}

Your own Python code cannot be a callback: a replica has only LiteLLM's and this project's.

## A private authority

For providers and servers whose certificates come from your own authority. If you also use public providers, the file
must have the public authorities too:

```sh
{set} --path 'litellmFiles["ca.pem"]' < ca.pem
{set} --path litellmEnvironment.SSL_CERT_FILE {files}/ca.pem
./pulumiw up
```

`SSL_VERIFY=False` is refused, because keys and prompts would go to anyone who answers. Tested with LiteLLM 1.55.0 and
1.108.14, for every provider of this page.

The image of 1.108.14 that is built here has Python 3.13, which accepts only certificates that follow RFC 5280: with
key identifiers for the authority and for what it signed, and with the authority's key usage. Other certificates fail
with "certificate verify failed: Missing Authority Key Identifier".

## An outgoing proxy

```sh
{set} --path litellmEnvironment.HTTPS_PROXY http://proxy.example:3128
{set} --path litellmEnvironment.NO_PROXY localhost,127.0.0.1,host.docker.internal
./pulumiw up
```

Set a URL that has a password with `--secret`. Tested with LiteLLM 1.55.0 and 1.108.14: requests to every provider of
this page go to the proxy, and those to hosts in `NO_PROXY` do not.
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
    """What was seen to work with each provider, and with which releases it does not."""
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
    """The commands that add a provider's first model to a stack without any."""
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
    """The commands that turn a callback on."""
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
    """The first entry of `models`, by path: in short form if that is enough."""
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
    facts = [f"[The provider's documents]({provider.page}).", provider.note.strip()]
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

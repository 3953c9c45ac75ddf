// Anthropic's SDK for Node, as its documentation has it.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({
  apiKey: process.env.GATEWAY_KEY,
  baseURL: process.env.GATEWAY_URL,
  maxRetries: 0,
});
const ask = (content, model = "claude-3-5-sonnet") => ({ model, max_tokens: 50, messages: [{ role: "user", content }] });

const answer = await client.messages.create(ask("hello"));
assert.match(answer.content[0].text, /You said: hello/);
console.log("chat ok");

assert.match(await client.messages.stream(ask("hello")).finalText(), /You said: hello/);
console.log("stream ok");

await assert.rejects(client.messages.stream(ask("[[demo cut=6]] hello")).finalText());
console.log("broken-stream ok");

await assert.rejects(client.messages.create(ask("hello", "claude")), (error) => {
  assert(error instanceof Anthropic.NotFoundError);
  return /claude-3-5-sonnet/.test(error.message);
});
console.log("unknown-model ok");

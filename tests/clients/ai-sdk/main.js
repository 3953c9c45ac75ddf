// Vercel's AI SDK with its provider for OpenAI.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { embed, generateText, jsonSchema, streamText, tool } from "ai";

const gateway = createOpenAI({ apiKey: process.env.GATEWAY_KEY, baseURL: `${process.env.GATEWAY_URL}/v1` });
const model = gateway.chat("gpt-4o");
const asked = { model, prompt: "hello", maxRetries: 0 };

assert.match((await generateText(asked)).text, /You said: hello/);
console.log("chat ok");

let text = "";
for await (const part of streamText(asked).textStream) text += part;
assert.match(text, /You said: hello/);
console.log("stream ok");

const weather = tool({ description: "The weather", inputSchema: jsonSchema({ type: "object", properties: {} }) });
assert.match((await generateText({ ...asked, tools: { weather } })).text, /You said: hello/);
console.log("tools ok");

const { embedding } = await embed({ model: gateway.embedding("text-embedding-3-small"), value: "hello", maxRetries: 0 });
assert.equal(embedding.length, 1536);
console.log("embeddings ok");

// Its default: OpenAI's Responses, which LiteLLM 1.55.0 does not have.
const responses = { ...asked, model: gateway("gpt-4o") };
if (process.env.GATEWAY_RELEASE === "1.55.0") {
  await assert.rejects(generateText(responses), /since LiteLLM/);
} else {
  assert.match((await generateText(responses)).text, /You said: hello/);
  text = "";
  for await (const part of streamText(responses).textStream) text += part;
  assert.match(text, /You said: hello/);
}
console.log("responses ok");

await assert.rejects(generateText({ ...asked, model: gateway.chat("gpt4o") }), (error) => {
  assert.equal(error.statusCode, 404);
  return /gpt-4o/.test(error.message);
});
console.log("unknown-model ok");

// LangChain for JavaScript with OpenAI's models.
import assert from "node:assert/strict";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";

const gateway = {
  apiKey: process.env.GATEWAY_KEY,
  configuration: { baseURL: `${process.env.GATEWAY_URL}/v1` },
  maxRetries: 0,
};
const chat = new ChatOpenAI({ model: "gpt-4o", ...gateway });

assert.match((await chat.invoke("hello")).text, /You said: hello/);
console.log("chat ok");

let text = "";
for await (const chunk of await chat.stream("hello")) text += chunk.text;
assert.match(text, /You said: hello/);
console.log("stream ok");

const weather = tool(({ city }) => city, {
  name: "weather",
  description: "The weather of a city",
  schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
});
const { tool_calls: calls } = await chat.bindTools([weather]).invoke("[[demo answer=tools]]");
assert.deepEqual(calls.map((call) => call.args), [{ city: "Paris" }]);
console.log("tools ok");

const vector = await new OpenAIEmbeddings({ model: "text-embedding-3-small", ...gateway }).embedQuery("hello");
assert.equal(vector.length, 1536);
assert.ok(vector.some((value) => value !== 0));
console.log("embeddings ok");

await assert.rejects(new ChatOpenAI({ model: "gpt4o", ...gateway }).invoke("hello"), (error) => {
  assert.equal(error.status, 404);
  return /gpt-4o/.test(error.message);
});
console.log("unknown-model ok");

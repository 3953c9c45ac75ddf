// OpenAI's SDK for Node, as its documentation has it.
import assert from "node:assert/strict";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import OpenAI from "openai";

const client = new OpenAI({
  apiKey: process.env.GATEWAY_KEY,
  baseURL: `${process.env.GATEWAY_URL}/v1`,
  maxRetries: 0,
});
const messages = [{ role: "user", content: "hello" }];

const answer = await client.chat.completions.create({ model: "gpt-4o", messages });
assert.match(answer.choices[0].message.content, /You said: hello/);
console.log("chat ok");

let text = "";
for await (const chunk of await client.chat.completions.create({ model: "gpt-4o", messages, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
assert.match(text, /You said: hello/);
console.log("stream ok");

// It asks for base64 by itself.
const vector = (await client.embeddings.create({ model: "text-embedding-3-small", input: "hello" })).data[0].embedding;
assert.equal(vector.length, 1536);
assert(vector.some((value) => value !== 0));
console.log("embeddings ok");

const names = [];
for await (const model of client.models.list()) names.push(model.id);
assert.deepEqual(names, [...names].sort());
console.log("models ok");

// A file that is read as it is sent, so that its length is not told.
const file = path.join(fs.mkdtempSync(path.join(os.tmpdir(), "client-")), "a.wav");
fs.writeFileSync(file, Buffer.alloc(200_000));
try {
  const heard = await client.audio.transcriptions.create({ model: "gpt-4o", file: fs.createReadStream(file) });
  assert.match(heard.text, /200000 bytes/);
  console.log("unknown-length ok");
} finally {
  fs.rmSync(path.dirname(file), { recursive: true });
}

await assert.rejects(client.chat.completions.create({ model: "gpt4o", messages }), (error) => {
  assert(error instanceof OpenAI.NotFoundError);
  assert.equal(error.code, "model_not_found");
  return /gpt-4o/.test(error.message);
});
console.log("unknown-model ok");

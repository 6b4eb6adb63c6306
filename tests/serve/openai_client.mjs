// The official JavaScript client against a server: chat whole and streamed, completions, embeddings, errors.
//
//   node openai_client.mjs ADDRESS PACKAGE MODEL
//
// PACKAGE is the directory of the npm package `openai`. Prints one JSON object; test_openai_client_js.py reads it.

import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [address, packageDirectory, model] = process.argv.slice(2);
const { default: OpenAI } = await import(pathToFileURL(join(packageDirectory, "index.mjs")));
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "none", maxRetries: 0 });
const request = {
  model,
  messages: [{ role: "user", content: "Say hello." }],
  max_tokens: 12,
  temperature: 0,
};
const results = { models: [] };

for await (const entry of client.models.list()) results.models.push(entry.id);

const whole = await client.chat.completions.create({ ...request, logprobs: true, top_logprobs: 2 });
results.whole = whole.choices[0].message.content;
results.usage = whole.usage;
results.logprobs = whole.choices[0].logprobs.content.length;

const stream = await client.chat.completions.create({
  ...request,
  stream: true,
  stream_options: { include_usage: true },
});
results.streamed = "";
for await (const chunk of stream) {
  results.streamed += chunk.choices[0]?.delta?.content ?? "";
  results.streamed_usage = chunk.usage ?? results.streamed_usage;
}

const helper = client.chat.completions.stream(request);
results.helper = await helper.finalContent();

const left = await client.chat.completions.create({ ...request, max_tokens: 400, stream: true });
for await (const _ of left) break; // aborts the request

const text = await client.completions.create({ model, prompt: ["The sea", "One,"], max_tokens: 3, temperature: 0 });
results.completions = text.choices.map((choice) => choice.index);

const vectors = await client.embeddings.create({ model, input: ["a cat", "a dog"] });
results.lengths = vectors.data.map((row) => Math.hypot(...row.embedding));

results.errors = [];
for (const wrong of [{ ...request, model: "gone" }, { ...request, temperature: 9 }]) {
  try {
    await client.chat.completions.create(wrong);
  } catch (error) {
    results.errors.push([error.constructor.name, error.status, error.param, error.code]);
  }
}
console.log(JSON.stringify(results));

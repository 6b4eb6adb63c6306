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
const told = { models: [] };

for await (const one of client.models.list()) told.models.push(one.id);

const whole = await client.chat.completions.create({ ...request, logprobs: true, top_logprobs: 2 });
told.whole = whole.choices[0].message.content;
told.usage = whole.usage;
told.logprobs = whole.choices[0].logprobs.content.length;

const stream = await client.chat.completions.create({
  ...request,
  stream: true,
  stream_options: { include_usage: true },
});
told.streamed = "";
for await (const chunk of stream) {
  told.streamed += chunk.choices[0]?.delta?.content ?? "";
  told.streamed_usage = chunk.usage ?? told.streamed_usage;
}

const helper = client.chat.completions.stream(request);
told.helper = await helper.finalContent();

const left = await client.chat.completions.create({ ...request, max_tokens: 400, stream: true });
for await (const _ of left) break; // aborts the request

const text = await client.completions.create({ model, prompt: ["The sea", "One,"], max_tokens: 3, temperature: 0 });
told.completions = text.choices.map((choice) => choice.index);

const vectors = await client.embeddings.create({ model, input: ["a cat", "a dog"] });
told.lengths = vectors.data.map((row) => Math.hypot(...row.embedding));

told.errors = [];
for (const wrong of [{ ...request, model: "gone" }, { ...request, temperature: 9 }]) {
  try {
    await client.chat.completions.create(wrong);
  } catch (error) {
    told.errors.push([error.constructor.name, error.status, error.param, error.code]);
  }
}
console.log(JSON.stringify(told));

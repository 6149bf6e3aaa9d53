// The official client for Node: a chat, a stream, the models. Arguments: the base URL and a model.
import assert from "node:assert";
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url, apiKey: "none" });
const asked = { model, messages: [{ role: "user", content: "Hello", name: "ann" }], max_completion_tokens: 8 };

const answer = await client.chat.completions.create({ ...asked, store: true, metadata: { a: "b" } });
assert(answer.choices[0].message.content);

let text = "";
let usage = null;
const options = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create({ ...asked, ...options })) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert(text);
assert(usage.completion_tokens > 0);

const models = [];
for await (const each of client.models.list()) models.push(each.id);
assert(models.includes(model));

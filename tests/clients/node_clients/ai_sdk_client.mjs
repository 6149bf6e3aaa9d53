// Vercel's AI SDK: a chat, a stream, the models. Arguments: the base URL and a model.
import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const [url, model] = process.argv.slice(2);
// The SDK lists no models itself: it is given a name from the server's list.
const listed = (await (await fetch(`${url}/models`)).json()).data.map((each) => each.id);
assert(listed.includes(model));
const provider = createOpenAICompatible({ name: "manylora", baseURL: url, includeUsage: true });
const messages = [
  { role: "user", content: "Hello" },
  { role: "assistant", content: "Hi" },
  { role: "user", content: "And now?" },
];

const answer = await generateText({ model: provider(model), messages, maxOutputTokens: 8 });
assert(answer.text);

let text = "";
for await (const part of streamText({ model: provider(model), messages, maxOutputTokens: 8 }).textStream) text += part;
assert(text);

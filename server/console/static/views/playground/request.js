/** The request that a conversation makes, and the same as programs write it. */
import { ROOT } from '../../core/http.js';
import { currentKey } from '../../core/key.js';
import { branch } from './conversation.js';
import { fieldsOf } from './settings.js';

/** @typedef {import('./conversation.js').Conversation} Conversation */
/** @typedef {import('./conversation.js').Turn} Turn */

/** @param {Turn} turn @returns {Record<string, unknown>} */
function messageOf(turn) {
  if (turn.role === 'tool') return { role: 'tool', tool_call_id: turn.callId ?? '', content: turn.content };
  const calls = turn.answer?.calls ?? [];
  if (!calls.length) return { role: turn.role, content: turn.content };
  return {
    role: 'assistant',
    content: turn.content || null,
    tool_calls: calls.map((call) => ({ id: call.id, type: 'function', function: { name: call.name, arguments: call.args } })),
  };
}

/**
 * The body of a chat: the branch up to a turn, and how it is to be answered.
 * @param {Conversation} conversation
 * @param {string | null} leaf the turn that is answered
 * @param {string} [begun] how the answer begins; it is gone on with
 * @returns {Record<string, unknown>}
 * @throws {Error} an editor holds no JSON
 */
export function bodyOf(conversation, leaf, begun = '') {
  const turns = branch(conversation, leaf).filter((turn) => turn.role !== 'assistant' || turn.content || turn.answer?.calls.length);
  const messages = turns.map(messageOf);
  if (conversation.system.trim()) messages.unshift({ role: 'system', content: conversation.system });
  if (begun) messages.push({ role: 'assistant', content: begun });
  return {
    model: conversation.model,
    messages,
    ...fieldsOf(conversation.settings),
    ...(begun ? { continue_final_message: true, add_generation_prompt: false } : {}),
  };
}

/** Fields that OpenAI's client has no parameter for. */
const OTHERS = new Set(['top_k', 'min_p', 'repetition_penalty', 'continue_final_message', 'add_generation_prompt']);

/** @param {Record<string, unknown>} body as a program for OpenAI's client */
export function pythonOf(body) {
  const known = Object.entries(body).filter(([name]) => !OTHERS.has(name));
  const others = Object.fromEntries(Object.entries(body).filter(([name]) => OTHERS.has(name)));
  const lines = known.map(([name, value]) => `    ${name}=${python(value, 1)},`);
  if (Object.keys(others).length) lines.push(`    extra_body=${python(others, 1)},`);
  const key = currentKey() ? 'os.environ["MANYLORA_API_KEY"]' : '"none"';
  return [
    ...(currentKey() ? ['import os', ''] : []),
    'import openai',
    '',
    `client = openai.OpenAI(base_url=${python(new URL('v1', ROOT).href, 0)}, api_key=${key})`,
    'stream = client.chat.completions.create(',
    ...lines,
    '    stream=True,',
    ')',
    'for chunk in stream:',
    '    if chunk.choices and chunk.choices[0].delta.content:',
    '        print(chunk.choices[0].delta.content, end="", flush=True)',
  ].join('\n');
}

/**
 * A value of JSON as Python writes it.
 * @param {any} value
 * @param {number} depth how far its lines are indented
 * @returns {string}
 */
export function python(value, depth) {
  if (value === null) return 'None';
  if (value === true) return 'True';
  if (value === false) return 'False';
  if (typeof value !== 'object') return JSON.stringify(value);
  const inside = '    '.repeat(depth + 1);
  const end = `\n${'    '.repeat(depth)}`;
  const items = Array.isArray(value)
    ? value.map((item) => python(item, depth + 1))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${python(item, depth + 1)}`);
  const [open, close] = Array.isArray(value) ? '[]' : '{}';
  if (!items.length) return `${open}${close}`;
  const line = items.join(', ');
  return line.length < 70 && !line.includes('\n') ? `${open}${line}${close}` : `${open}\n${items.map((item) => `${inside}${item},`).join('\n')}${end}${close}`;
}

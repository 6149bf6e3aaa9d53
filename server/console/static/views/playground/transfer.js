/** Conversations as files: written out, and read from files that anybody may have made. */
import { emptyAnswer } from '../../models/answer.js';
import { newId } from './conversation.js';
import { DEFAULTS } from './settings.js';

const KIND = 'manylora.conversation';
const MOST_TURNS = 5000;
const ID = /^[0-9a-z]{1,64}$/;

/** @typedef {import('./conversation.js').Conversation} Conversation */
/** @typedef {import('./conversation.js').Turn} Turn */

/** @param {Conversation} conversation */
export function exported(conversation) {
  return JSON.stringify({ kind: KIND, version: 1, ...conversation }, null, 2);
}

/**
 * The conversation in a file: one that was exported here, or a list of messages as in a request.
 * @param {string} text
 * @param {string} model what is asked where the file says nothing
 * @returns {Conversation}
 * @throws {Error} it holds none
 */
export function imported(text, model) {
  let told;
  try {
    told = JSON.parse(text);
  } catch {
    throw new Error('The file is not JSON.');
  }
  const messages = Array.isArray(told) ? told : told?.messages;
  if (Array.isArray(messages)) return fromMessages(messages, textOr(told.model, model));
  if (told?.kind !== KIND || typeof told.turns !== 'object' || told.turns === null) throw new Error('The file holds no conversation.');
  return fromExport(told, model);
}

/** @param {any} told @param {string} model @returns {Conversation} */
function fromExport(told, model) {
  /** @type {Record<string, Turn>} */
  const turns = {};
  const entries = Object.values(told.turns);
  if (entries.length > MOST_TURNS) throw new Error(`The file has more than ${MOST_TURNS} turns.`);
  for (const each of entries) {
    const turn = readTurn(each);
    if (!turn) throw new Error('A turn in the file has no id, role or text.');
    turns[turn.id] = turn;
  }
  for (const turn of Object.values(turns)) if (turn.parent !== null && !turns[turn.parent]) turn.parent = null;
  const leaf = typeof told.leaf === 'string' && turns[told.leaf] ? told.leaf : Object.keys(turns).at(-1) ?? null;
  return { id: newId(), updated: Date.now(), model: textOr(told.model, model), system: textOr(told.system, ''), settings: readSettings(told.settings), turns, leaf };
}

/** @param {any[]} messages @param {string} model @returns {Conversation} */
function fromMessages(messages, model) {
  /** @type {Record<string, Turn>} */
  const turns = {};
  let system = '';
  /** @type {string | null} */
  let leaf = null;
  for (const message of messages.slice(0, MOST_TURNS)) {
    const content = typeof message?.content === 'string' ? message.content : '';
    if (message?.role === 'system' || message?.role === 'developer') system = content;
    const turn = readTurn({ id: newId(), parent: leaf, role: message?.role, content, callId: message?.tool_call_id });
    if (!turn) continue;
    turns[turn.id] = turn;
    leaf = turn.id;
  }
  if (leaf === null) throw new Error('The file holds no turns.');
  return { id: newId(), updated: Date.now(), model, system, settings: { ...DEFAULTS }, turns, leaf };
}

/** @param {any} told @returns {Turn | null} */
function readTurn(told) {
  if (!ID.test(told?.id) || typeof told.content !== 'string' || !['user', 'assistant', 'tool'].includes(told.role)) return null;
  /** @type {Turn} */
  const turn = { id: told.id, parent: typeof told.parent === 'string' ? told.parent : null, role: told.role, content: told.content };
  if (typeof told.callId === 'string') turn.callId = told.callId;
  if (typeof told.asked === 'string') turn.asked = told.asked;
  if (told.answer && typeof told.answer === 'object') turn.answer = readAnswerOf(told.answer);
  return turn;
}

/** @param {any} told @returns {import('../../models/answer.js').Answer} */
function readAnswerOf(told) {
  const answer = /** @type {any} */ (alike(emptyAnswer(), told));
  answer.first = typeof told.first === 'number' ? told.first : null;
  answer.usage = readUsage(told.usage);
  answer.calls = (Array.isArray(told.calls) ? told.calls : []).map((/** @type {any} */ call) => alike({ id: '', name: '', args: '' }, call));
  answer.tokens = (Array.isArray(told.tokens) ? told.tokens : []).map((/** @type {any} */ token) => ({
    ...alike({ text: '', logprob: 0 }, token),
    top: (Array.isArray(token?.top) ? token.top : []).map((/** @type {any} */ each) => alike({ text: '', logprob: 0 }, each)),
  }));
  return answer;
}

/** @param {any} told @returns {import('../../models/answer.js').Answer['usage']} */
function readUsage(told) {
  if (typeof told?.prompt_tokens !== 'number') return null;
  const details = alike({ cached_tokens: 0 }, told.prompt_tokens_details);
  return /** @type {any} */ ({ ...alike({ prompt_tokens: 0, completion_tokens: 0 }, told), prompt_tokens_details: details });
}

/** @param {any} told @returns {import('./settings.js').Settings} */
function readSettings(told) {
  const settings = /** @type {any} */ (alike(DEFAULTS, told));
  settings.stop = (Array.isArray(told?.stop) ? told.stop : []).filter((/** @type {unknown} */ each) => typeof each === 'string');
  if (!['text', 'json', 'schema'].includes(settings.format)) settings.format = 'text';
  return settings;
}

/**
 * Those of the fields of a pattern that have its types; the pattern's own in place of others.
 * @param {Record<string, any>} pattern
 * @param {any} told
 */
function alike(pattern, told) {
  return Object.fromEntries(Object.entries(pattern).map(([name, value]) => {
    const found = told?.[name];
    return [name, typeof found === typeof value && !Array.isArray(value) && value !== null ? found : value];
  }));
}

/** @param {unknown} value @param {string} otherwise */
function textOr(value, otherwise) {
  return typeof value === 'string' ? value : otherwise;
}

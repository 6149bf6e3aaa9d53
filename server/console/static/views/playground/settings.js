/** How answers are sampled, and in which form they come: what stands beside the messages of a request. */

/**
 * @typedef {object} Settings
 * @property {number} temperature
 * @property {number} top_p
 * @property {number} top_k 0: off
 * @property {number} min_p
 * @property {number} presence_penalty
 * @property {number} frequency_penalty
 * @property {number} repetition_penalty
 * @property {number} max_tokens
 * @property {string} seed '' draws one
 * @property {boolean} probabilities whether every token comes with its alternatives
 * @property {string[]} stop
 * @property {string} tools JSON; '' for none
 * @property {string} toolChoice
 * @property {'text' | 'json' | 'schema'} format
 * @property {string} schema JSON
 */

/** @type {Settings} */
export const DEFAULTS = {
  temperature: 0.7,
  top_p: 1,
  top_k: 0,
  min_p: 0,
  presence_penalty: 0,
  frequency_penalty: 0,
  repetition_penalty: 1,
  max_tokens: 512,
  seed: '',
  probabilities: true,
  stop: [],
  tools: '',
  toolChoice: 'auto',
  format: 'text',
  schema: '',
};

export const ALTERNATIVES = 8; // told of each token

/** @type {{name: 'temperature' | 'top_p' | 'top_k' | 'min_p' | 'presence_penalty' | 'frequency_penalty' | 'repetition_penalty' | 'max_tokens', label: string, min: number, max: number, step: number, hint: string}[]} */
export const SLIDERS = [
  { name: 'temperature', label: 'Temperature', min: 0, max: 2, step: 0.05, hint: '0 always takes the likeliest token' },
  { name: 'max_tokens', label: 'Longest answer', min: 1, max: 2048, step: 1, hint: 'in tokens' },
  { name: 'top_p', label: 'Top p', min: 0, max: 1, step: 0.01, hint: 'only the likeliest tokens that together have this probability' },
  { name: 'top_k', label: 'Top k', min: 0, max: 100, step: 1, hint: 'only so many of the likeliest tokens; 0: all' },
  { name: 'min_p', label: 'Min p', min: 0, max: 1, step: 0.01, hint: 'only tokens at least this share as likely as the likeliest' },
  { name: 'repetition_penalty', label: 'Repetition penalty', min: 0.5, max: 2, step: 0.05, hint: 'above 1: what was said becomes less likely' },
  { name: 'presence_penalty', label: 'Presence penalty', min: -2, max: 2, step: 0.05, hint: 'once for every token that was said' },
  { name: 'frequency_penalty', label: 'Frequency penalty', min: -2, max: 2, step: 0.05, hint: 'for every time that a token was said' },
];

/** Sent always, since the server has other defaults, or none. */
const ALWAYS = new Set(['temperature', 'max_tokens']);

/**
 * The fields of a request that say it.
 * @param {Settings} settings
 * @returns {Record<string, unknown>}
 * @throws {Error} an editor holds no JSON
 */
export function fieldsOf(settings) {
  /** @type {Record<string, unknown>} */
  const fields = {};
  for (const { name } of SLIDERS) {
    if (ALWAYS.has(name) || settings[name] !== DEFAULTS[name]) fields[name] = settings[name];
  }
  if (settings.seed.trim()) fields.seed = Number(settings.seed);
  if (settings.stop.length) fields.stop = settings.stop;
  if (settings.probabilities) Object.assign(fields, { logprobs: true, top_logprobs: ALTERNATIVES });
  if (settings.tools.trim()) Object.assign(fields, { tools: readJson(settings.tools, 'Tools'), tool_choice: settings.toolChoice });
  if (settings.format === 'json') fields.response_format = { type: 'json_object' };
  if (settings.format === 'schema') {
    const schema = readJson(settings.schema, 'The schema');
    fields.response_format = { type: 'json_schema', json_schema: { name: 'answer', schema } };
  }
  return fields;
}

/** @param {string} text @param {string} what */
function readJson(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${what}: ${error instanceof Error ? error.message : error}`);
  }
}

/** @param {string} text of an editor; what is wrong with it, '' if nothing is */
export function jsonFault(text) {
  if (!text.trim()) return '';
  try {
    JSON.parse(text);
    return '';
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** What an arena is about: the targets, the prompts, how they answer. All of it stands in the URL. */

/**
 * @typedef {object} Prompt
 * @property {{role: string, content: string}[]} messages
 */

/**
 * @typedef {object} Setup
 * @property {string[]} targets model strings; the first is the baseline
 * @property {Prompt[]} prompts
 * @property {string} system
 * @property {number} temperature
 * @property {number} maxTokens
 * @property {string} seed
 * @property {boolean} blind
 */

export const MOST_TARGETS = 8;
export const MOST_PROMPTS = 16;
export const MOST_TOKENS = 512;
const LONGEST_URL = 60_000; // characters

/** @param {string} text @returns {Prompt} */
export function asked(text) {
  return { messages: [{ role: 'user', content: text }] };
}

/** @param {Prompt} prompt what of it is shown: a question alone, or all turns */
export function promptText({ messages }) {
  if (messages.length === 1 && messages[0]) return messages[0].content;
  return messages.map(({ role, content }) => `${role}: ${content}`).join('\n');
}

/** @param {URLSearchParams} params @returns {Setup} */
export function readSetup(params) {
  const number = (/** @type {string} */ name, /** @type {number} */ otherwise, /** @type {number} */ most) => {
    const value = Number(params.get(name) ?? otherwise);
    return Number.isFinite(value) ? Math.min(most, Math.max(0, value)) : otherwise;
  };
  return {
    targets: params.getAll('t').slice(0, MOST_TARGETS),
    prompts: params.getAll('p').slice(0, MOST_PROMPTS).map(readPrompt),
    system: params.get('system') ?? '',
    temperature: number('temperature', 0, 2),
    maxTokens: Math.max(1, Math.round(number('tokens', 128, MOST_TOKENS))),
    seed: params.get('seed') ?? '',
    blind: params.get('blind') === '1',
  };
}

/** @param {Setup} setup @returns {URLSearchParams | null} null where it is too much for a URL */
export function writeSetup(setup) {
  const params = new URLSearchParams();
  for (const target of setup.targets) params.append('t', target);
  for (const prompt of setup.prompts) params.append('p', writePrompt(prompt));
  if (setup.system) params.set('system', setup.system);
  if (setup.temperature) params.set('temperature', String(setup.temperature));
  if (setup.maxTokens !== 128) params.set('tokens', String(setup.maxTokens));
  if (setup.seed) params.set('seed', setup.seed);
  if (setup.blind) params.set('blind', '1');
  return params.toString().length > LONGEST_URL ? null : params;
}

/** A conversation stands as JSON; a question as it is, unless it would be read as that. @param {Prompt} prompt */
function writePrompt(prompt) {
  const text = promptText(prompt);
  return prompt.messages.length === 1 && !text.startsWith('[{') ? text : JSON.stringify(prompt.messages);
}

/** @param {string} text @returns {Prompt} */
function readPrompt(text) {
  if (text.startsWith('[{')) {
    try {
      const messages = readMessages(JSON.parse(text));
      if (messages) return { messages };
    } catch {
      // a question that only looks like one
    }
  }
  return asked(text);
}

/** @param {any} told @returns {{role: string, content: string}[] | null} */
function readMessages(told) {
  if (!Array.isArray(told) || !told.length) return null;
  const right = told.every((each) => ['system', 'user', 'assistant'].includes(each?.role) && typeof each.content === 'string');
  return right ? told.map(({ role, content }) => ({ role, content })) : null;
}

/**
 * The prompts of a file: one a line; a line that is a JSON object has messages, as training data does, or a prompt.
 * @param {string} text
 * @returns {{prompts: Prompt[], left: number}} and how many were too many
 * @throws {Error} a line is no prompt
 */
export function readPrompts(text) {
  const lines = text.split(/\r?\n/).map((line, at) => ({ line: line.trim(), number: at + 1 })).filter(({ line }) => line);
  const prompts = lines.slice(0, MOST_PROMPTS).map(({ line, number }) => {
    if (!line.startsWith('{')) return asked(line);
    let told;
    try {
      told = JSON.parse(line);
    } catch {
      throw new Error(`Line ${number} begins like JSON and is none.`);
    }
    const messages = readMessages(told.messages);
    if (messages) return { messages: messages.at(-1)?.role === 'assistant' ? messages.slice(0, -1) : messages };
    if (typeof told.prompt === 'string') return asked(told.prompt);
    throw new Error(`Line ${number} has neither “messages” nor a “prompt”.`);
  });
  if (!prompts.length) throw new Error('The file holds no prompts.');
  return { prompts, left: lines.length - prompts.length };
}

/**
 * The messages of a prompt with the system prompt before them, unless they bring one.
 * @param {Setup} setup
 * @param {Prompt} prompt
 */
export function messagesOf(setup, { messages }) {
  return setup.system.trim() && messages[0]?.role !== 'system' ? [{ role: 'system', content: setup.system }, ...messages] : messages;
}

/** @param {Setup} setup the fields of a request that say how it is answered */
export function samplingOf(setup) {
  return { temperature: setup.temperature, max_tokens: setup.maxTokens, ...(setup.seed.trim() ? { seed: Number(setup.seed) } : {}) };
}

/**
 * Conversations as trees: whoever edits a turn, or asks again, makes a branch beside what was there.
 * Nothing here changes what it is given.
 */

/**
 * @typedef {object} Turn
 * @property {string} id
 * @property {string | null} parent null for the first turns
 * @property {'user' | 'assistant' | 'tool'} role
 * @property {string} content
 * @property {string} [callId] of a tool's result: which call it is of
 * @property {string} [asked] of an answer: the model string
 * @property {import('../../models/answer.js').Answer} [answer] of an answer: all that is known of it
 */

/**
 * @typedef {object} Conversation
 * @property {string} id
 * @property {number} updated ms since 1970
 * @property {string} model the model string that is asked next
 * @property {string} system the system prompt; '' for none
 * @property {import('./settings.js').Settings} settings
 * @property {Record<string, Turn>} turns
 * @property {string | null} leaf the last turn of the branch that is shown
 */

/** @returns {string} */
export function newId() {
  const random = crypto.getRandomValues(new Uint8Array(12));
  return [...random].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

/**
 * @param {string} model
 * @param {import('./settings.js').Settings} settings
 * @param {string} [system]
 * @returns {Conversation}
 */
export function newConversation(model, settings, system = '') {
  return { id: newId(), updated: Date.now(), model, system, settings, turns: {}, leaf: null };
}

/**
 * The branch that ends with a turn, from its beginning.
 * @param {Conversation} conversation
 * @param {string | null} [leaf]
 * @returns {Turn[]}
 */
export function branch(conversation, leaf = conversation.leaf) {
  /** @type {Turn[]} */
  const turns = [];
  for (let at = leaf; at !== null; at = turns[0]?.parent ?? null) {
    const turn = conversation.turns[at];
    if (!turn || turns.includes(turn)) break; // a file that was tampered with
    turns.unshift(turn);
  }
  return turns;
}

/** @param {Conversation} conversation @param {Turn} turn all turns in the same place, in order of their making */
export function siblings(conversation, turn) {
  return Object.values(conversation.turns).filter((each) => each.parent === turn.parent && each.role === turn.role && each.callId === turn.callId);
}

/**
 * With one more turn, that ends the branch from now on.
 * @param {Conversation} conversation
 * @param {Omit<Turn, 'id'>} turn
 * @returns {[Conversation, Turn]}
 */
export function withTurn(conversation, turn) {
  const made = { id: newId(), ...turn };
  return [{ ...conversation, updated: Date.now(), turns: { ...conversation.turns, [made.id]: made }, leaf: made.id }, made];
}

/**
 * With some fields of a turn changed.
 * @param {Conversation} conversation
 * @param {string} id
 * @param {Partial<Turn>} change
 */
export function withChange(conversation, id, change) {
  const turn = conversation.turns[id];
  if (!turn) return conversation;
  return { ...conversation, updated: Date.now(), turns: { ...conversation.turns, [id]: { ...turn, ...change } } };
}

/**
 * Showing the branch through a turn, down to the end that was made last.
 * @param {Conversation} conversation
 * @param {string} id
 */
export function showing(conversation, id) {
  let leaf = id;
  for (;;) {
    const after = Object.values(conversation.turns).filter((turn) => turn.parent === leaf).at(-1);
    if (!after) return { ...conversation, leaf };
    leaf = after.id;
  }
}

/** @param {Conversation} conversation what lists call it */
export function titleOf(conversation) {
  const first = Object.values(conversation.turns).find((turn) => turn.role === 'user');
  const line = first?.content.trim().split('\n')[0] ?? '';
  return line.slice(0, 80) || 'New chat';
}

/** Where two answers differ, word by word. */

const WORD = /\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu;
const MOST_CELLS = 4_000_000; // of the table of common words: beyond it all is told to differ

/**
 * An answer in pieces, each with whether the other answer lacks it there.
 * @param {string} baseline
 * @param {string} answer
 * @returns {{text: string, differs: boolean}[]}
 */
export function differences(baseline, answer) {
  const before = baseline.match(WORD) ?? [];
  const after = answer.match(WORD) ?? [];
  let head = 0;
  while (head < before.length && head < after.length && before[head] === after[head]) head += 1;
  let tail = 0;
  const most = Math.min(before.length, after.length) - head;
  while (tail < most && before[before.length - 1 - tail] === after[after.length - 1 - tail]) tail += 1;
  const kept = commonWords(before.slice(head, before.length - tail), after.slice(head, after.length - tail));
  return joined([
    ...after.slice(0, head).map((text) => ({ text, differs: false })),
    ...after.slice(head, after.length - tail).map((text, at) => ({ text, differs: !kept.has(at) })),
    ...after.slice(after.length - tail).map((text) => ({ text, differs: false })),
  ]);
}

/**
 * Which words of the second list stand in the longest sequence that both have.
 * @param {string[]} before
 * @param {string[]} after
 * @returns {Set<number>} by their places
 */
function commonWords(before, after) {
  const wide = after.length + 1;
  /** @type {Set<number>} */
  const kept = new Set();
  if (before.length * wide > MOST_CELLS) return kept;
  const table = new Uint16Array((before.length + 1) * wide);
  const at = (/** @type {number} */ row, /** @type {number} */ column) => table[row * wide + column] ?? 0;
  for (let row = before.length - 1; row >= 0; row -= 1) {
    for (let column = after.length - 1; column >= 0; column -= 1) {
      table[row * wide + column] = before[row] === after[column] ? at(row + 1, column + 1) + 1 : Math.max(at(row + 1, column), at(row, column + 1));
    }
  }
  let row = 0;
  let column = 0;
  while (row < before.length && column < after.length) {
    if (before[row] === after[column]) { kept.add(column); row += 1; column += 1; }
    else if (at(row + 1, column) >= at(row, column + 1)) row += 1;
    else column += 1;
  }
  return kept;
}

/** @param {{text: string, differs: boolean}[]} words neighbours of one sort together */
function joined(words) {
  /** @type {{text: string, differs: boolean}[]} */
  const pieces = [];
  for (const word of words) {
    const last = pieces.at(-1);
    if (last?.differs === word.differs) last.text += word.text;
    else pieces.push({ ...word });
  }
  return pieces;
}

/** Model strings: what stands in a request as its model, read into terms and written again. */

/**
 * @typedef {object} Term
 * @property {string} name
 * @property {string} version a revision, 'merged', both joined by a dot; '' for the current revision
 * @property {number} weight
 */

export const MAX_ENTRIES = 8;
export const MAX_WEIGHT = 8;

const WEIGHT = /^-?(?:\d+\.?\d*|\.\d+)(?:[eE]-?\d+)?$/;
const VERSION = /^(?:[0-9a-f]{4,64}(?:\.merged)?|merged)$/;

/**
 * The terms of a model string; null where it is none.
 * @param {string} text
 * @returns {Term[] | null}
 */
export function parseMix(text) {
  const parts = text.split('+');
  if (!text || parts.length > MAX_ENTRIES) return null;
  const terms = parts.map(parseTerm);
  return terms.every((term) => term !== null) ? /** @type {Term[]} */ (terms) : null;
}

/** @param {string} text @returns {Term | null} */
function parseTerm(text) {
  const [head = '', weight, ...more] = text.split('*');
  const [name = '', version, ...others] = head.split('@');
  if (!name || /\s/.test(name) || more.length || others.length) return null;
  if (weight !== undefined && (!WEIGHT.test(weight) || Math.abs(Number(weight)) > MAX_WEIGHT)) return null;
  if (version !== undefined && !VERSION.test(version)) return null;
  return { name, version: version ?? '', weight: weight === undefined ? 1 : Number(weight) };
}

/** @param {readonly Term[]} terms */
export function formatMix(terms) {
  return terms.map(({ name, version, weight }) => {
    const rounded = Number(weight.toFixed(4));
    return `${name}${version ? `@${version}` : ''}${rounded === 1 ? '' : `*${rounded}`}`;
  }).join('+');
}

/**
 * Whether a model string is more than one plain name: then it is shown in the mixer.
 * @param {readonly Term[] | null} terms
 */
export function isMix(terms) {
  return terms !== null && (terms.length > 1 || terms.some((term) => term.weight !== 1));
}

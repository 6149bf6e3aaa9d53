/** The shares of a split: whole percents that add up to 100. */

/** @typedef {{target: string, percent: number}} Part */

/** @param {{target: string, share: number}[]} split @returns {Part[]} */
export function partsOf(split) {
  return evened(split.map(({ target, share }) => ({ target, percent: share * 100 })));
}

/**
 * Give one part so much, and let the others keep their proportions in what is left.
 * @param {Part[]} parts
 * @param {number} at
 * @param {number} percent
 */
export function withPart(parts, at, percent) {
  if (parts.length === 1) return parts.map((part) => ({ ...part, percent: 100 }));
  const others = parts.reduce((sum, part, place) => (place === at ? sum : sum + part.percent), 0);
  const left = 100 - percent;
  return evened(parts.map((part, place) => ({
    ...part, percent: place === at ? percent : others > 0 ? (part.percent / others) * left : left / (parts.length - 1),
  })), at);
}

/** @param {Part[]} parts */
export function withOneMore(parts) {
  const share = Math.round(100 / (parts.length + 1));
  return withPart([...parts, { target: '', percent: 0 }], parts.length, share);
}

/** @param {Part[]} parts @param {number} at */
export function without(parts, at) {
  const rest = parts.filter((_, place) => place !== at);
  const sum = rest.reduce((total, part) => total + part.percent, 0);
  return evened(rest.map((part) => ({ ...part, percent: sum > 0 ? (part.percent / sum) * 100 : 100 / rest.length })));
}

/**
 * Rounded, with what rounding has left over given to the largest part that need not stay as it is.
 * @param {Part[]} parts
 * @param {number} [fixed]
 */
function evened(parts, fixed = -1) {
  const whole = parts.map((part) => ({ ...part, percent: Math.round(part.percent) }));
  const left = 100 - whole.reduce((sum, part) => sum + part.percent, 0);
  const largest = whole.reduce((best, part, at) => (at !== fixed && (best < 0 || part.percent > (whole[best]?.percent ?? 0)) ? at : best), -1);
  const takes = whole[largest];
  if (takes && left) takes.percent += left;
  return whole;
}

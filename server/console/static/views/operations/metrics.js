/** Prometheus' text format: what of it the console shows, as numbers. */

/** @typedef {{labels: Record<string, string>, value: number}} Sample */
/** @typedef {Map<string, Sample[]>} Samples by the name of the series */

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** @param {string} text of a label's value */
function unescaped(text) {
  return text.replace(/\\(.)/g, (_, letter) => (letter === 'n' ? '\n' : letter));
}

/**
 * @param {string} text
 * @param {(name: string) => boolean} wanted
 * @returns {Samples}
 */
export function parseMetrics(text, wanted) {
  /** @type {Samples} */
  const samples = new Map();
  for (const line of text.split('\n')) {
    if (!line || line[0] === '#') continue;
    const end = line.search(/[{\s]/);
    const name = line.slice(0, end);
    if (!wanted(name)) continue;
    const match = LINE.exec(line);
    if (!match) continue;
    /** @type {Record<string, string>} */
    const labels = {};
    for (const [, label = '', value = ''] of (match[2] ?? '').matchAll(LABEL)) labels[label] = unescaped(value);
    const found = samples.get(name) ?? [];
    found.push({ labels, value: Number(match[3] === '+Inf' ? Infinity : match[3]) });
    samples.set(name, found);
  }
  return samples;
}

/** @param {Samples} samples @param {string} name the sum of its series; 0 where there are none */
export function total(samples, name) {
  return (samples.get(name) ?? []).reduce((sum, { value }) => sum + value, 0);
}

/** @param {Samples} samples @param {string} name @param {string} label @returns {Map<string, number>} the sum by a label */
export function byLabel(samples, name, label) {
  /** @type {Map<string, number>} */
  const sums = new Map();
  for (const { labels, value } of samples.get(name) ?? []) {
    const key = labels[label] ?? '';
    sums.set(key, (sums.get(key) ?? 0) + value);
  }
  return sums;
}

/** @param {number} now @param {number} before of a counter; after a restart it began anew */
export function grown(now, before) {
  return now >= before ? now - before : now;
}

/**
 * A quantile of what a histogram counted between two looks, as Prometheus estimates it.
 * @param {Samples} now
 * @param {Samples} before
 * @param {string} name
 * @param {number} share such as 0.99
 * @returns {number | null} null: nothing was counted
 */
export function quantile(now, before, name, share) {
  const buckets = byLabel(now, `${name}_bucket`, 'le');
  const earlier = byLabel(before, `${name}_bucket`, 'le');
  const counts = [...buckets].map(([le, value]) => ({ upper: le === '+Inf' ? Infinity : Number(le), count: grown(value, earlier.get(le) ?? 0) }))
    .sort((a, b) => a.upper - b.upper);
  const all = counts.at(-1)?.count ?? 0;
  if (!all) return null;
  let lower = 0;
  let below = 0;
  for (const { upper, count } of counts) {
    if (count >= share * all) {
      if (upper === Infinity) return lower;
      return lower + ((upper - lower) * (share * all - below)) / Math.max(count - below, 1e-9);
    }
    lower = upper;
    below = count;
  }
  return lower;
}

/**
 * The mean of what a histogram or summary counted between two looks.
 * @param {Samples} now
 * @param {Samples} before
 * @param {string} name
 */
export function mean(now, before, name) {
  const count = grown(total(now, `${name}_count`), total(before, `${name}_count`));
  return count ? grown(total(now, `${name}_sum`), total(before, `${name}_sum`)) / count : null;
}

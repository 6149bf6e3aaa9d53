/** What was read of the server's metrics in the last minutes, and what follows from it. */
import { ask } from '../../core/http.js';
import { Store } from '../../core/store.js';
import { byLabel, grown, mean, parseMetrics, quantile, total } from './metrics.js';

/** @typedef {import('./metrics.js').Samples} Samples */
/** @typedef {{at: number, samples: Samples, took: number}} Look at: unix seconds; took: ms */

const KEPT = 300; // looks: ten minutes
const WINDOW = 30; // seconds over which quantiles and means are taken

/** @type {Store<Look[]>} kept while other views are open, so that coming back does not begin anew */
export const looks = new Store(/** @type {Look[]} */ ([]));

/** @param {string} name */
function wanted(name) {
  if (name.startsWith('manylora_adapter_') && !name.startsWith('manylora_adapter_tier') && name !== 'manylora_adapter_evictions_total') return false;
  return (name.startsWith('manylora_') && !name.startsWith('manylora_arm_')) || name.startsWith('process_');
}

/**
 * Look once.
 * @param {string} path
 * @param {{signal: AbortSignal}} options
 * @returns {Promise<Look>}
 */
export async function look(path, { signal }) {
  const begun = performance.now();
  const text = await (await ask(path, { signal, headers: { accept: 'text/plain' } })).text();
  return { at: Date.now() / 1000, samples: parseMetrics(text, wanted), took: performance.now() - begun };
}

/** @param {Look} one the latest */
export function note(one) {
  const known = looks.value;
  if (known.at(-1) === one) return;
  looks.set([...known.slice(1 - KEPT), one]);
}

/** @param {Look[]} all @param {number} at the look before which a window ends @returns {Look | undefined} where it begins */
function windowOf(all, at) {
  const end = all[at];
  if (!end) return undefined;
  for (let place = at - 1; place >= 0; place -= 1) {
    if (place === 0 || end.at - (all[place]?.at ?? 0) >= WINDOW) return all[place];
  }
  return undefined;
}

/** @param {Look[]} all @returns {{x: number[], series: Record<string, (number | null)[]>}} for charts */
export function seriesOf(all) {
  /** @type {Record<string, (number | null)[]>} */
  const series = { generated: [], prompt: [], running: [], waiting: [], first50: [], first99: [], gap50: [], gap99: [] };
  const put = (/** @type {string} */ name, /** @type {number | null} */ value) => series[name]?.push(value);
  all.forEach((one, at) => {
    const before = all[at - 1];
    const from = windowOf(all, at);
    const rate = (/** @type {string} */ name) => (before && one.at - before.at < WINDOW
      ? grown(total(one.samples, name), total(before.samples, name)) / (one.at - before.at) : null);
    put('generated', rate('manylora_generated_tokens_total'));
    put('prompt', rate('manylora_prompt_tokens_total'));
    put('running', total(one.samples, 'manylora_requests_running'));
    put('waiting', total(one.samples, 'manylora_requests_waiting'));
    for (const [name, metric] of [['first', 'manylora_time_to_first_token_seconds'], ['gap', 'manylora_inter_token_seconds']]) {
      for (const share of [50, 99]) put(`${name}${share}`, from ? quantile(one.samples, from.samples, String(metric), share / 100) : null);
    }
  });
  return { x: all.map(({ at }) => at), series };
}

/** @param {Look[]} all @returns {{name: string, rows: number}[]} the mean rows of a step by adapter, the most first */
export function batchOf(all) {
  const now = all.at(-1);
  const before = all.at(-2);
  if (!now || !before) return [];
  const steps = grown(total(now.samples, 'manylora_step_seconds_count'), total(before.samples, 'manylora_step_seconds_count'));
  const earlier = byLabel(before.samples, 'manylora_generated_tokens_total', 'adapter');
  return [...byLabel(now.samples, 'manylora_generated_tokens_total', 'adapter')]
    .map(([name, value]) => ({ name, rows: steps ? grown(value, earlier.get(name) ?? 0) / steps : 0 }))
    .filter(({ rows }) => rows > 0).sort((a, b) => b.rows - a.rows);
}

/** @param {Look[]} all what the last half minute came to */
export function recent(all) {
  const now = all.at(-1);
  const before = windowOf(all, all.length - 1);
  if (!now || !before) return null;
  const [a, b] = [now.samples, before.samples];
  const over = now.at - before.at;
  const more = (/** @type {string} */ name) => grown(total(a, name), total(b, name));
  const looked = more('manylora_prefix_cache_queried_tokens_total');
  return {
    over,
    tokens: more('manylora_generated_tokens_total') / over,
    read: more('manylora_prompt_tokens_total') / over,
    hits: looked ? more('manylora_prefix_cache_hit_tokens_total') / looked : null,
    busy: more('manylora_step_seconds_sum') / over,
    cores: more('process_cpu_seconds_total') / over,
    steps: more('manylora_step_seconds_count') / over,
    step: mean(a, b, 'manylora_step_seconds'),
    step99: quantile(a, b, 'manylora_step_seconds', 0.99),
    stepTokens: mean(a, b, 'manylora_step_tokens'),
    stepRows: mean(a, b, 'manylora_step_sequences'),
    stepAdapters: mean(a, b, 'manylora_step_adapters'),
    first50: quantile(a, b, 'manylora_time_to_first_token_seconds', 0.5),
    first99: quantile(a, b, 'manylora_time_to_first_token_seconds', 0.99),
    gap50: quantile(a, b, 'manylora_inter_token_seconds', 0.5),
    gap99: quantile(a, b, 'manylora_inter_token_seconds', 0.99),
  };
}

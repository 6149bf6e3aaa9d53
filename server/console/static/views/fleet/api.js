/** What the fleet asks of the server. */
import { askJson } from '../../core/http.js';

/**
 * @typedef {object} Adapter
 * @property {string} id
 * @property {'loading' | 'ready' | 'draining' | 'failed'} state
 * @property {string | null} revision
 * @property {string | null} digest
 * @property {string | null} source
 * @property {string | null} error
 * @property {boolean} pinned
 * @property {string[]} tags
 * @property {number} created
 * @property {number} updated
 * @property {number | null} last_used
 * @property {string | null} kind
 * @property {number | null} rank
 * @property {number | null} modules
 * @property {number | null} total_modules
 * @property {string | null} base_model
 * @property {{device: number, memory: number, disk: number}} residency bytes
 * @property {{requests: number, prompt_tokens: number, generated_tokens: number, running: number, scores: number, mean_score: number | null}} traffic
 */

/**
 * @typedef {object} Alias
 * @property {string} id
 * @property {{target: string, share: number}[]} split
 */

const PAGE = 1000;

/**
 * All adapters, page by page.
 * @param {string} path
 * @param {{signal: AbortSignal}} options
 * @returns {Promise<Adapter[]>}
 */
export async function readAdapters(path, { signal }) {
  const found = [];
  for (let after = ''; ;) {
    const page = await askJson(`${path}?limit=${PAGE}${after && `&after=${encodeURIComponent(after)}`}`, { signal });
    found.push(...page.data);
    if (!page.has_more) return found;
    after = page.last_id;
  }
}

/** @param {string} name of an adapter, a mix or a revision; its address, or that of what is done with it */
export function adapterPath(name, deed = '') {
  return `v1/adapters/${encodeURIComponent(name)}${deed && `/${deed}`}`;
}

/** @param {string} name */
export function aliasPath(name) {
  return `v1/aliases/${encodeURIComponent(name)}`;
}

/** @param {string} target a model string; the names in it, without revisions and weights */
export function namesIn(target) {
  return target.split('+').map((term) => (term.split('*')[0] ?? '').split('@')[0] ?? '');
}

/**
 * What would miss an adapter.
 * @param {string} name
 * @param {Alias[]} aliases
 * @param {Adapter[]} adapters
 */
export function referrersOf(name, aliases, adapters) {
  const own = adapters.find((each) => each.id === name);
  return {
    aliases: aliases.filter((alias) => alias.split.some(({ target }) => namesIn(target).includes(name))).map((alias) => alias.id),
    composed: adapters.filter((each) => each.source?.startsWith('compose:') && namesIn(each.source.split(':').slice(2).join(':')).includes(name)).map((each) => each.id),
    twins: own?.digest ? adapters.filter((each) => each.digest === own.digest && each.id !== name).map((each) => each.id) : [],
    running: own?.traffic.running ?? 0,
  };
}

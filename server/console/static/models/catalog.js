/** What can be asked for here: the base model, the adapters, the aliases. */
import { access } from '../core/access.js';
import { useMemo } from '../core/preact.js';
import { useResource } from '../core/resource.js';
import { useStore } from '../core/store.js';

/**
 * @typedef {object} Model
 * @property {string} id
 * @property {'base' | 'adapter' | 'alias'} kind
 * @property {string} about a few words beside its name
 * @property {number} context the longest prompt and answer together, in tokens
 */

/**
 * @typedef {object} Catalog
 * @property {Model[]} models those that write; without adapters that sort into classes
 * @property {string} base the base model's name; '' before it is known, or where the key may not use it
 * @property {Error | null} error
 * @property {boolean} known whether it was read
 * @property {() => void} reload
 */

/** @returns {Catalog} */
export function useCatalog() {
  const { server } = useStore(access);
  const { data, error, reload } = useResource('v1/models', { every: 20_000 });
  const models = useMemo(() => (data ? data.data.filter((/** @type {any} */ card) => card.task !== 'classify').map(modelOf) : []), [data]);
  const base = models.find((/** @type {Model} */ model) => model.kind === 'base')?.id ?? '';
  return { models, base: base || String(server.model ?? ''), error, known: data !== null, reload };
}

/** @param {any} card of GET /v1/models @returns {Model} */
function modelOf(card) {
  const kind = card.parent === null ? 'base' : card.revision === undefined ? 'alias' : 'adapter';
  const about = kind === 'base' ? 'base model' : kind === 'alias' ? `→ ${card.root}` : `rank ${card.rank} · ${card.revision}`;
  return { id: card.id, kind, about, context: card.max_model_len };
}

/** Which adapters are listed: by words in name, tag or source, by state, by tag, by place. */
import { html } from '../../core/preact.js';
import { Button } from '../../ui/button.js';
import { Select, TextField } from '../../ui/field.js';
import { count } from '../../ui/format.js';

/** @typedef {{text: string, state: string, tag: string, place: string}} Filter */
/** @typedef {import('./api.js').Adapter} Adapter */

/** @type {Filter} */
export const NO_FILTER = { text: '', state: '', tag: '', place: '' };

/** @type {Record<string, (adapter: Adapter) => boolean>} */
const PLACES = {
  device: ({ residency }) => residency.device > 0,
  memory: ({ residency }) => residency.memory > 0 && residency.device === 0,
  disk: ({ residency }) => residency.memory === 0 && residency.device === 0,
  pinned: ({ pinned }) => pinned,
  running: ({ traffic }) => traffic.running > 0,
};

const PLACE_OPTIONS = [
  { value: '', label: 'Anywhere' }, { value: 'device', label: 'On the device' }, { value: 'memory', label: 'In memory only' },
  { value: 'disk', label: 'On disk only' }, { value: 'pinned', label: 'Pinned' }, { value: 'running', label: 'Answering now' },
];
const STATE_OPTIONS = [
  { value: '', label: 'Any state' }, { value: 'ready', label: 'Ready' }, { value: 'loading', label: 'Loading' },
  { value: 'draining', label: 'Draining' }, { value: 'failed', label: 'Failed' }, { value: 'error', label: 'With an error' },
];

/**
 * @param {Adapter[]} adapters
 * @param {Filter} filter
 */
export function chosen(adapters, { text, state, tag, place }) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const stands = PLACES[place] ?? (() => true);
  return adapters.filter((each) => {
    if (state && (state === 'error' ? each.error === null : each.state !== state)) return false;
    if (tag && !each.tags.includes(tag)) return false;
    if (!stands(each)) return false;
    if (!words.length) return true;
    const all = `${each.id}\n${each.tags.join('\n')}\n${each.source ?? ''}\n${each.digest ?? ''}\n${each.kind ?? ''}`.toLowerCase();
    return words.every((word) => all.includes(word));
  });
}

/** @param {{filter: Filter, onChange: (filter: Filter) => void, adapters: Adapter[], shown: number}} props */
export function FilterBar({ filter, onChange, adapters, shown }) {
  const tags = [...new Set(adapters.flatMap((each) => each.tags))].sort();
  const set = (/** @type {Partial<Filter>} */ some) => onChange({ ...filter, ...some });
  const narrowed = Object.values(filter).some(Boolean);
  return html`
    <div class="filters" role="search" aria-label="Adapters">
      <${TextField} label="Search" hideLabel type="search" placeholder="Search names, tags, sources, revisions" value=${filter.text} onInput=${(/** @type {string} */ text) => set({ text })} />
      <${Select} label="State" hideLabel value=${filter.state} options=${STATE_OPTIONS} onChange=${(/** @type {string} */ state) => set({ state })} />
      <${Select} label="Where it is" hideLabel value=${filter.place} options=${PLACE_OPTIONS} onChange=${(/** @type {string} */ place) => set({ place })} />
      ${tags.length > 0 && html`
        <${Select} label="Tag" hideLabel value=${filter.tag} onChange=${(/** @type {string} */ tag) => set({ tag })}
          options=${[{ value: '', label: 'Any tag' }, ...tags.map((tag) => ({ value: tag, label: tag }))]} />`}
      <span class="filter-count hint number-text" role="status">${narrowed ? `${count(shown)} of ${count(adapters.length)}` : ''}</span>
      ${narrowed && html`<${Button} kind="quiet" onClick=${() => onChange(NO_FILTER)}>Clear<//>`}
    </div>`;
}

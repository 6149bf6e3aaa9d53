/** The fleet: every adapter and alias that this key may manage, and what can be done with each. */
import { access } from '../../core/access.js';
import { html, useState } from '../../core/preact.js';
import { useResource } from '../../core/resource.js';
import { go, noteState } from '../../core/router.js';
import { useStore } from '../../core/store.js';
import { Button } from '../../ui/button.js';
import { ShowAsCurl } from '../../ui/request.js';
import { Failure, Loading } from '../../ui/states.js';
import { Tabs } from '../../ui/tabs.js';
import { ViewHead } from '../../ui/view_head.js';
import { AliasList } from './aliases.js';
import { readAdapters } from './api.js';
import { Detail } from './detail.js';
import { FilterBar, NO_FILTER, chosen } from './filter.js';
import { AdapterTable, NoAdapter } from './list.js';
import { PublishDialog } from './publish.js';

/** @typedef {import('./filter.js').Filter} Filter */

/** @param {URLSearchParams} params @returns {Filter} */
function filterOf(params) {
  return { text: params.get('q') ?? '', state: params.get('state') ?? '', tag: params.get('tag') ?? '', place: params.get('place') ?? '' };
}

/** @param {Filter} filter @param {string} tab @returns {Record<string, string>} */
function paramsOf({ text, state, tag, place }, tab) {
  const told = { q: text, state, tag, place, tab: tab === 'adapters' ? '' : tab };
  return Object.fromEntries(Object.entries(told).filter(([, value]) => value));
}

/** @param {{path: string, params: URLSearchParams}} props */
export default function FleetView({ path, params }) {
  const { may, tenant } = useStore(access);
  const adapters = useResource('v1/adapters', { every: 10_000, read: readAdapters });
  const aliases = useResource('v1/aliases', { every: 15_000 });
  const [filter, setFilter] = useState(filterOf(params));
  const tab = path ? 'adapters' : params.get('tab') ?? 'adapters';
  const [publishes, setPublishes] = useState(false);
  const refine = (/** @type {Filter} */ next) => { setFilter(next); noteState(paramsOf(next, tab)); };
  const reload = () => { adapters.reload(); aliases.reload(); };
  const open = (/** @type {string} */ name) => go(name ? `fleet/${name}` : 'fleet', paramsOf(filter, 'adapters'));
  if (adapters.error && !adapters.data) return html`<${Failure} error=${adapters.error} onRetry=${reload} />`;
  if (!adapters.data) return html`<${ViewHead} title="Fleet" /><${Loading} lines=${8} />`;
  /** @type {import('./api.js').Adapter[]} */
  const all = adapters.data;
  /** @type {import('./api.js').Alias[]} */
  const named = aliases.data?.data ?? [];
  const shown = chosen(all, filter);
  const tabs = [{ id: 'adapters', label: 'Adapters', badge: all.length }, { id: 'aliases', label: 'Aliases', badge: named.length }];
  const choose = (/** @type {string} */ id) => go('fleet', paramsOf(filter, id));
  const actions = html`<${Button} kind="primary" icon="plus" onClick=${() => setPublishes(true)}>Publish<//>`;
  return html`
    <${ViewHead} title="Fleet" actions=${actions}>Adapters that ride on the base, and the names that lead to them.<//>
    <div class=${`fleet ${path ? 'with-detail' : ''}`}>
      <div class="fleet-main">
        <${Tabs} tabs=${tabs} chosen=${tab} onChoose=${choose} label="What is listed">
          ${tab === 'aliases'
            ? html`<${AliasList} aliases=${named} adapters=${all} open=${params.get('alias') ?? ''} onChange=${reload} />`
            : !all.length
              ? html`<${NoAdapter} onPublish=${() => setPublishes(true)} />`
              : html`
                <${FilterBar} filter=${filter} onChange=${refine} adapters=${all} shown=${shown.length} />
                <${AdapterTable} adapters=${shown} opened=${path} onOpen=${open} onClear=${() => refine(NO_FILTER)} />
                <${ShowAsCurl} request=${{ path: 'v1/adapters?limit=1000' }} />`}
        <//>
      </div>
      ${path && html`<${Detail} key=${path} name=${path} adapters=${all} aliases=${named} admin=${may.includes('admin')} onClose=${() => open('')} onChange=${reload} />`}
    </div>
    ${publishes && html`
      <${PublishDialog} sources=${tenant === null || may.includes('admin')} taken=${all} onClose=${() => setPublishes(false)} onChange=${reload}
        onDone=${(/** @type {string} */ name) => { setPublishes(false); reload(); open(name); }} />`}`;
}

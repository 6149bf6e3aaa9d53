/** One adapter: what it is, what can be done with it, its revisions and where it comes from. */
import { html, useState } from '../../core/preact.js';
import { useResource } from '../../core/resource.js';
import { linkTo } from '../../core/router.js';
import { IconButton } from '../../ui/button.js';
import { ModelChip } from '../../ui/chip.js';
import { ago, bytes, count, when } from '../../ui/format.js';
import { Failure, Loading } from '../../ui/states.js';
import { Tabs } from '../../ui/tabs.js';
import { Actions } from './actions.js';
import { adapterPath, referrersOf } from './api.js';
import { LineageGraph } from './lineage_graph.js';
import { Places, StateTag, TIERS } from './list.js';
import { Revisions } from './revisions.js';

/** @typedef {import('./api.js').Adapter} Adapter */
/** @typedef {import('./api.js').Alias} Alias */

const TABS = [{ id: 'overview', label: 'Overview' }, { id: 'revisions', label: 'Revisions' }, { id: 'lineage', label: 'Lineage' }];

/** @param {{name: string, adapters: Adapter[], aliases: Alias[], admin: boolean, onClose: () => void, onChange: () => void}} props */
export function Detail({ name, adapters, aliases, admin, onClose, onChange }) {
  const listed = adapters.some((each) => each.id === name);
  const { data, error, reload } = useResource(listed ? adapterPath(name) : null, { every: 5000 });
  const [tab, setTab] = useState('overview');
  const change = () => { reload(); onChange(); };
  const tabs = TABS.map((each) => (each.id === 'revisions' && data ? { ...each, badge: data.revisions.length } : each));
  return html`
    <aside class="detail" aria-label=${`Adapter ${name}`} onKeyDown=${(/** @type {KeyboardEvent} */ event) => { if (event.key === 'Escape' && !document.querySelector('dialog[open]')) onClose(); }}>
      <header class="detail-head">
        <h2><${ModelChip} name=${name} /></h2>
        <${IconButton} icon="close" label="Close" onClick=${onClose} />
      </header>
      ${!listed && html`<p class="hint">There is no adapter of this name any more, or not for this key.</p>`}
      ${error && !data && html`<${Failure} error=${error} onRetry=${reload} />`}
      ${listed && !error && !data && html`<${Loading} lines=${6} />`}
      ${listed && data && html`
        <${Actions} adapter=${data} referrers=${referrersOf(name, aliases, adapters)} admin=${admin} onChange=${change} onGone=${() => { onClose(); onChange(); }} />
        ${data.error && html`<p class="fault whole">${data.error}</p>`}
        <${Tabs} tabs=${tabs} chosen=${tab} onChoose=${setTab} label="About this adapter">
          ${tab === 'overview' && html`<${Overview} adapter=${data} referrers=${referrersOf(name, aliases, adapters)} />`}
          ${tab === 'revisions' && html`<${Revisions} adapter=${data} onChange=${change} />`}
          ${tab === 'lineage' && html`<${LineageGraph} adapter=${data} adapters=${adapters} aliases=${aliases} />`}
        <//>`}
    </aside>`;
}

/** @param {{adapter: any, referrers: ReturnType<typeof referrersOf>}} props */
function Overview({ adapter, referrers }) {
  const { traffic, residency } = adapter;
  const notes = [adapter.details?.warnings, adapter.details?.notes].flat().filter(Boolean);
  return html`
    <dl class="facts">
      <dt>State</dt><dd><${StateTag} adapter=${adapter} /></dd>
      <dt>Revision</dt><dd><code>${adapter.revision ?? '–'}</code></dd>
      <dt>Kind</dt><dd>${adapter.kind ?? '–'}${adapter.rank !== null && `, rank ${adapter.rank}`}</dd>
      <dt>Changes</dt><dd>${adapter.modules ?? '–'} of ${adapter.total_modules ?? '–'} layers</dd>
      <dt>Where</dt>
      <dd><${Places} adapter=${adapter} /> ${TIERS.filter(([tier]) => residency[tier] > 0).map(([tier, says]) => `${bytes(residency[tier])} ${says}`).join(', ')}</dd>
      <dt>Requests</dt><dd>${count(traffic.requests)}${traffic.running > 0 && `, ${count(traffic.running)} running`}</dd>
      <dt>Tokens</dt><dd>${count(traffic.prompt_tokens)} read, ${count(traffic.generated_tokens)} written</dd>
      <dt>Scores</dt><dd>${traffic.scores ? `${traffic.mean_score.toFixed(2)} over ${count(traffic.scores)}` : 'none'}</dd>
      <dt>Last used</dt><dd>${adapter.last_used ? ago(adapter.last_used) : 'never'}</dd>
      <dt>Source</dt><dd>${adapter.source ?? 'not told to this key'}</dd>
      <dt>Base</dt><dd>${adapter.base_model ?? 'not recorded'}</dd>
      ${adapter.tags.length > 0 && html`<dt>Tags</dt><dd class="line tight">${adapter.tags.map((/** @type {string} */ tag) => html`<a key=${tag} class="tag" href=${linkTo('fleet', { tag })}>${tag}</a>`)}</dd>`}
      ${adapter.shared_with.length > 0 && html`<dt>Shared with</dt><dd>${adapter.shared_with.join(', ')}</dd>`}
      ${referrers.aliases.length > 0 && html`<dt>Aliases</dt><dd class="line tight">${referrers.aliases.map((alias) => html`<a key=${alias} href=${linkTo('fleet', { tab: 'aliases', alias })}>${alias}</a>`)}</dd>`}
      <dt>Published</dt><dd>${when(adapter.updated)}</dd>
    </dl>
    ${notes.length > 0 && html`<ul class="notes">${notes.map((/** @type {string} */ note) => html`<li key=${note}>${note}</li>`)}</ul>`}`;
}

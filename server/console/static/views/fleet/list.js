/** The table of adapters. */
import { html } from '../../core/preact.js';
import { Button } from '../../ui/button.js';
import { ModelChip } from '../../ui/chip.js';
import { ago, bytes, count } from '../../ui/format.js';
import { Icon } from '../../ui/icons.js';
import { Empty } from '../../ui/states.js';
import { Table } from '../../ui/table.js';

/** @typedef {import('./api.js').Adapter} Adapter */

const KINDS_OF_STATE = { ready: 'good', loading: 'warn', draining: 'warn', failed: 'bad' };

/** @param {{adapter: Pick<Adapter, 'state' | 'error'>}} props */
export function StateTag({ adapter: { state, error } }) {
  const kind = state === 'ready' && error ? 'warn' : KINDS_OF_STATE[state];
  return html`<span class=${`tag ${kind}`} title=${error ?? ''}>${error && html`<${Icon} name="warning" size=${12} />`}${state}</span>`;
}

/** @type {['device' | 'memory' | 'disk', string][]} */
export const TIERS = [['device', 'on the device'], ['memory', 'in memory'], ['disk', 'on disk']];

/** @param {{adapter: Adapter}} props where its bytes are, as three marks */
export function Places({ adapter: { residency, pinned } }) {
  const there = TIERS.filter(([tier]) => residency[tier] > 0).map(([, says]) => says);
  const told = [...there, ...(pinned ? ['pinned'] : [])].join(', ') || 'nowhere';
  return html`
    <span class="places" title=${told}>
      <span class="unseen">${told}</span>
      ${TIERS.map(([tier]) => html`<span key=${tier} class=${`place ${tier} ${residency[tier] > 0 ? 'there' : ''}`} aria-hidden="true"></span>`)}
      ${pinned && html`<${Icon} name="pin" size=${14} />`}
    </span>`;
}

/** @param {Adapter} adapter how near it is to being used */
function nearness({ residency, pinned }) {
  return (pinned ? 8 : 0) + (residency.device ? 4 : 0) + (residency.memory ? 2 : 0) + (residency.disk ? 1 : 0);
}

/** @type {import('../../ui/table.js').Column[]} */
const COLUMNS = [
  { id: 'name', label: 'Name', width: 'minmax(9rem, 2.4fr)', sort: (row) => row.id, render: (row) => html`<${ModelChip} name=${row.id} />` },
  { id: 'state', label: 'State', width: '5.4rem', sort: (row) => row.state, render: (row) => html`<${StateTag} adapter=${row} />` },
  { id: 'places', label: 'Where', width: '4.6rem', sort: nearness, render: (row) => html`<${Places} adapter=${row} />` },
  { id: 'revision', label: 'Revision', width: '5.6rem', extra: true, sort: (row) => row.revision ?? '', render: (row) => html`<code>${row.revision ?? '–'}</code>` },
  { id: 'kind', label: 'Kind, rank', width: 'minmax(5.6rem, 0.6fr)', extra: true, sort: (row) => `${row.kind ?? ''} ${String(row.rank ?? 0).padStart(6, '0')}`, render: (row) => (row.kind ? `${row.kind} ${row.rank ?? ''}` : '–') },
  { id: 'size', label: 'Size', width: '4.8rem', end: true, extra: true, sort: (row) => row.residency.disk, render: (row) => bytes(row.residency.disk) },
  { id: 'requests', label: 'Requests', width: '5rem', end: true, sort: (row) => row.traffic.requests, render: (row) => html`${row.traffic.running > 0 && html`<span class="running" title=${`${row.traffic.running} running`}></span>`}${count(row.traffic.requests)}` },
  { id: 'used', label: 'Last used', width: '5.6rem', end: true, extra: true, sort: (row) => row.last_used ?? 0, render: (row) => (row.last_used ? ago(row.last_used) : 'never') },
];

const BESIDE_DETAIL = new Set(['name', 'state', 'places']);

/** @param {{adapters: Adapter[], opened: string, onOpen: (name: string) => void, onClear: () => void}} props */
export function AdapterTable({ adapters, opened, onOpen, onClear }) {
  if (!adapters.length) {
    return html`
      <${Empty} icon="search" title="No adapter is like that" action=${html`<${Button} onClick=${onClear}>Show all<//>`}>
        Each word must be in its name, a tag, its source, kind or revision.
      <//>`;
  }
  const columns = opened ? COLUMNS.filter(({ id }) => BESIDE_DETAIL.has(id)) : COLUMNS;
  return html`
    <${Table} label="Adapters" columns=${columns} rows=${adapters} keyOf=${(/** @type {Adapter} */ each) => each.id} opened=${opened}
      onOpen=${(/** @type {Adapter} */ each) => onOpen(each.id)} sorted=${{ by: 'name', down: false }} rowHeight=${42} />`;
}

/** @param {{onPublish: () => void}} props */
export function NoAdapter({ onPublish }) {
  return html`
    <${Empty} icon="fleet" title="No adapter yet" action=${html`<${Button} kind="primary" icon="plus" onClick=${onPublish}>Publish one<//>`}>
      Drop the files of a PEFT adapter, or name where the server can fetch it. It is checked whole, then it serves: nothing is started anew.
    <//>`;
}

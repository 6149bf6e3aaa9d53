/** The log of what was done to adapters, aliases, tenants and keys. */
import { html, useState } from '../../core/preact.js';
import { useResource } from '../../core/resource.js';
import { noteState } from '../../core/router.js';
import { Button } from '../../ui/button.js';
import { Dialog } from '../../ui/dialog.js';
import { TextField } from '../../ui/field.js';
import { moment, when } from '../../ui/format.js';
import { CodeBlock, ShowAsCurl } from '../../ui/request.js';
import { Empty, Failure, Loading } from '../../ui/states.js';
import { Table } from '../../ui/table.js';

/** @typedef {{id: string, time: number, who: string, tenant: string, action: string, target: string, address: string, request: string, status: number, before: any, after: any}} Entry */

/** @param {number} status */
const kindOf = (status) => (status < 300 ? 'good' : status < 500 ? 'warn' : 'bad');

/** @type {import('../../ui/table.js').Column[]} */
const COLUMNS = [
  { id: 'time', label: 'When', width: '7.6rem', sort: (row) => row.time, render: (row) => moment(row.time) },
  { id: 'who', label: 'Who', width: 'minmax(7rem, 1fr)', extra: true, sort: (row) => row.who, render: (row) => `${row.who}${row.tenant && ` (${row.tenant})`}` },
  { id: 'action', label: 'What', width: 'minmax(7rem, 2fr)', sort: (row) => row.action, render: (row) => html`<code>${row.action}</code>` },
  { id: 'target', label: 'On', width: 'minmax(4rem, 1fr)', sort: (row) => row.target, render: (row) => row.target || '–' },
  { id: 'address', label: 'From', width: '8rem', extra: true, sort: (row) => row.address, render: (row) => row.address },
  { id: 'status', label: 'Answer', width: '4.6rem', extra: true, sort: (row) => row.status, render: (row) => html`<span class=${`tag ${kindOf(row.status)}`}>${row.status}</span>` },
];

const FIELDS = [['target', 'On', 'support'], ['who', 'Who', 'admin-api-key'], ['tenant', 'Tenant', 'acme']];

/** @param {{params: URLSearchParams}} props */
export function AuditLog({ params }) {
  const [asked, setAsked] = useState(/** @type {Record<string, string>} */ (Object.fromEntries(params)));
  const [limit, setLimit] = useState(200);
  const [opened, setOpened] = useState(/** @type {Entry | null} */ (null));
  const given = Object.fromEntries(Object.entries(asked).filter(([, value]) => value.trim()));
  const path = `v1/audit?${new URLSearchParams({ ...given, limit: String(limit) })}`;
  const { data, error, reload } = useResource(path, { every: 10_000 });
  const set = (/** @type {string} */ name, /** @type {string} */ value) => {
    const next = { ...asked, [name]: value };
    setAsked(next);
    noteState(Object.fromEntries(Object.entries(next).filter(([, each]) => each)));
  };
  const narrowed = Object.keys(given).length > 0;
  return html`
    <div class="stack">
    <div class="filters" role="search" aria-label="Audit log">
      ${FIELDS.map(([name = '', label, example]) => html`<${TextField} key=${name} label=${label} hideLabel placeholder=${`${label}: ${example}`} value=${asked[name] ?? ''} onInput=${(/** @type {string} */ value) => set(name, value)} />`)}
    </div>
    ${error && !data && html`<${Failure} error=${error} onRetry=${reload} />`}
    ${!error && !data && html`<${Loading} lines=${6} />`}
    ${data && !data.data.length && html`
      <${Empty} icon="history" title=${narrowed ? 'Nothing of that kind was done' : 'Nothing was done yet'}>
        ${narrowed ? 'Fields must be as they stand in the log.' : 'Whatever is published, changed or deleted is kept here, with who did it.'}
      <//>`}
    ${data?.data.length > 0 && html`
      <div class="audit-table"><${Table} label="Audit log" columns=${COLUMNS} rows=${data.data} keyOf=${(/** @type {Entry} */ each) => each.id} onOpen=${setOpened} rowHeight=${40} /></div>
      ${data.has_more && html`<div><${Button} onClick=${() => setLimit(Math.min(limit * 5, 10_000))}>Show earlier ones<//></div>`}`}
    <${ShowAsCurl} request=${{ path }} />
    </div>
    ${opened && html`<${EntryDialog} entry=${opened} onClose=${() => setOpened(null)} />`}`;
}

/** @param {{entry: Entry, onClose: () => void}} props */
function EntryDialog({ entry, onClose }) {
  const { before, after } = entry;
  return html`
    <${Dialog} title=${entry.action} wide onClose=${onClose}>
      <dl class="facts">
        <dt>When</dt><dd>${when(entry.time)}</dd>
        <dt>Who</dt><dd>${entry.who}${entry.tenant && `, of ${entry.tenant}`}, from ${entry.address}</dd>
        <dt>On</dt><dd>${entry.target || '–'}</dd>
        <dt>Answer</dt><dd>${entry.status}</dd>
        <dt>Request</dt><dd><code>${entry.request}</code></dd>
      </dl>
      ${before !== null && html`<h3>Before</h3><${CodeBlock} text=${JSON.stringify(before, null, 2)} />`}
      ${after !== null && html`<h3>After</h3><${CodeBlock} text=${JSON.stringify(after, null, 2)} />`}
    <//>`;
}

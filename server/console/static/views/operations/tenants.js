/** The tenants of the server, and the one that is open. */
import { askJson } from '../../core/http.js';
import { html, useState } from '../../core/preact.js';
import { useResource } from '../../core/resource.js';
import { go } from '../../core/router.js';
import { Button } from '../../ui/button.js';
import { Dialog } from '../../ui/dialog.js';
import { Checkbox, TextField } from '../../ui/field.js';
import { count, short } from '../../ui/format.js';
import { ShowAsCurl } from '../../ui/request.js';
import { Empty, Failure, Loading } from '../../ui/states.js';
import { Table } from '../../ui/table.js';
import { toast } from '../../ui/toast.js';
import { Tenant } from './tenant.js';

/** @typedef {{id: string, name: string, created: number, adapters: string[], base: boolean, default_adapter: string | null, weight: number, limits: Record<string, number | null>, adapter_limits: Record<string, any>, metadata: Record<string, string>}} TenantRecord */

/** @type {import('../../ui/table.js').Column[]} */
const COLUMNS = [
  { id: 'name', label: 'Name', width: 'minmax(8rem, 2fr)', sort: (row) => row.name, render: (row) => html`<strong>${row.name}</strong>` },
  { id: 'adapters', label: 'May use', width: 'minmax(7rem, 2fr)', extra: true, render: (row) => [...(row.base ? ['base'] : []), ...row.adapters].join(', ') || 'its own only' },
  { id: 'weight', label: 'Weight', width: '5rem', end: true, sort: (row) => row.weight, render: (row) => short(row.weight) },
  { id: 'limits', label: 'Limits', width: '5rem', end: true, sort: (row) => limitsOf(row), render: (row) => limitsOf(row) || 'none' },
];

/** @param {TenantRecord} row */
function limitsOf(row) {
  return Object.values(row.limits).filter((limit) => limit !== null).length + Object.keys(row.adapter_limits).length;
}

/** @param {{open: string}} props the tenant that is open */
export function Tenants({ open }) {
  const { data, error, reload } = useResource('v1/tenants?limit=1000', { every: 15_000 });
  const [makes, setMakes] = useState(false);
  if (error && !data) return html`<${Failure} error=${error} onRetry=${reload} />`;
  if (!data) return html`<${Loading} lines=${5} />`;
  /** @type {TenantRecord[]} */
  const tenants = data.data;
  const opened = tenants.find((tenant) => tenant.name === open);
  const choose = (/** @type {string} */ name) => go(name ? `operations/tenants/${name}` : 'operations/tenants');
  const create = html`<${Button} kind="primary" icon="plus" onClick=${() => setMakes(true)}>New tenant<//>`;
  return html`
    ${!tenants.length
      ? html`<${Empty} icon="key" title="No tenant yet" action=${create}>A tenant is somebody who shares the server, with keys, adapters and limits of its own. With the first one nobody is let in without a key any more.<//>`
      : html`
        <div class=${`tenants ${opened ? 'with-one' : ''}`}>
          <div class="stack">
            <div class="line"><span class="hint">${count(tenants.length)} ${tenants.length === 1 ? 'tenant' : 'tenants'}</span><span class="spacer"></span>${create}</div>
            <${Table} label="Tenants" columns=${opened ? COLUMNS.filter(({ id }) => id !== 'adapters') : COLUMNS} rows=${tenants} keyOf=${(/** @type {TenantRecord} */ each) => each.name}
              onOpen=${(/** @type {TenantRecord} */ each) => choose(each.name)} opened=${open} sorted=${{ by: 'name', down: false }} />
            <${ShowAsCurl} request=${{ path: 'v1/tenants' }} />
          </div>
          ${opened && html`<${Tenant} key=${opened.id} tenant=${opened} onChange=${reload} onClose=${() => choose('')} />`}
          ${open && !opened && html`<p class="hint">There is no tenant “${open}”.</p>`}
        </div>`}
    ${makes && html`<${NewTenant} onClose=${() => setMakes(false)} onDone=${(/** @type {string} */ name) => { setMakes(false); reload(); choose(name); }} />`}`;
}

/** @param {{onClose: () => void, onDone: (name: string) => void}} props */
function NewTenant({ onClose, onDone }) {
  const [name, setName] = useState('');
  const [adapters, setAdapters] = useState('');
  const [base, setBase] = useState(true);
  const [fault, setFault] = useState('');
  const [busy, setBusy] = useState(false);
  const body = { name, base, adapters: adapters.split(',').map((each) => each.trim()).filter(Boolean) };
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await askJson('v1/tenants', { body });
      toast(`${name} shares the server now`);
      onDone(name);
    } catch (error) {
      setFault(error instanceof Error ? error.message : String(error));
      setBusy(false);
    }
  };
  return html`
    <${Dialog} title="New tenant" onClose=${onClose}>
      <form class="stack" onSubmit=${submit}>
        <${TextField} label="Name" value=${name} onInput=${setName} autofocus fault=${fault} hint="Letters, digits, . _ and -" />
        <${TextField} label="Adapters that it may use" value=${adapters} onInput=${setAdapters} placeholder="polite, shared-*" hint="Besides its own. Separated by commas; * stands for any characters." />
        <${Checkbox} label="It may ask for the base model" checked=${base} onChange=${setBase} />
        <p class="hint">With the first tenant nobody is let in without a key any more.</p>
        <${ShowAsCurl} request=${{ path: 'v1/tenants', body }} />
        <div class="dialog-actions"><${Button} kind="quiet" onClick=${onClose}>Cancel<//><${Button} kind="primary" type="submit" busy=${busy} disabled=${!name}>Make it<//></div>
      </form>
    <//>`;
}

/** One tenant: what it may use and take, its keys, what it took. */
import { askJson } from '../../core/http.js';
import { html, useState } from '../../core/preact.js';
import { linkTo } from '../../core/router.js';
import { Button, IconButton } from '../../ui/button.js';
import { Confirm } from '../../ui/dialog.js';
import { Checkbox, TextField } from '../../ui/field.js';
import { when } from '../../ui/format.js';
import { ShowAsCurl } from '../../ui/request.js';
import { Tabs } from '../../ui/tabs.js';
import { toast } from '../../ui/toast.js';
import { Keys } from './keys.js';
import { Usage } from './usage.js';

/** @type {[string, string][]} limits, with what they are called here */
const LIMITS = [
  ['max_concurrent_requests', 'Requests at a time'], ['requests_per_minute', 'Requests a minute'], ['tokens_per_minute', 'Tokens a minute'],
  ['prompt_tokens_per_minute', 'Prompt tokens a minute'], ['completion_tokens_per_minute', 'Answer tokens a minute'], ['monthly_tokens', 'Tokens a month'],
  ['adapter_bytes', 'Bytes of adapters'], ['file_bytes', 'Bytes of files'],
];
const TABS = [{ id: 'usage', label: 'Usage' }, { id: 'keys', label: 'Keys' }, { id: 'limits', label: 'Settings and limits' }];

/** @param {{tenant: import('./tenants.js').TenantRecord, onChange: () => void, onClose: () => void}} props */
export function Tenant({ tenant, onChange, onClose }) {
  const [tab, setTab] = useState('usage');
  const [asks, setAsks] = useState(false);
  const remove = async () => {
    await askJson(`v1/tenants/${encodeURIComponent(tenant.name)}`, { method: 'DELETE' });
    toast(`${tenant.name} is gone`);
    onClose();
    onChange();
  };
  return html`
    <aside class="card tenant" aria-label=${`Tenant ${tenant.name}`}>
      <div class="line"><h2>${tenant.name}</h2><span class="hint">since ${when(tenant.created)}</span><span class="spacer"></span>
        <${Button} kind="danger" icon="trash" onClick=${() => setAsks(true)}>Delete…<//>
        <${IconButton} icon="close" label="Close" onClick=${onClose} />
      </div>
      <${Tabs} tabs=${TABS} chosen=${tab} onChoose=${setTab} label=${`About ${tenant.name}`}>
        <div class="stack">
        ${tab === 'usage' && html`<${Usage} tenant=${tenant} />`}
        ${tab === 'keys' && html`<${Keys} tenant=${tenant.name} />`}
        ${tab === 'limits' && html`<${Settings} key=${JSON.stringify(tenant)} tenant=${tenant} onChange=${onChange} />`}
        </div>
      <//>
      <a href=${linkTo('operations/audit', { target: tenant.name })}>What was done to it</a>
      ${asks && html`
        <${Confirm} title=${`Delete ${tenant.name}?`} action="Delete" danger onConfirm=${remove} onClose=${() => setAsks(false)}>
          <p>Its keys open nothing any more. Its files and batches stay, for operators. A tenant that has adapters or aliases is not deleted: delete those first.</p>
          <${ShowAsCurl} request=${{ path: `v1/tenants/${encodeURIComponent(tenant.name)}`, method: 'DELETE' }} />
        <//>`}
    </aside>`;
}

/** @param {{tenant: import('./tenants.js').TenantRecord, onChange: () => void}} props */
function Settings({ tenant, onChange }) {
  const [adapters, setAdapters] = useState(tenant.adapters.join(', '));
  const [base, setBase] = useState(tenant.base);
  const [weight, setWeight] = useState(String(tenant.weight));
  const [limits, setLimits] = useState(/** @type {Record<string, string>} */ (Object.fromEntries(LIMITS.map(([name]) => [name, String(tenant.limits[name] ?? '')]))));
  const [fault, setFault] = useState('');
  const [busy, setBusy] = useState(false);
  const path = `v1/tenants/${encodeURIComponent(tenant.name)}`;
  const wrong = Object.values(limits).some((value) => !/^\d*$/.test(value.trim())) || !(Number(weight) > 0);
  const body = {
    adapters: adapters.split(',').map((each) => each.trim()).filter(Boolean),
    base,
    weight: Number(weight),
    limits: Object.fromEntries(Object.entries(limits).filter(([, value]) => value.trim()).map(([name, value]) => [name, Number(value)])),
  };
  const save = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    setFault('');
    try {
      await askJson(path, { method: 'PATCH', body });
      toast(`${tenant.name} is changed`);
      onChange();
    } catch (error) {
      setFault(error instanceof Error ? error.message : String(error));
    }
    setBusy(false);
  };
  return html`
    <form class="stack" onSubmit=${save}>
      <${TextField} label="Adapters that it may use" value=${adapters} onInput=${setAdapters} hint="Besides its own and those shared with it. * stands for any characters." />
      <${Checkbox} label="It may ask for the base model" checked=${base} onChange=${setBase} />
      <div class="pairs">
        <${TextField} label="Weight" value=${weight} onInput=${setWeight} inputmode="decimal" hint="Its share while others want the server too." />
        ${LIMITS.map(([name, label]) => html`
          <${TextField} key=${name} label=${label} value=${limits[name]} inputmode="numeric" placeholder="no limit" onInput=${(/** @type {string} */ value) => setLimits({ ...limits, [name]: value })} />`)}
      </div>
      ${Object.keys(tenant.adapter_limits).length > 0 && html`<p class="hint">It has limits with single adapters as well (${Object.keys(tenant.adapter_limits).join(', ')}), which stay.</p>`}
      ${(fault || wrong) && html`<p class="fault" role="alert">${fault || 'Limits are whole numbers, and a weight is above 0.'}</p>`}
      <div class="line"><${ShowAsCurl} request=${{ path, method: 'PATCH', body }} /><span class="spacer"></span><${Button} kind="primary" type="submit" busy=${busy} disabled=${wrong}>Save<//></div>
    </form>`;
}

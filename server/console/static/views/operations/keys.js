/** The keys of a tenant. What opens is shown once, when it is made. */
import { askJson } from '../../core/http.js';
import { html, useState } from '../../core/preact.js';
import { useResource } from '../../core/resource.js';
import { Button } from '../../ui/button.js';
import { Confirm, Dialog } from '../../ui/dialog.js';
import { Checkbox, Select } from '../../ui/field.js';
import { when } from '../../ui/format.js';
import { CodeBlock, ShowAsCurl } from '../../ui/request.js';
import { Failure, Loading } from '../../ui/states.js';
import { toast, toastFault } from '../../ui/toast.js';

const HOUR = 3600;
const LASTS = [
  { value: '', label: 'For ever' }, { value: String(24 * HOUR), label: 'A day' }, { value: String(30 * 24 * HOUR), label: '30 days' }, { value: String(90 * 24 * HOUR), label: '90 days' },
];
/** @type {[string, string][]} */
const SCOPES = [['infer', 'Ask for answers'], ['manage', 'Manage its own adapters'], ['admin', 'Everything on this server']];

/** @param {{tenant: string}} props */
export function Keys({ tenant }) {
  const path = `v1/tenants/${encodeURIComponent(tenant)}/keys`;
  const { data, error, reload } = useResource(path);
  const [makes, setMakes] = useState(false);
  const [made, setMade] = useState('');
  const [ends, setEnds] = useState('');
  const rotate = async (/** @type {string} */ id) => {
    try {
      setMade((await askJson(`${path}/${id}/rotate`, { body: { overlap: HOUR } })).key);
      reload();
    } catch (fault) { toastFault(fault); }
  };
  const revoke = async () => {
    await askJson(`${path}/${ends}`, { method: 'DELETE' });
    toast('The key opens nothing any more');
    reload();
  };
  if (error && !data) return html`<${Failure} error=${error} onRetry=${reload} />`;
  if (!data) return html`<${Loading} lines=${3} />`;
  return html`
    <ul class="key-list" aria-label=${`Keys of ${tenant}`}>
      ${data.data.map((/** @type {any} */ key) => html`
        <li key=${key.id}>
          <div><code>${key.prefix}…</code> <span class="hint">${key.id}</span></div>
          <p class="hint">${key.scopes.join(', ')} · since ${when(key.created)}${key.expires === null ? '' : `, until ${when(key.expires)}`}</p>
          <div class="line tight"><${Button} kind="quiet" icon="retry" onClick=${() => rotate(key.id)}>Rotate<//><${Button} kind="quiet" icon="trash" onClick=${() => setEnds(key.id)}>Revoke…<//></div>
        </li>`)}
    </ul>
    ${!data.data.length && html`<p class="hint">It has no key, so nobody can ask in its name.</p>`}
    <div class="line"><${Button} icon="plus" onClick=${() => setMakes(true)}>New key<//><${ShowAsCurl} request=${{ path }} /></div>
    ${makes && html`<${NewKey} path=${path} onClose=${() => setMakes(false)} onMade=${(/** @type {string} */ key) => { setMakes(false); setMade(key); reload(); }} />`}
    ${made && html`
      <${Dialog} title="The new key" onClose=${() => setMade('')} actions=${html`<${Button} kind="primary" onClick=${() => setMade('')}>I have it<//>`}>
        <p>Copy it now: it is shown only this once. What the server keeps of it opens nothing.</p>
        <${CodeBlock} text=${made} label="Copy the key" />
      <//>`}
    ${ends && html`
      <${Confirm} title="Revoke this key?" action="Revoke" danger onConfirm=${revoke} onClose=${() => setEnds('')}>
        <p>Requests with it are refused from now on; answers that have begun are completed.</p>
        <${ShowAsCurl} request=${{ path: `${path}/${ends}`, method: 'DELETE' }} />
      <//>`}`;
}

/** @param {{path: string, onClose: () => void, onMade: (key: string) => void}} props */
function NewKey({ path, onClose, onMade }) {
  const [scopes, setScopes] = useState(['infer']);
  const [lasts, setLasts] = useState('');
  const [busy, setBusy] = useState(false);
  const body = { scopes, ...(lasts && { expires_in: Number(lasts) }) };
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    try {
      onMade((await askJson(path, { body })).key);
    } catch (error) {
      toastFault(error);
      setBusy(false);
    }
  };
  return html`
    <${Dialog} title="New key" onClose=${onClose}>
      <form class="stack" onSubmit=${submit}>
        ${SCOPES.map(([scope, label]) => html`
          <${Checkbox} key=${scope} label=${label} checked=${scopes.includes(scope)} onChange=${(/** @type {boolean} */ on) => setScopes(on ? [...scopes, scope] : scopes.filter((each) => each !== scope))} />`)}
        <${Select} label="It lasts" value=${lasts} options=${LASTS} onChange=${setLasts} />
        <${ShowAsCurl} request=${{ path, body }} />
        <div class="dialog-actions"><${Button} kind="quiet" onClick=${onClose}>Cancel<//><${Button} kind="primary" type="submit" busy=${busy} disabled=${!scopes.length}>Make it<//></div>
      </form>
    <//>`;
}

/** What can be done with an adapter. */
import { access } from '../../core/access.js';
import { askJson } from '../../core/http.js';
import { html, useState } from '../../core/preact.js';
import { besideBase, linkTo } from '../../core/router.js';
import { useStore } from '../../core/store.js';
import { Button } from '../../ui/button.js';
import { Icon } from '../../ui/icons.js';
import { AllAsCurl } from '../../ui/request.js';
import { toast, toastFault } from '../../ui/toast.js';
import { adapterPath } from './api.js';
import { DeleteDialog } from './delete.js';
import { ExportDialog } from './export.js';
import { MergeDialog } from './merge.js';

/** @type {Record<string, (name: string) => string>} what is said once it is done */
const DONE = {
  pin: (name) => `${name} stays on the device`,
  unpin: (name) => `${name} may be evicted again`,
  prefetch: (name) => `${name} is brought in`,
  evict: (name) => `${name} is on disk only; the next request brings it back`,
};

/**
 * @param {{adapter: any, referrers: ReturnType<typeof import('./api.js').referrersOf>, admin: boolean, onChange: () => void, onGone: () => void}} props
 */
export function Actions({ adapter, referrers, admin, onChange, onGone }) {
  const { features, server } = useStore(access);
  const [busy, setBusy] = useState('');
  const [dialog, setDialog] = useState('');
  const name = adapter.id;
  const serves = adapter.revision !== null && adapter.state === 'ready';
  const act = async (/** @type {string} */ deed) => {
    setBusy(deed);
    try {
      await askJson(adapterPath(name, deed), { method: 'POST' });
      toast(DONE[deed]?.(name) ?? '');
    } catch (error) {
      toastFault(error);
    }
    setBusy('');
    onChange();
  };
  const simple = (/** @type {string} */ deed, /** @type {string} */ text, icon = '') => html`
    <${Button} busy=${busy === deed} disabled=${Boolean(busy)} icon=${icon} onClick=${() => act(deed)}>${text}<//>`;
  return html`
    <div class="actions">
      ${serves && html`
        <a class="button primary" href=${linkTo('playground', { model: name })}><${Icon} name="chat" size=${16} /><span>Chat</span></a>
        ${server.model && html`<a class="button plain" href=${besideBase(server.model, name)}>Compare with base</a>`}`}
      ${admin && serves && html`
        ${adapter.pinned ? simple('unpin', 'Unpin', 'pin') : simple('pin', 'Pin', 'pin')}
        ${adapter.residency.device === 0 && simple('prefetch', 'Prefetch')}
        ${!adapter.pinned && (adapter.residency.device > 0 || adapter.residency.memory > 0) && simple('evict', 'Evict')}
        <${Button} onClick=${() => setDialog('merge')}>Merge…<//>`}
      ${features.exports && serves && html`<${Button} onClick=${() => setDialog('export')}>Export…<//>`}
      <${Button} kind="danger" icon="trash" onClick=${() => setDialog('delete')}>Delete…<//>
    </div>
    <${AllAsCurl} requests=${requestsOf(name, admin)} />
    ${dialog === 'merge' && html`<${MergeDialog} name=${name} onClose=${() => setDialog('')} />`}
    ${dialog === 'export' && html`<${ExportDialog} name=${name} onClose=${() => setDialog('')} />`}
    ${dialog === 'delete' && html`<${DeleteDialog} name=${name} referrers=${referrers} onClose=${() => setDialog('')} onGone=${onGone} />`}`;
}

/** @param {string} name @param {boolean} admin @returns {[string, import('../../ui/request.js').ShownRequest][]} */
function requestsOf(name, admin) {
  return [
    ['look at it', { path: adapterPath(name) }],
    ...(admin ? Object.keys(DONE) : []).map((deed) => /** @type {[string, import('../../ui/request.js').ShownRequest]} */ (
      [deed, { path: adapterPath(name, deed), method: 'POST' }])),
    ['delete it', { path: adapterPath(name), method: 'DELETE' }],
  ];
}

/** Asks for the key, where the server has keys. */
import { access, signIn, signOut } from '../core/access.js';
import { currentKey } from '../core/key.js';
import { html, useState } from '../core/preact.js';
import { useStore } from '../core/store.js';
import { Button } from './button.js';
import { Dialog } from './dialog.js';
import { Checkbox, TextField } from './field.js';
import { Icon } from './icons.js';
import { toastFault } from './toast.js';

/** @param {{needed: boolean, onClose: () => void}} props needed: nothing opens without one */
export function KeyDialog({ needed, onClose }) {
  const { wrong } = useStore(access);
  const [key, setKey] = useState('');
  const [keep, setKeep] = useState(false);
  const [busy, setBusy] = useState(false);
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (!key.trim()) return;
    setBusy(true);
    try {
      await signIn(key.trim(), keep);
      if (access.value.state === 'open') onClose();
    } catch (error) {
      toastFault(error);
    } finally {
      setBusy(false);
    }
  };
  return html`
    <${Dialog} title=${needed ? 'This server asks for a key' : 'Use another key'} onClose=${needed ? null : onClose}>
      <form class="stack" onSubmit=${submit}>
        <${TextField} label="API key" type="password" value=${key} onInput=${setKey} autofocus
          fault=${wrong ? 'This key opens nothing here.' : ''}
          hint="It goes to this server only, in a header. It is kept in this page’s memory." />
        <${Checkbox} label="Keep it until this tab is closed" checked=${keep} onChange=${setKeep} />
        <div class="dialog-actions"><${Button} kind="primary" type="submit" busy=${busy}>Open<//></div>
      </form>
    <//>`;
}

/** @param {{onAsk: () => void}} props */
export function KeyMenu({ onAsk }) {
  const { state, may, tenant, features } = useStore(access);
  if (state !== 'open' || !features.keys) return null;
  const who = tenant ?? (may.includes('admin') ? 'Admin' : currentKey() ? 'Key' : 'No key');
  return html`
    <div class="who">
      <span class="who-name" title="Who the server takes you for"><${Icon} name="key" size=${16} /><span>${who}</span></span>
      ${currentKey()
        ? html`<${Button} kind="quiet" icon="leave" title="Forget key" onClick=${() => signOut().catch(toastFault)}>Forget key<//>`
        : html`<${Button} kind="quiet" icon="key" title="Use a key" onClick=${onAsk}>Use a key<//>`}
    </div>`;
}

/** Deleting an adapter: what refers to it is shown first, and its name is asked for. */
import { askJson } from '../../core/http.js';
import { html, useState } from '../../core/preact.js';
import { linkTo } from '../../core/router.js';
import { Button } from '../../ui/button.js';
import { Dialog } from '../../ui/dialog.js';
import { TextField } from '../../ui/field.js';
import { bytes, count } from '../../ui/format.js';
import { ShowAsCurl } from '../../ui/request.js';
import { toast } from '../../ui/toast.js';
import { adapterPath } from './api.js';

/**
 * @param {{name: string, referrers: ReturnType<typeof import('./api.js').referrersOf>, onClose: () => void, onGone: () => void}} props
 */
export function DeleteDialog({ name, referrers, onClose, onGone }) {
  const [typed, setTyped] = useState('');
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState('');
  const { aliases, composed, twins, running } = referrers;
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (typed !== name) return;
    setBusy(true);
    try {
      const told = await askJson(adapterPath(name), { method: 'DELETE' });
      toast(`${name} is deleted${told.bytes_freed ? `, ${bytes(told.bytes_freed)} freed` : ''}${told.running ? `; ${count(told.running)} requests still run` : ''}`);
      onGone();
    } catch (error) {
      setFault(error instanceof Error ? error.message : String(error));
      setBusy(false);
    }
  };
  return html`
    <${Dialog} title=${`Delete ${name}?`} onClose=${onClose}>
      <form class="stack" onSubmit=${submit}>
        <p>New requests for it are refused at once, and its revisions go with it. This can’t be undone.</p>
        <ul class="notes referrers">
          ${aliases.map((alias) => html`<li key=${`a${alias}`}>The alias <a href=${linkTo('fleet', { tab: 'aliases', alias })} onClick=${onClose}>${alias}</a> leads to it: change or delete that first.</li>`)}
          ${running > 0 && html`<li>${count(running)} requests run with it. They get 30 seconds to finish.</li>`}
          ${composed.map((each) => html`<li key=${`c${each}`}><strong>${each}</strong> was composed of it, and stays as it is.</li>`)}
          ${twins.length > 0 && html`<li>${twins.length === 1 ? html`<strong>${twins[0]}</strong> has` : `${count(twins.length)} other names have`} the same bytes, which stay for that.</li>`}
          ${!aliases.length && !running && !composed.length && !twins.length && html`<li>Nothing that is known here refers to it.</li>`}
        </ul>
        <${TextField} label="Its name, to be sure" value=${typed} onInput=${setTyped} autofocus fault=${fault} disabled=${aliases.length > 0} />
        <${ShowAsCurl} request=${{ path: adapterPath(name), method: 'DELETE' }} />
        <div class="dialog-actions">
          <${Button} kind="quiet" onClick=${onClose}>Cancel<//>
          <${Button} kind="danger" type="submit" busy=${busy} disabled=${typed !== name || aliases.length > 0}>Delete<//>
        </div>
      </form>
    <//>`;
}

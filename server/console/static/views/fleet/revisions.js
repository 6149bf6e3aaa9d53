/** The revisions that an adapter can go back to. */
import { askJson } from '../../core/http.js';
import { html, useState } from '../../core/preact.js';
import { linkTo } from '../../core/router.js';
import { Button } from '../../ui/button.js';
import { Confirm } from '../../ui/dialog.js';
import { bytes, when } from '../../ui/format.js';
import { ShowAsCurl } from '../../ui/request.js';
import { toast } from '../../ui/toast.js';
import { adapterPath } from './api.js';

/** @param {{adapter: any, onChange: () => void}} props */
export function Revisions({ adapter, onChange }) {
  const [wanted, setWanted] = useState(/** @type {any} */ (null));
  const roll = async () => {
    await askJson(adapterPath(adapter.id, 'rollback'), { method: 'POST', body: { revision: wanted.revision } });
    toast(`${adapter.id} serves ${wanted.revision} again`);
    onChange();
  };
  if (!adapter.revisions.length) return html`<p class="hint">It has never served, so there is no revision to go back to.</p>`;
  return html`
    <ol class="revisions">
      ${adapter.revisions.map((/** @type {any} */ each) => html`
        <li key=${each.digest} class=${each.current ? 'current' : ''}>
          <div class="line tight"><code title=${each.digest}>${each.revision}</code>${each.current && html`<span class="tag good">serves</span>`}${each.running > 0 && html`<span class="tag">${each.running} running</span>`}</div>
          <p class="hint">${each.kind}, rank ${each.rank}, ${bytes(each.bytes)} · ${when(each.created)}</p>
          ${each.source && html`<p class="hint breaks">${each.source}</p>`}
          <div class="line tight">
            <a class="button quiet" href=${linkTo('playground', { model: `${adapter.id}@${each.revision}` })}>Chat</a>
            ${!each.current && html`<${Button} kind="quiet" icon="history" onClick=${() => setWanted(each)}>Go back to it<//>`}
          </div>
        </li>`)}
    </ol>
    ${wanted && html`
      <${Confirm} title=${`Serve ${wanted.revision} again?`} action="Roll back" onConfirm=${roll} onClose=${() => setWanted(null)}>
        <p>New requests for <strong>${adapter.id}</strong> get ${wanted.revision}, of ${when(wanted.created)}, in place of ${adapter.revision}. Running ones keep theirs. Nothing is loaded, and you can come back the same way.</p>
        <${ShowAsCurl} request=${{ path: adapterPath(adapter.id, 'rollback'), method: 'POST', body: { revision: wanted.revision } }} />
      <//>`}`;
}

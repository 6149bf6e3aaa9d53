/** A merged copy: the base's weights with an adapter added in, beside the base. */
import { askJson } from '../../core/http.js';
import { html, useState } from '../../core/preact.js';
import { useResource } from '../../core/resource.js';
import { linkTo } from '../../core/router.js';
import { Button } from '../../ui/button.js';
import { Dialog } from '../../ui/dialog.js';
import { bytes, duration, percent, short } from '../../ui/format.js';
import { Progress } from '../../ui/progress.js';
import { AllAsCurl } from '../../ui/request.js';
import { toast } from '../../ui/toast.js';
import { adapterPath } from './api.js';

/** @param {{name: string, onClose: () => void}} props */
export function MergeDialog({ name, onClose }) {
  const [begun, setBegun] = useState(false);
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState('');
  const path = adapterPath(name, 'merge');
  const { data: copy, error } = useResource(begun ? path : null, { every: 1000 });
  const act = async (/** @type {() => Promise<void>} */ deed) => {
    setBusy(true);
    setFault('');
    try { await deed(); } catch (told) { setFault(told instanceof Error ? told.message : String(told)); }
    setBusy(false);
  };
  const build = () => act(async () => { await askJson(`${path}?wait=false`, { method: 'POST' }); setBegun(true); });
  const free = () => act(async () => {
    setBegun(false);
    const { bytes_freed: freed } = await askJson(path, { method: 'DELETE' });
    toast(`The merged copy of ${name} is gone, ${bytes(freed)} freed`);
    onClose();
  });
  const actions = html`
    <${Button} kind="quiet" onClick=${onClose}>Close<//>
    ${begun
      ? html`<${Button} kind="danger" busy=${busy} onClick=${free}>Free it<//>`
      : html`<${Button} kind="primary" busy=${busy} onClick=${build}>Build it<//>`}`;
  return html`
    <${Dialog} title=${`Merged copy of ${name}`} onClose=${onClose} actions=${actions}>
      <p>A copy of the base’s weights with the adapter added in. It pays where hardly anything but this adapter is asked for; base and adapters go on meanwhile. One that is there already is shown.</p>
      ${copy && html`<${Copy} name=${name} copy=${copy} />`}
      ${(fault || error) && html`<p class="fault" role="alert">${fault || error?.message}</p>`}
      <${AllAsCurl} requests=${[
        ['build it', { path, method: 'POST' }], ['look at it', { path }], ['free it', { path, method: 'DELETE' }],
      ]} />
    <//>`;
}

/** @param {{name: string, copy: any}} props */
function Copy({ name, copy }) {
  if (copy.state === 'failed') return html`<p class="fault">${copy.error ?? 'It could not be built.'}</p>`;
  if (copy.state !== 'ready') return html`<${Progress} label=${`${copy.state}`} share=${copy.progress} />`;
  return html`
    <dl class="facts">
      <dt>Asked for as</dt><dd><a href=${linkTo('playground', { model: `${name}@merged` })}>${name}@merged</a></dd>
      <dt>Memory</dt><dd>${bytes(copy.bytes)}, ${copy.dtype}</dd>
      ${copy.seconds !== null && html`<dt>Built in</dt><dd>${duration(copy.seconds)}</dd>`}
      ${copy.effect_kept !== null && html`<dt>Effect kept</dt><dd>${percent(copy.effect_kept)} after rounding</dd>`}
      ${copy.measured && html`<dt>Measured</dt><dd>largest difference ${short(copy.measured.max_logit_difference, 2)} of the largest logit, same first choice ${percent(copy.measured.top1_agreement)}</dd>`}
    </dl>
    ${copy.warning && html`<p class="fault">${copy.warning}</p>`}`;
}

/** Exporting: a standalone model on the server's disk. */
import { askJson } from '../../core/http.js';
import { html, useState } from '../../core/preact.js';
import { useResource } from '../../core/resource.js';
import { Button } from '../../ui/button.js';
import { Dialog } from '../../ui/dialog.js';
import { Checkbox, Select, TextField } from '../../ui/field.js';
import { bytes, duration, percent } from '../../ui/format.js';
import { Progress } from '../../ui/progress.js';
import { ShowAsCurl } from '../../ui/request.js';
import { adapterPath } from './api.js';

const DTYPES = [
  { value: 'keep', label: 'As the base has it' }, { value: 'bf16', label: 'bfloat16' }, { value: 'fp16', label: 'float16' }, { value: 'fp32', label: 'float32' },
];
const ENDED = new Set(['ready', 'failed']);

/** @param {{name: string, onClose: () => void}} props */
export function ExportDialog({ name, onClose }) {
  const [directory, setDirectory] = useState('');
  const [dtype, setDtype] = useState('keep');
  const [verify, setVerify] = useState(true);
  const [begun, setBegun] = useState(false);
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState('');
  const path = adapterPath(name, 'export');
  const { data: told, reload } = useResource(begun ? path : null, { every: 1000 });
  const body = { dtype, verify, ...(directory && { directory }) };
  const act = async (/** @type {() => Promise<any>} */ deed) => {
    setBusy(true);
    setFault('');
    try { await deed(); setBegun(true); reload(); } catch (error) { setFault(error instanceof Error ? error.message : String(error)); }
    setBusy(false);
  };
  const begin = () => act(() => askJson(`${path}?wait=false`, { body }));
  const cancel = () => act(() => askJson(path, { method: 'DELETE' }));
  const runs = begun && !ENDED.has(told?.state);
  const actions = html`
    <${Button} kind="quiet" onClick=${onClose}>Close<//>
    ${runs ? html`<${Button} kind="danger" busy=${busy} onClick=${cancel}>Cancel the export<//>` : html`<${Button} kind="primary" busy=${busy} onClick=${begin}>Export<//>`}`;
  return html`
    <${Dialog} title=${`Export ${name}`} onClose=${onClose} actions=${actions}>
      <p>Writes the base with the adapter merged in, as a model for transformers, into a new directory on the server’s disk.</p>
      <${TextField} label="Directory" value=${directory} onInput=${setDirectory} disabled=${runs} hint="Empty: the adapter’s name and revision." fault=${fault} />
      <${Select} label="Numbers" value=${dtype} options=${DTYPES} onChange=${setDtype} disabled=${runs} />
      <${Checkbox} label="Load it and compare its logits before it is handed over" checked=${verify} onChange=${setVerify} disabled=${runs} />
      ${told && (ENDED.has(told.state) ? html`<${Ended} told=${told} />` : html`<${Progress} label=${told.state} share=${told.state === 'writing' ? told.progress : null} />`)}
      <${ShowAsCurl} request=${{ path, body }} />
    <//>`;
}

/** @param {{told: any}} props */
function Ended({ told }) {
  if (told.state === 'failed') return html`<p class="fault" role="alert">${told.error?.message ?? 'It failed.'}</p>`;
  return html`
    <dl class="facts" role="status">
      <dt>Written to</dt><dd><code>${told.directory}</code></dd>
      <dt>Size</dt><dd>${bytes(told.bytes)} in ${told.files.length ?? told.files} files, ${duration(told.seconds ?? 0)}</dd>
      ${told.effect_kept !== null && html`<dt>Effect kept</dt><dd>${percent(told.effect_kept)} after rounding</dd>`}
    </dl>
    ${told.warning && html`<p class="fault">${told.warning}</p>`}`;
}

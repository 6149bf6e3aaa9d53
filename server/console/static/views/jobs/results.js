/** What a job leaves: checkpoints, files, and the log of what happened. */
import { ask, askJson } from '../../core/http.js';
import { html, useState } from '../../core/preact.js';
import { useResource } from '../../core/resource.js';
import { linkTo } from '../../core/router.js';
import { Button } from '../../ui/button.js';
import { download } from '../../ui/clipboard.js';
import { clock, short } from '../../ui/format.js';
import { toastFault } from '../../ui/toast.js';
import { ENDED, jobPath } from './api.js';

/** @param {{job: import('./api.js').Job}} props */
export function Results({ job }) {
  const { data } = useResource(ENDED.has(job.status) ? jobPath(job.id, 'checkpoints') : null);
  const checkpoints = data?.data ?? [];
  if (!checkpoints.length && !job.result_files.length) return null;
  return html`
    <section class="card" aria-label="Results">
      <h2>Results</h2>
      ${job.fine_tuned_model && html`<p class="breaks">Model <code>${job.fine_tuned_model}</code></p>`}
      ${checkpoints.length > 0 && html`
        <h3>Checkpoints</h3>
        <ul class="checkpoints">${checkpoints.map((/** @type {any} */ each) => html`
          <li key=${each.id}><span>Step ${each.step_number}</span><span class="hint number-text">${lossOf(each.metrics)}</span><a href=${linkTo('playground', { model: each.fine_tuned_model_checkpoint })}>Chat</a></li>`)}</ul>`}
      <div class="line">${job.result_files.map((id) => html`<${FileButton} key=${id} id=${id} />`)}</div>
    </section>`;
}

/** @param {Record<string, number>} metrics */
function lossOf({ valid_loss: valid, train_loss: train }) {
  return valid !== undefined ? `validation loss ${short(valid)}` : train !== undefined ? `loss ${short(train)}` : '';
}

/** @param {{id: string}} props a file, which takes the key to be fetched */
function FileButton({ id }) {
  const { data } = useResource(`v1/files/${encodeURIComponent(id)}`);
  const [busy, setBusy] = useState(false);
  if (!data) return null;
  const fetchIt = async () => {
    setBusy(true);
    try {
      const told = await askJson(`v1/files/${encodeURIComponent(id)}`);
      const text = await (await ask(`v1/files/${encodeURIComponent(id)}/content`, { headers: { accept: '*/*' } })).text();
      download(told.filename, text, 'application/octet-stream');
    } catch (error) {
      toastFault(error);
    }
    setBusy(false);
  };
  return html`<${Button} icon="download" busy=${busy} onClick=${fetchIt}>${data.filename}<//>`;
}

/** @param {{events: any[]}} props */
export function EventLog({ events }) {
  const shown = events.filter(({ type }) => type === 'message');
  return html`
    <section class="card" aria-label="What happened">
      <h2>What happened</h2>
      <ol class="event-log" tabIndex="0" aria-label="Events">
        ${shown.map((event) => html`<li key=${event.id} class=${event.level}><time class="hint number-text">${clock(event.created_at)}</time><span class="whole">${event.message}</span></li>`)}
      </ol>
    </section>`;
}

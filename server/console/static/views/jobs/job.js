/** One job: how far it is, its curves, what base and adapter answer, and what can be done with it. */
import { access, mayDo } from '../../core/access.js';
import { askJson } from '../../core/http.js';
import { html, useEffect, useState } from '../../core/preact.js';
import { useResource } from '../../core/resource.js';
import { besideBase, linkTo } from '../../core/router.js';
import { useStore } from '../../core/store.js';
import { Button } from '../../ui/button.js';
import { Confirm } from '../../ui/dialog.js';
import { count, duration, short, when } from '../../ui/format.js';
import { Icon } from '../../ui/icons.js';
import { Progress } from '../../ui/progress.js';
import { AllAsCurl } from '../../ui/request.js';
import { Failure, Loading } from '../../ui/states.js';
import { toast, toastFault } from '../../ui/toast.js';
import { ViewHead } from '../../ui/view_head.js';
import { ENDED, jobPath, shareOf } from './api.js';
import { Curves } from './curves.js';
import { useEvents } from './events.js';
import { EventLog, Results } from './results.js';
import { Samples } from './samples.js';
import { JobState, nameOf } from './view.js';

/** @typedef {import('./api.js').Job} Job */

/** @param {{id: string}} props */
export function JobPage({ id }) {
  const [ended, setEnded] = useState(false);
  const { data: job, error, reload } = useResource(jobPath(id), { every: ended ? 0 : 2000 });
  const { events, ended: streamed } = useEvents(id);
  useEffect(() => { setEnded(Boolean(job && ENDED.has(job.status))); }, [job]);
  useEffect(() => { if (streamed) reload(); }, [streamed]);
  if (error && !job) return html`<${ViewHead} title="Job" /><${Failure} error=${error} onRetry=${reload} />`;
  if (!job) return html`<${ViewHead} title="Job" /><${Loading} lines=${6} />`;
  const actions = html`<${Actions} job=${job} onChange=${reload} />`;
  const faults = events.filter((each) => each.level === 'error');
  return html`
    <${ViewHead} title=${nameOf(job)} actions=${actions}><span class="line tight"><a href=${linkTo('jobs')}>All jobs</a> <${JobState} status=${job.status} /></span><//>
    ${job.status === 'failed' && html`
      <div class="card failed" role="alert">
        <h2>It failed</h2>
        <ul class="notes">${(faults.length ? faults : [{ id: '', message: job.error?.message ?? '' }]).map((each) => html`<li key=${each.id} class="whole">${each.message}</li>`)}</ul>
        <a href=${linkTo('jobs/new', { model: job.model })}>Try with another file</a>
      </div>`}
    <${HowFar} job=${job} />
    <${Curves} events=${events} />
    <${Samples} events=${events} />
    <div class="cards">
      <${Facts} job=${job} />
      <${Results} job=${job} />
      <${EventLog} events=${events} />
    </div>
    <${AllAsCurl} requests=${[
      ['look at it', { path: jobPath(id) }], ['follow it', { path: `${jobPath(id, 'events')}?stream=true` }],
      .../** @type {[string, import('../../ui/request.js').ShownRequest][]} */ (['pause', 'resume', 'cancel'].map((deed) => [deed, { path: jobPath(id, deed), method: 'POST' }])),
    ]} />`;
}

/** @param {{job: Job}} props */
function HowFar({ job }) {
  if (ENDED.has(job.status)) return null;
  const { progress } = job;
  const left = job.estimated_finish ? Math.max(0, job.estimated_finish - Date.now() / 1000) : null;
  const told = progress ? `step ${count(progress.step)} of ${count(progress.total_steps)}${left === null ? '' : `, about ${duration(left)} left`}` : '';
  return html`<${Progress} label=${job.status === 'paused' ? 'Paused' : progress ? 'Training' : 'Getting ready'} share=${shareOf(job)}>${told}<//>`;
}

/** @param {{job: Job, onChange: () => void}} props */
function Actions({ job, onChange }) {
  const { server } = useStore(access);
  const [busy, setBusy] = useState('');
  const [asks, setAsks] = useState(false);
  const model = job.fine_tuned_model;
  const act = async (/** @type {string} */ deed) => {
    setBusy(deed);
    try { await askJson(jobPath(job.id, deed), { method: 'POST' }); } catch (error) { toastFault(error); }
    setBusy('');
    onChange();
  };
  const cancel = async () => { await askJson(jobPath(job.id, 'cancel'), { method: 'POST' }); toast('The job is cancelled'); onChange(); };
  const goes = !ENDED.has(job.status);
  return html`
    ${model && html`
      <a class="button primary" href=${linkTo('playground', { model })}><${Icon} name="chat" size=${16} /><span>Chat with it</span></a>
      ${server.model && html`<a class="button plain" href=${besideBase(server.model, model)}>Compare with base</a>`}
      ${mayDo('manage') && html`<a class="button plain" href=${linkTo(`fleet/${model}`)}>In the fleet</a>`}`}
    ${goes && mayDo('manage') && html`
      ${job.status === 'paused'
        ? html`<${Button} icon="play" busy=${busy === 'resume'} onClick=${() => act('resume')}>Resume<//>`
        : html`<${Button} icon="pause" busy=${busy === 'pause'} onClick=${() => act('pause')}>Pause<//>`}
      <${Button} kind="danger" icon="stop" onClick=${() => setAsks(true)}>Cancel…<//>`}
    ${asks && html`
      <${Confirm} title="Cancel this job?" action="Cancel the job" danger onConfirm=${cancel} onClose=${() => setAsks(false)}>
        <p>Nothing of what it has learned is kept. To go on later, pause it.</p>
      <//>`}`;
}

/** @param {{job: Job}} props */
function Facts({ job }) {
  const numbers = Object.entries(job.hyperparameters).map(([name, value]) => `${name.replaceAll('_', ' ')} ${value}`);
  const lora = Object.entries(job.lora ?? {}).filter(([, value]) => value !== null && value !== false).map(([name, value]) => `${name} ${value}`);
  return html`
    <section class="card" aria-label="About it">
      <h2>About it</h2>
      <dl class="facts">
        <dt>From</dt><dd>${job.model}</dd>
        <dt>Learns</dt><dd>${job.method.type === 'dpo' ? 'preferences' : 'answers'}</dd>
        <dt>With</dt><dd>${[...numbers, ...lora].join(', ')}</dd>
        ${job.progress?.train_loss !== undefined && html`<dt>Loss</dt><dd>${short(job.progress.train_loss)}</dd>`}
        ${job.trained_tokens !== null && html`<dt>Trained tokens</dt><dd>${count(job.trained_tokens)}</dd>`}
        <dt>Made</dt><dd>${when(job.created_at)}</dd>
        ${job.finished_at && html`<dt>Ended</dt><dd>${when(job.finished_at)}, after ${duration(job.finished_at - job.created_at)}</dd>`}
        <dt>Seed</dt><dd>${job.seed}</dd>
        <dt>Id</dt><dd><code>${job.id}</code></dd>
      </dl>
    </section>`;
}

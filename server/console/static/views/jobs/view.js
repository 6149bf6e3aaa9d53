/** Jobs: those that there are, a new one, and the one that is open. */
import { mayDo } from '../../core/access.js';
import { html } from '../../core/preact.js';
import { useResource } from '../../core/resource.js';
import { go } from '../../core/router.js';
import { Button } from '../../ui/button.js';
import { ago, short } from '../../ui/format.js';
import { ShowAsCurl } from '../../ui/request.js';
import { Empty, Failure, Loading } from '../../ui/states.js';
import { Table } from '../../ui/table.js';
import { ViewHead } from '../../ui/view_head.js';
import { stateOf } from './api.js';
import { JobPage } from './job.js';
import { NewJob } from './new.js';

/** @typedef {import('./api.js').Job} Job */

/** @param {{path: string, params: URLSearchParams}} props */
export default function JobsView({ path, params }) {
  if (path === 'new') return html`<${NewJob} model=${params.get('model') ?? ''} />`;
  return path ? html`<${JobPage} key=${path} id=${path} />` : html`<${JobList} />`;
}

/** @type {import('../../ui/table.js').Column[]} */
const COLUMNS = [
  { id: 'name', label: 'Job', width: 'minmax(9rem, 2fr)', sort: (row) => nameOf(row), render: (row) => html`<strong>${nameOf(row)}</strong>` },
  { id: 'status', label: 'State', width: '10rem', sort: (row) => row.status, render: (row) => html`<${JobState} status=${row.status} />` },
  { id: 'model', label: 'From', width: 'minmax(6rem, 1fr)', extra: true, sort: (row) => row.model, render: (row) => row.model },
  { id: 'steps', label: 'Steps', width: '7rem', end: true, extra: true, render: (row) => (row.progress ? `${row.progress.step} / ${row.progress.total_steps}` : '–') },
  { id: 'loss', label: 'Loss', width: '5rem', end: true, render: (row) => (row.progress?.train_loss === undefined ? '–' : short(row.progress.train_loss)) },
  { id: 'created', label: 'Made', width: '6.5rem', end: true, extra: true, sort: (row) => row.created_at, render: (row) => ago(row.created_at) },
];

/** @param {Job} job */
export function nameOf(job) {
  return job.user_provided_suffix ?? job.id;
}

/** @param {{status: string}} props */
export function JobState({ status }) {
  const [kind, text] = stateOf(status);
  return html`<span class=${`tag ${kind}`}>${text}</span>`;
}

function JobList() {
  const { data, error, reload } = useResource('v1/fine_tuning/jobs?limit=100', { every: 3000 });
  const create = mayDo('manage') && html`<${Button} kind="primary" icon="plus" onClick=${() => go('jobs/new')}>New job<//>`;
  return html`
    <${ViewHead} title="Jobs" actions=${data?.data.length ? create : null}>Trainings on this server, whose models answer here as soon as they are done.<//>
    ${error && !data && html`<${Failure} error=${error} onRetry=${reload} />`}
    ${!error && !data && html`<${Loading} lines=${5} />`}
    ${data && !data.data.length && html`
      <${Empty} icon="jobs" title="No job yet" action=${create}>
        Drop a file of conversations, see what is wrong with it and what training takes, and watch the model learn.
      <//>`}
    ${data?.data.length > 0 && html`
      <div class="job-table"><${Table} label="Jobs" columns=${COLUMNS} rows=${data.data} keyOf=${(/** @type {Job} */ job) => job.id} onOpen=${(/** @type {Job} */ job) => go(`jobs/${job.id}`)} /></div>
      ${data.has_more && html`<p class="hint">The newest hundred.</p>`}
      <${ShowAsCurl} request=${{ path: 'v1/fine_tuning/jobs' }} />`}`;
}

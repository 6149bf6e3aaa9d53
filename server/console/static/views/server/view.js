/** What this server is, and what the key at hand may do. */
import { access } from '../../core/access.js';
import { ROOT } from '../../core/http.js';
import { html } from '../../core/preact.js';
import { useResource } from '../../core/resource.js';
import { useStore } from '../../core/store.js';
import { CodeBlock, ShowAsCurl } from '../../ui/request.js';
import { Failure, Loading } from '../../ui/states.js';
import { ViewHead } from '../../ui/view_head.js';

/** @type {[string, string][]} facts of GET /version, with what they are called here */
const FACTS = [
  ['model', 'Base model'], ['device', 'Device'], ['dtype', 'Numbers'], ['quantize', 'Quantized'], ['decoder', 'Decoder'], ['kernels', 'Kernels'],
  ['max_model_len', 'Context'], ['version', 'manylora'],
];

/** @type {[import('../../core/access.js').Right, string][]} */
const RIGHTS = [['infer', 'Ask for answers'], ['manage', 'Manage adapters'], ['admin', 'Everything on this server']];

export default function ServerView() {
  const { may, tenant, features } = useStore(access);
  return html`
    <${ViewHead} title="Server">What answers here, and how programs reach it.<//>
    <div class="cards">
      <section class="card"><h2>Running</h2>${may.includes('infer') ? html`<${Facts} />` : html`<p class="hint">Keys that only manage adapters are not told.</p>`}</section>
      <section class="card">
        <h2>Your key</h2>
        <dl class="facts">
          ${RIGHTS.map(([right, text]) => html`<dt>${text}</dt><dd>${may.includes(right) ? 'yes' : 'no'}</dd>`)}
          <dt>Tenant</dt><dd>${tenant ?? 'none'}</dd>
          <dt>Fine-tuning jobs</dt><dd>${features.training ? 'on' : 'off'}</dd>
        </dl>
        <${ShowAsCurl} request=${{ path: 'v1/access' }} />
      </section>
      <section class="card">
        <h2>For programs</h2>
        <p>Clients of OpenAI’s API take this as their base URL:</p>
        <${CodeBlock} text=${new URL('v1', ROOT).href} />
        <p><a href=${new URL('docs', ROOT).href} target="_blank" rel="noopener">Every route, to be tried</a></p>
      </section>
    </div>`;
}

function Facts() {
  const { data, error, reload } = useResource('version');
  if (error) return html`<${Failure} error=${error} onRetry=${reload} />`;
  if (!data) return html`<${Loading} lines=${6} />`;
  return html`
    <dl class="facts">
      ${FACTS.filter(([name]) => data[name] !== undefined && data[name] !== null).map(([name, text]) => html`<dt>${text}</dt><dd>${String(data[name])}</dd>`)}
    </dl>
    <${ShowAsCurl} request=${{ path: 'version' }} />`;
}

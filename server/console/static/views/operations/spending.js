/** What a step costs, and what memory holds. */
import { html } from '../../core/preact.js';
import { bytes, count, duration, percent, short } from '../../ui/format.js';
import { Meter } from '../../ui/progress.js';
import { byLabel, total } from './metrics.js';

/** @param {{told: ReturnType<typeof import('./history.js').recent>}} props */
export function Steps({ told }) {
  if (!told || told.step === null) {
    return html`<section class="card" aria-label="Steps"><h2>Steps</h2><p class="hint">None in the last half minute.${told ? ` ${short(told.cores, 2)} cores busy.` : ''}</p></section>`;
  }
  return html`
    <section class="card" aria-label="Steps">
      <h2>Steps</h2>
      <${Meter} label="Time in steps" used=${Math.min(told.busy, 1)} total=${1} format=${percent} whole />
      <dl class="facts">
        <dt>A step takes</dt><dd>${duration(told.step)}${told.step99 !== null && html` <span class="hint">99 in 100: ${duration(told.step99)}</span>`}</dd>
        <dt>Steps a second</dt><dd>${short(told.steps)}</dd>
        <dt>Tokens in it</dt><dd>${short(told.stepTokens ?? 0)}</dd>
        <dt>Rows in it</dt><dd>${short(told.stepRows ?? 0)}</dd>
        <dt>Adapters in it</dt><dd>${short(told.stepAdapters ?? 0)}</dd>
        <dt>A row costs</dt><dd>${told.stepRows ? duration(told.step / told.stepRows) : '–'}</dd>
        <dt>Cores busy</dt><dd>${short(told.cores, 2)}</dd>
      </dl>
    </section>`;
}

/** @type {[string, string][]} counters since the server started, with what they are called here */
const COUNTED = [
  ['manylora_preemptions_total', 'Set back for want of memory'], ['manylora_adapter_evictions_total', 'Adapters evicted'],
  ['manylora_steps_out_of_memory_total', 'Steps out of memory'], ['manylora_aborts_total', 'Broken off by clients'],
];

/** @param {{samples: import('./metrics.js').Samples, version: any}} props */
export function Memory({ samples, version }) {
  const blocks = total(samples, 'manylora_kv_cache_blocks');
  const found = byLabel(samples, 'manylora_adapter_tier_hits_total', 'tier');
  const refused = [...byLabel(samples, 'manylora_requests_rejected_total', 'reason')].filter(([, value]) => value > 0);
  const copies = total(samples, 'manylora_merged_copies');
  const hits = [...found].filter(([, value]) => value > 0);
  return html`
    <section class="card" aria-label="Memory">
      <h2>Memory</h2>
      <${Meter} label="Keys and values" used=${total(samples, 'manylora_kv_cache_used_blocks')} total=${blocks} format=${(/** @type {number} */ value) => `${count(value)} blocks`} />
      <${Meter} label=${`${count(total(samples, 'manylora_adapters_resident'))} adapters on the device`} used=${total(samples, 'manylora_adapters_resident_bytes')} total=${version?.adapter_memory_bytes ?? null} format=${bytes} />
      <${Meter} label="Adapters in host memory" used=${total(samples, 'manylora_adapters_memory_bytes')} total=${null} format=${bytes} />
      ${copies > 0 && html`<${Meter} label=${`${count(copies)} merged copies`} used=${total(samples, 'manylora_merged_copies_bytes')} total=${null} format=${bytes} />`}
      <${Meter} label="The whole process" used=${total(samples, 'process_resident_memory_bytes')} total=${null} format=${bytes} />
      <dl class="facts">
        ${hits.length > 0 && html`<dt>Adapters were found</dt><dd>${hits.map(([tier, value]) => `${tier} ${count(value)}`).join(', ')}</dd>`}
        ${COUNTED.map(([name, label]) => [label, total(samples, name)]).filter(([, value]) => value).map(([label, value]) => html`<dt>${label}</dt><dd>${count(Number(value))}</dd>`)}
        ${refused.length > 0 && html`<dt>Refused</dt><dd>${refused.map(([reason, value]) => `${reason} ${count(value)}`).join(', ')}</dd>`}
      </dl>
      <p class="hint">Counts are since the server started.</p>
    </section>`;
}

/** What base and adapter answer to the same prompts, at each checkpoint. */
import { html, useState } from '../../core/preact.js';
import { Select } from '../../ui/field.js';

/** @typedef {{step: number, line: number, prompt: string, expected?: string, base: string, trained: string, published: boolean}} Sample */

/** @param {Sample} sample */
function turnOf({ step, published }) {
  return published ? 'result' : String(step);
}

/** @param {{events: any[]}} props the oldest first */
export function Samples({ events }) {
  /** @type {Sample[]} */
  const samples = events.filter(({ type }) => type === 'sample').map(({ data }) => data);
  const [chosen, setChosen] = useState('');
  if (!samples.length) return null;
  const turns = [...new Set(samples.map(turnOf))].reverse();
  const turn = turns.includes(chosen) ? chosen : turns[0] ?? '';
  const options = turns.map((value) => ({ value, label: value === 'result' ? 'The result' : `Step ${value}` }));
  return html`
    <section class="card" aria-label="Samples">
      <div class="line"><h2>What they answer</h2><span class="spacer"></span><${Select} label="When" hideLabel value=${turn} options=${options} onChange=${setChosen} /></div>
      <ul class="samples">
        ${samples.filter((sample) => turnOf(sample) === turn).map((sample) => html`
          <li key=${sample.line}>
            <p class="whole"><span class="hint">Asked</span> ${sample.prompt}</p>
            <div class="beside">
              <${Answer} label="Base" text=${sample.base} />
              <${Answer} label="Adapter" text=${sample.trained} good=${sample.expected !== undefined && sample.trained.trim() === sample.expected.trim()} />
              ${sample.expected !== undefined && html`<${Answer} label="In the file" text=${sample.expected} />`}
            </div>
          </li>`)}
      </ul>
    </section>`;
}

/** @param {{label: string, text: string, good?: boolean}} props */
function Answer({ label, text, good = false }) {
  return html`<div class=${`answer ${good ? 'same' : ''}`}><span class="hint">${label}${good ? ', as in the file' : ''}</span><p class="whole">${text || '(nothing)'}</p></div>`;
}

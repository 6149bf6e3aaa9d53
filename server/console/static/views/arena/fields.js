/** The card in which a contest is set up. */
import { html, useRef, useState } from '../../core/preact.js';
import { ModelPicker } from '../../models/picker.js';
import { Button, IconButton } from '../../ui/button.js';
import { ModelChip } from '../../ui/chip.js';
import { Checkbox, TextArea, TextField } from '../../ui/field.js';
import { Slider } from '../../ui/slider.js';
import { toast, toastFault } from '../../ui/toast.js';
import { MOST_PROMPTS, MOST_TARGETS, MOST_TOKENS, asked, promptText, readPrompts } from './setup.js';

const LARGEST_FILE = 4 * 1024 * 1024;

/** @typedef {import('./setup.js').Setup} Setup */

/** @param {{setup: Setup, catalog: import('../../models/catalog.js').Catalog, onChange: (change: Partial<Setup>) => void, onRun: () => void}} props */
export function Fields({ setup, catalog, onChange, onRun }) {
  const without = (/** @type {number} */ at) => setup.targets.filter((_, index) => index !== at);
  const press = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) { event.preventDefault(); onRun(); }
  };
  return html`
    <section class="card setup" aria-label="What is compared" onKeyDown=${press}>
      <div class="setup-main">
        <div class="targets">
          <span class="label">Targets</span>
          <ul>
            ${setup.targets.map((target, at) => html`
              <li key=${`${at}-${target}`}>
                <${ModelChip} name=${target} base=${target === catalog.base} />
                ${at === 0 ? html`<span class="tag">baseline</span>` : html`<${IconButton} icon="up" small label=${`Compare with ${target}`} onClick=${() => onChange({ targets: [target, ...without(at)] })} />`}
                <${IconButton} icon="close" small label=${`Take ${target} out`} onClick=${() => onChange({ targets: without(at) })} />
              </li>`)}
          </ul>
          ${setup.targets.length < MOST_TARGETS && html`
            <${ModelPicker} label="Add a target" hideLabel placeholder="Add a model, revision or mix…" value="" clears models=${catalog.models}
              onChoose=${(/** @type {string} */ target) => onChange({ targets: [...setup.targets, target] })} />`}
        </div>
        <${Prompts} setup=${setup} onChange=${onChange} />
      </div>
      <details class="how">
        <summary>How they answer<span class="hint"> · temperature ${setup.temperature}, up to ${setup.maxTokens} tokens${setup.system ? ', with a system prompt' : ''}</span></summary>
        <div class="how-fields">
          <${Slider} label="Temperature" min=${0} max=${2} step=${0.05} value=${setup.temperature} onInput=${(/** @type {number} */ temperature) => onChange({ temperature })} />
          <${Slider} label="Longest answer" min=${1} max=${MOST_TOKENS} step=${1} value=${setup.maxTokens} onInput=${(/** @type {number} */ maxTokens) => onChange({ maxTokens })} />
          <${TextField} label="Seed" value=${setup.seed} placeholder="drawn" inputmode="numeric" onInput=${(/** @type {string} */ seed) => onChange({ seed: seed.replace(/[^\d-]/g, '') })} />
          <${TextArea} label="System prompt" value=${setup.system} placeholder="None" onInput=${(/** @type {string} */ system) => onChange({ system })} />
        </div>
      </details>
      <div class="line">
        <${Checkbox} label="Blind: who answered is told after the vote" checked=${setup.blind} onChange=${(/** @type {boolean} */ blind) => onChange({ blind })} />
      </div>
    </section>`;
}

/** @param {{setup: Setup, onChange: (change: Partial<Setup>) => void}} props */
function Prompts({ setup, onChange }) {
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  const [over, setOver] = useState(false);
  const { prompts } = setup;
  const read = async (/** @type {File | undefined} */ file) => {
    if (!file) return;
    try {
      if (file.size > LARGEST_FILE) throw new Error('The file is too large for a list of prompts.');
      const found = readPrompts(await file.text());
      onChange({ prompts: found.prompts });
      toast(found.left ? `${found.prompts.length} prompts; ${found.left} more are left out.` : `${found.prompts.length} prompts.`);
    } catch (error) {
      toastFault(error);
    }
  };
  const drop = (/** @type {DragEvent} */ event) => { event.preventDefault(); setOver(false); void read(event.dataTransfer?.files[0]); };
  const choose = (/** @type {any} */ event) => { void read(event.currentTarget.files[0]); event.currentTarget.value = ''; };
  const single = prompts.length <= 1;
  return html`
    <div class=${`prompts ${over ? 'over' : ''}`} onDragOver=${(/** @type {Event} */ event) => { event.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)} onDrop=${drop}>
      ${single
        ? html`<${TextArea} label="Prompt" rows="3" value=${prompts[0] ? promptText(prompts[0]) : ''} placeholder="Ask all of them the same. Ctrl+Enter begins."
            onInput=${(/** @type {string} */ text) => onChange({ prompts: text ? [asked(text)] : [] })} />`
        : html`
          <span class="label">${prompts.length} prompts</span>
          <ol class="prompt-list" tabIndex="0" aria-label="Prompts">${prompts.map((prompt, at) => html`<li key=${at}>${promptText(prompt)}</li>`)}</ol>`}
      <div class="line">
        <input type="file" class="unseen" tabIndex="-1" ref=${input} accept=".txt,.jsonl,.json,text/plain" aria-label="File with prompts" onChange=${choose} />
        <${Button} kind="quiet" icon="upload" onClick=${() => input.current?.click()}>Prompts from a file<//>
        ${!single && html`<${Button} kind="quiet" icon="close" onClick=${() => onChange({ prompts: [] })}>Write one instead<//>`}
        <span class="hint">one a line, or JSONL with messages; up to ${MOST_PROMPTS}</span>
      </div>
    </div>`;
}

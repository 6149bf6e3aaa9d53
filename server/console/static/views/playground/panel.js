/** The panel beside a chat: the model or the mix, how it is sampled, and the form of its answers. */
import { html, useState } from '../../core/preact.js';
import { formatMix, isMix, parseMix } from '../../models/mix.js';
import { Mixer } from '../../models/mixer.js';
import { ModelPicker } from '../../models/picker.js';
import { Checkbox, TextArea, TextField } from '../../ui/field.js';
import { Slider } from '../../ui/slider.js';
import { Tabs } from '../../ui/tabs.js';
import { Form } from './form.js';
import { DEFAULTS, SLIDERS } from './settings.js';

/** @typedef {import('./settings.js').Settings} Settings */

/**
 * @param {{chat: import('./chat.js').Chat, conversation: import('./conversation.js').Conversation, catalog: import('../../models/catalog.js').Catalog}} props
 */
export function Panel({ chat, conversation, catalog }) {
  const [tab, setTab] = useState('model');
  const { settings } = conversation;
  const set = (/** @type {Partial<Settings>} */ change) => chat.change({ settings: { ...settings, ...change } });
  const shaped = Number(Boolean(settings.tools.trim())) + Number(settings.format !== 'text') + Number(settings.stop.length > 0);
  const tabs = [
    { id: 'model', label: 'Model' },
    { id: 'sampling', label: 'Sampling', badge: SLIDERS.filter(({ name }) => settings[name] !== DEFAULTS[name]).length || undefined },
    { id: 'form', label: 'Tools & form', badge: shaped || undefined },
  ];
  return html`
    <${Tabs} tabs=${tabs} chosen=${tab} onChoose=${setTab} label="What is asked for">
      ${tab === 'model' && html`<${ModelTab} chat=${chat} conversation=${conversation} catalog=${catalog} />`}
      ${tab === 'sampling' && html`<${Sampling} settings=${settings} onSet=${set} />`}
      ${tab === 'form' && html`<${Form} settings=${settings} onSet=${set} />`}
    <//>`;
}

/** @param {{chat: import('./chat.js').Chat, conversation: import('./conversation.js').Conversation, catalog: import('../../models/catalog.js').Catalog}} props */
function ModelTab({ chat, conversation, catalog }) {
  const [again, setAgain] = useState(true);
  const { model } = conversation;
  const terms = parseMix(model);
  const release = (/** @type {string} */ next) => {
    chat.change({ model: next });
    if (again) void chat.askAgain();
  };
  return html`
    <div class="stack">
      <${ModelPicker} label="Model" value=${model} models=${catalog.models} onChoose=${(/** @type {string} */ next) => chat.change({ model: next })}
        hint=${terms ? undefined : 'This is no model string that the mixer can read; it is sent as it stands.'} />
      <fieldset class="group">
        <legend>Mixer</legend>
        <${Mixer} model=${model} catalog=${catalog} onChange=${(/** @type {string} */ next) => chat.change({ model: next })} onRelease=${release} />
        <${Checkbox} label="Ask again when a slider is let go" checked=${again} onChange=${setAgain} />
        ${isMix(terms) && html`<p class="hint">Exactly W ${(terms ?? []).map((term) => html`${term.weight < 0 ? '−' : '+'} ${Math.abs(Number(term.weight.toFixed(2)))}·Δ<sub>${formatMix([{ ...term, weight: 1 }])}</sub> `)}</p>`}
      </fieldset>
      <${TextArea} label="System prompt" value=${conversation.system} placeholder="None" onInput=${(/** @type {string} */ system) => chat.change({ system })} />
    </div>`;
}

/** @param {{settings: Settings, onSet: (change: Partial<Settings>) => void}} props */
function Sampling({ settings, onSet }) {
  const seedFault = settings.seed.trim() && !/^-?\d{1,18}$/.test(settings.seed.trim()) ? 'A whole number' : '';
  return html`
    <div class="stack tight">
      <${Checkbox} label="Tell how likely each token was" hint="with what else it might have been" checked=${settings.probabilities}
        onChange=${(/** @type {boolean} */ probabilities) => onSet({ probabilities })} />
      ${SLIDERS.map(({ name, label, min, max, step, hint }) => html`
        <${Slider} key=${name} label=${label} hint=${hint} min=${min} max=${max} step=${step} value=${settings[name]} centred=${min < 0}
          onInput=${(/** @type {number} */ value) => onSet({ [name]: value })} />`)}
      <${TextField} label="Seed" value=${settings.seed} placeholder="drawn anew each time" inputmode="numeric" fault=${seedFault}
        onInput=${(/** @type {string} */ seed) => onSet({ seed })} />
    </div>`;
}

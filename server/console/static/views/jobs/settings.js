/** What is learned and how: the fields of a new job. */
import { html, useId } from '../../core/preact.js';
import { useResource } from '../../core/resource.js';
import { Checkbox, Select, TextField } from '../../ui/field.js';

/** @typedef {{model: string, suffix: string, method: string, n_epochs: string, batch_size: string, learning_rate_multiplier: string, r: string, alpha: string, samples: string, dora: boolean, seed: string}} JobSettings */

/** @returns {JobSettings} */
export function firstSettings() {
  return { model: '', suffix: '', method: 'supervised', n_epochs: '', batch_size: '', learning_rate_multiplier: '', r: '', alpha: '', samples: '4', dora: false, seed: '' };
}

/** @type {[keyof JobSettings, string, string][]} */
const NUMBERS = [
  ['n_epochs', 'Passes over the rows', 'auto'], ['batch_size', 'Rows of a step', 'auto'], ['learning_rate_multiplier', 'Learning rate, × 0.0002', 'auto'],
  ['r', 'Rank of the adapter', 'default'], ['alpha', 'Alpha of the adapter', 'default'], ['samples', 'Rows that are answered to look at', '0'], ['seed', 'Seed', 'drawn'],
];
const METHODS = [{ value: 'supervised', label: 'Answers' }, { value: 'dpo', label: 'Preferences (DPO)' }];

/** @param {Record<string, string>} texts what is given of them, as numbers; what is no number stays as it is, for the server to refuse */
function given(texts) {
  return Object.fromEntries(Object.entries(texts).filter(([, text]) => text.trim()).map(([name, text]) => [name, Number.isFinite(Number(text)) ? Number(text) : text]));
}

/**
 * The body of the request.
 * @param {JobSettings} settings
 * @param {string} training
 * @param {string | null} validation
 * @returns {Record<string, any>}
 */
export function bodyOf(settings, training, validation) {
  const { n_epochs, batch_size, learning_rate_multiplier, r, alpha, samples, seed } = settings;
  const hyperparameters = given({ n_epochs, batch_size, learning_rate_multiplier });
  const lora = { ...given({ r, alpha }), ...(settings.dora && { use_dora: true }) };
  return {
    model: settings.model,
    training_file: training,
    ...(validation && { validation_file: validation }),
    ...(settings.suffix.trim() && { suffix: settings.suffix.trim() }),
    method: { type: settings.method, [settings.method]: { hyperparameters } },
    ...(Object.keys(lora).length && { lora }),
    ...(settings.method === 'supervised' && Number(samples) !== 0 && given({ samples })),
    ...given({ seed }),
  };
}

/** @param {{settings: JobSettings, onChange: (settings: JobSettings) => void}} props */
export function Settings({ settings, onChange }) {
  const { data } = useResource('v1/models');
  const options = useId();
  const set = (/** @type {Partial<JobSettings>} */ some) => onChange({ ...settings, ...some });
  return html`
    <datalist id=${options}>${(data?.data ?? []).slice(0, 500).map((/** @type {{id: string}} */ each) => html`<option key=${each.id} value=${each.id}></option>`)}</datalist>
    <${TextField} label="Model to begin from" value=${settings.model} list=${options} onInput=${(/** @type {string} */ model) => set({ model })} hint="The base, or an adapter to go on from." />
    <div class="pairs">
      <${TextField} label="Name" value=${settings.suffix} placeholder="rooms" onInput=${(/** @type {string} */ suffix) => set({ suffix })} />
      <${Select} label="Learned are" value=${settings.method} options=${METHODS} onChange=${(/** @type {string} */ method) => set({ method })} />
      ${NUMBERS.filter(([name]) => name !== 'samples' || settings.method === 'supervised').map(([name, label, otherwise]) => html`
        <${TextField} key=${name} label=${label} value=${settings[name]} inputmode="decimal" placeholder=${otherwise} onInput=${(/** @type {string} */ value) => set({ [name]: value })} />`)}
    </div>
    <${Checkbox} label="DoRA" hint="Learns size and direction of the weights apart: slower, sometimes better." checked=${settings.dora} onChange=${(/** @type {boolean} */ dora) => set({ dora })} />`;
}

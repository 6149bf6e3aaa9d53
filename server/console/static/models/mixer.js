/** The mixer: which adapters a mix has, how strong each is, and the model string that says so. */
import { mayDo } from '../core/access.js';
import { html } from '../core/preact.js';
import { useResource } from '../core/resource.js';
import { IconButton } from '../ui/button.js';
import { ModelChip, hueOf } from '../ui/chip.js';
import { CopyButton } from '../ui/clipboard.js';
import { Select } from '../ui/field.js';
import { Slider } from '../ui/slider.js';
import { MAX_ENTRIES, formatMix, parseMix } from './mix.js';
import { ModelPicker } from './picker.js';

const LOWEST = -2;
const HIGHEST = 2;

/**
 * @typedef {object} MixerProps
 * @property {string} model the model string
 * @property {import('./catalog.js').Catalog} catalog
 * @property {(model: string) => void} onChange while a slider moves, and at every other change
 * @property {(model: string) => void} onRelease when a slider is let go
 */

/** @param {MixerProps} props */
export function Mixer({ model, catalog, onChange, onRelease }) {
  const terms = model === catalog.base ? [] : parseMix(model) ?? [];
  const adapters = catalog.models.filter((each) => each.kind !== 'base');
  const write = (/** @type {import('./mix.js').Term[]} */ next) => formatMix(next) || catalog.base;
  const changed = (/** @type {number} */ at, /** @type {Partial<import('./mix.js').Term>} */ change) =>
    write(terms.map((term, index) => (index === at ? { ...term, ...change } : term)));
  const add = (/** @type {string} */ name) => {
    const more = parseMix(name);
    if (more) onRelease(write([...terms, ...more]));
  };
  return html`
    <div class="mixer">
      ${terms.map((term, at) => html`
        <div key=${`${at}-${term.name}`} class="mixer-term" style=${{ '--hue': hueOf(term.name) }}>
          <div class="mixer-head">
            <${ModelChip} name=${term.name} />
            <${Version} term=${term} known=${catalog.models.some((each) => each.id === term.name && each.kind === 'adapter')} onChange=${(/** @type {string} */ version) => onRelease(changed(at, { version }))} />
            <${IconButton} icon="close" small label=${`Take ${term.name} out`} onClick=${() => onRelease(write(terms.filter((_, index) => index !== at)))} />
          </div>
          <${Slider} label=${`Weight of ${term.name}`} hideLabel value=${term.weight} min=${LOWEST} max=${HIGHEST} step=${0.05} centred
            onInput=${(/** @type {number} */ weight) => onChange(changed(at, { weight }))}
            onCommit=${(/** @type {number} */ weight) => onRelease(changed(at, { weight }))} />
        </div>`)}
      ${!terms.length && html`<p class="hint">Only the base model answers. Add adapters to change what it says, each as strongly as you like.</p>`}
      ${terms.length < MAX_ENTRIES && html`
        <${ModelPicker} label="Add an adapter" hideLabel placeholder="Add an adapter…" value="" clears models=${adapters} onChoose=${add} />`}
      <div class="mix-string"><code>${model}</code><${CopyButton} text=${model} label="Copy the model string" /></div>
    </div>`;
}

/** @param {{term: import('./mix.js').Term, known: boolean, onChange: (version: string) => void}} props */
function Version({ term, known, onChange }) {
  const { data } = useResource(known && mayDo('manage') ? `v1/adapters/${encodeURIComponent(term.name)}` : null);
  const revisions = data?.revisions ?? [];
  if (!term.version && !(known && mayDo('manage'))) return null;
  /** @type {{value: string, label: string}[]} */
  const choices = [
    { value: '', label: 'current' },
    ...revisions.map((/** @type {any} */ each) => ({ value: each.revision, label: `${each.revision}${each.current ? ' (now)' : ''}` })),
    { value: 'merged', label: 'merged copy' },
  ];
  if (!choices.some((choice) => choice.value === term.version)) choices.push({ value: term.version, label: term.version });
  return html`<${Select} label=${`Revision of ${term.name}`} hideLabel value=${term.version} options=${choices} onChange=${onChange} />`;
}

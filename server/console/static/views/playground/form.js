/** The form of answers: where they stop, the JSON that they must be, the tools that they may call. */
import { html, useState } from '../../core/preact.js';
import { Button, IconButton } from '../../ui/button.js';
import { Select, TextArea, TextField } from '../../ui/field.js';
import { visible } from '../../ui/format.js';
import { jsonFault } from './settings.js';

const TOOL = JSON.stringify([{
  type: 'function',
  function: {
    name: 'get_weather',
    description: 'The weather of now in a city',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
}], null, 2);

const SCHEMA = JSON.stringify({
  type: 'object',
  properties: { name: { type: 'string' }, year: { type: 'integer' } },
  required: ['name', 'year'],
  additionalProperties: false,
}, null, 2);

const MOST_STOPS = 16;

/** @typedef {import('./settings.js').Settings} Settings */

/** @param {{settings: Settings, onSet: (change: Partial<Settings>) => void}} props */
export function Form({ settings, onSet }) {
  return html`
    <div class="stack">
      <${Select} label="Answers are" value=${settings.format} onChange=${(/** @type {any} */ format) => onSet({ format, schema: settings.schema || SCHEMA })}
        options=${[{ value: 'text', label: 'text' }, { value: 'json', label: 'any JSON object' }, { value: 'schema', label: 'JSON by a schema' }]} />
      ${settings.format === 'schema' && html`
        <${TextArea} label="JSON schema" class="code" rows="6" value=${settings.schema} fault=${jsonFault(settings.schema)} onInput=${(/** @type {string} */ schema) => onSet({ schema })} />`}
      <${TextArea} label="Tools" class="code" value=${settings.tools} placeholder="None: a list of functions, as in OpenAI’s API" fault=${jsonFault(settings.tools)}
        onInput=${(/** @type {string} */ tools) => onSet({ tools })} />
      ${settings.tools.trim()
        ? html`<${Select} label="Calls" value=${settings.toolChoice} onChange=${(/** @type {string} */ toolChoice) => onSet({ toolChoice })}
            options=${[{ value: 'auto', label: 'when the model wants to' }, { value: 'required', label: 'always one' }, { value: 'none', label: 'never' }]} />`
        : html`<div><${Button} icon="plus" onClick=${() => onSet({ tools: TOOL })}>Begin with an example<//></div>`}
      <${Stops} stops=${settings.stop} onSet=${(/** @type {string[]} */ stop) => onSet({ stop })} />
    </div>`;
}

/** @param {{stops: string[], onSet: (stops: string[]) => void}} props */
function Stops({ stops, onSet }) {
  const [text, setText] = useState('');
  const add = () => {
    const stop = text.replaceAll('\\n', '\n');
    if (stop && !stops.includes(stop) && stops.length < MOST_STOPS) onSet([...stops, stop]);
    setText('');
  };
  const press = (/** @type {KeyboardEvent} */ event) => { if (event.key === 'Enter') { event.preventDefault(); add(); } };
  return html`
    <div class="stack tight" onKeyDown=${press}>
      <div class="field-line">
        <${TextField} label="Stop at" value=${text} onInput=${setText} placeholder="a text that ends the answer" hint="\\n is a new line" />
        <${Button} icon="plus" disabled=${!text} onClick=${add}>Add<//>
      </div>
      ${stops.length > 0 && html`
        <ul class="tags" aria-label="Texts that end the answer">
          ${stops.map((stop) => html`
            <li key=${stop} class="tag"><code>${visible(stop)}</code><${IconButton} icon="close" small label=${`Remove ${visible(stop)}`} onClick=${() => onSet(stops.filter((each) => each !== stop))} /></li>`)}
        </ul>`}
    </div>`;
}

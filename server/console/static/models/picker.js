/** A field for a model: what there is to choose from, and anything else that a model string may be. */
import { html, useEffect, useId, useRef, useState } from '../core/preact.js';
import { Field } from '../ui/field.js';
import { hueOf } from '../ui/chip.js';
import { Icon } from '../ui/icons.js';

const MOST_SHOWN = 60;

/**
 * @typedef {object} PickerProps
 * @property {string} label
 * @property {string} value
 * @property {import('./catalog.js').Model[]} models
 * @property {(value: string) => void} onChoose called when one is chosen, or typed and left
 * @property {boolean} [hideLabel]
 * @property {string} [placeholder]
 * @property {boolean} [clears] the field is empty again after each choice
 * @property {any} [hint]
 */

/** @param {PickerProps} props */
export function ModelPicker({ label, value, models, onChoose, hideLabel, placeholder = 'Model, revision or mix', clears = false, hint }) {
  const id = useId();
  const [text, setText] = useState(value);
  const [open, setOpen] = useState(false);
  const [typed, setTyped] = useState(false);
  const [at, setAt] = useState(-1);
  const list = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => { setText(clears ? '' : value); setTyped(false); }, [value, clears]);
  const wanted = typed ? text.trim().toLowerCase() : '';
  const fitting = models.filter((model) => model.id.toLowerCase().includes(wanted));
  const shown = fitting.slice(0, MOST_SHOWN);

  useEffect(() => { list.current?.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: 'nearest' }); }, [at]);

  const choose = (/** @type {string} */ chosen) => {
    setOpen(false);
    setTyped(false);
    setAt(-1);
    setText(clears ? '' : chosen || value);
    if (chosen && chosen !== value) onChoose(chosen);
  };
  const press = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
      event.preventDefault();
      setOpen(true);
      const step = event.key === 'ArrowDown' ? 1 : -1;
      setAt(shown.length ? (at + step + shown.length) % shown.length : -1);
    } else if (event.key === 'Enter') {
      event.preventDefault();
      choose(open && shown[at] ? shown[at].id : text.trim());
    } else if (event.key === 'Escape' && open) {
      event.preventDefault();
      event.stopPropagation();
      setOpen(false);
      setTyped(false);
      setText(clears ? '' : value);
    }
  };
  return html`
    <${Field} label=${label} hideLabel=${hideLabel} hint=${hint}>
      ${(/** @type {any} */ ids) => html`
        <div class="picker">
          <input class="input" ...${ids} type="text" role="combobox" autocomplete="off" spellcheck=${false} placeholder=${placeholder}
            aria-expanded=${open} aria-controls=${`${id}-list`} aria-autocomplete="list"
            aria-activedescendant=${open && shown[at] ? `${id}-${at}` : undefined} value=${text}
            onFocus=${(/** @type {any} */ event) => event.currentTarget.select()} onClick=${() => setOpen(true)}
            onInput=${(/** @type {any} */ event) => { setText(event.currentTarget.value); setTyped(true); setOpen(true); setAt(-1); }}
            onKeyDown=${press} onBlur=${() => choose(typed && !clears ? text.trim() : '')} />
          <${Icon} name="down" size=${14} />
          <ul class="picker-list" role="listbox" id=${`${id}-list`} aria-label=${label} ref=${list} hidden=${!open}
            onMouseDown=${(/** @type {Event} */ event) => event.preventDefault()}>
            ${shown.map((model, index) => html`
              <li key=${model.id} role="option" id=${`${id}-${index}`} class="picker-option" aria-selected=${index === at}
                onMouseMove=${() => setAt(index)} onClick=${() => choose(model.id)}>
                <span class=${`dot ${model.kind}`} style=${{ '--hue': hueOf(model.id) }}></span>
                <span class="name">${model.id}</span><small>${model.about}</small>
              </li>`)}
            ${fitting.length > shown.length && html`<li class="picker-note">${fitting.length - shown.length} more: type to find them</li>`}
            ${!fitting.length && html`<li class="picker-note">Enter asks for “${text.trim()}” as it stands</li>`}
          </ul>
        </div>`}
    <//>`;
}

/** Fields of forms: a label, what the value means, and what is wrong with it. */
import { html, useId, useLayoutEffect, useRef } from '../core/preact.js';
import { Icon } from './icons.js';

/**
 * A label around a control that is made with the ids that join them.
 * @param {{label: string, hint?: any, fault?: string, hideLabel?: boolean, children: (ids: {id: string, 'aria-describedby': string | undefined, 'aria-invalid': boolean}) => any}} props
 */
export function Field({ label, hint, fault = '', hideLabel = false, children }) {
  const id = useId();
  const described = [hint && `${id}-hint`, fault && `${id}-fault`].filter(Boolean).join(' ') || undefined;
  return html`
    <div class="field">
      <label for=${id} class=${hideLabel ? 'unseen' : 'label'}>${label}</label>
      ${children({ id, 'aria-describedby': described, 'aria-invalid': Boolean(fault) })}
      ${hint && html`<p class="hint" id=${`${id}-hint`}>${hint}</p>`}
      ${fault && html`<p class="fault" id=${`${id}-fault`} role="alert">${fault}</p>`}
    </div>`;
}

/** @param {{label: string, value: string, onInput: (value: string) => void, hint?: any, fault?: string, hideLabel?: boolean} & Record<string, any>} props */
export function TextField({ label, value, onInput, hint, fault, hideLabel, ...rest }) {
  return html`
    <${Field} label=${label} hint=${hint} fault=${fault} hideLabel=${hideLabel}>
      ${(/** @type {any} */ ids) => html`
        <input class="input" type="text" autocomplete="off" spellcheck=${false} ...${rest} ...${ids} value=${value}
          onInput=${(/** @type {any} */ event) => onInput(event.currentTarget.value)} />`}
    <//>`;
}

/** @param {{label: string, value: string, onInput: (value: string) => void, hint?: any, fault?: string, hideLabel?: boolean, grow?: boolean} & Record<string, any>} props */
export function TextArea({ label, value, onInput, hint, fault, hideLabel, grow = true, class: more = '', ...rest }) {
  const box = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  useLayoutEffect(() => {
    const area = box.current;
    if (!area || !grow) return;
    area.style.height = 'auto';
    area.style.height = `${area.scrollHeight + 2}px`;
  }, [value, grow]);
  return html`
    <${Field} label=${label} hint=${hint} fault=${fault} hideLabel=${hideLabel}>
      ${(/** @type {any} */ ids) => html`
        <textarea class=${`input ${more}`} rows="2" ...${rest} ...${ids} ref=${box} value=${value}
          onInput=${(/** @type {any} */ event) => onInput(event.currentTarget.value)}></textarea>`}
    <//>`;
}

/** @param {{label: string, value: string, options: {value: string, label: string}[], onChange: (value: string) => void, hint?: any, hideLabel?: boolean} & Record<string, any>} props */
export function Select({ label, value, options, onChange, hint, hideLabel, ...rest }) {
  return html`
    <${Field} label=${label} hint=${hint} hideLabel=${hideLabel}>
      ${(/** @type {any} */ ids) => html`
        <span class="select">
          <select class="input" ...${rest} ...${ids} value=${value}
            onChange=${(/** @type {any} */ event) => onChange(event.currentTarget.value)}>
            ${options.map((option) => html`<option key=${option.value} value=${option.value} selected=${option.value === value}>${option.label}</option>`)}
          </select>
          <${Icon} name="down" size=${14} />
        </span>`}
    <//>`;
}

/** @param {{label: any, checked: boolean, onChange: (checked: boolean) => void, hint?: string} & Record<string, any>} props */
export function Checkbox({ label, checked, onChange, hint, ...rest }) {
  return html`
    <label class="checkbox">
      <input type="checkbox" ...${rest} checked=${checked} onChange=${(/** @type {any} */ event) => onChange(event.currentTarget.checked)} />
      <span>${label}${hint && html`<small class="hint">${hint}</small>`}</span>
    </label>`;
}

/** Where the next turn is written. */
import { html, useEffect, useRef, useState } from '../../core/preact.js';
import { Button } from '../../ui/button.js';
import { TextArea } from '../../ui/field.js';

/**
 * @param {{running: boolean, onSend: (text: string) => void, onStop: () => void, first: string, children?: any}} props
 *   first: the text that stands there at first
 */
export function Composer({ running, onSend, onStop, first, children }) {
  const [text, setText] = useState(first);
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => { box.current?.querySelector('textarea')?.focus(); }, []);
  const send = () => {
    if (!text.trim() || running) return;
    onSend(text);
    setText('');
  };
  const press = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
    if (event.key === 'Escape' && running) onStop();
  };
  return html`
    <div class="composer" ref=${box} onKeyDown=${press}>
      <${TextArea} label="Your message" hideLabel value=${text} onInput=${setText} placeholder="Ask something. Enter sends, Shift+Enter makes a new line." />
      <div class="composer-line">
        <div class="line">${children}</div>
        ${running
          ? html`<${Button} icon="stop" onClick=${onStop}>Stop<//>`
          : html`<${Button} kind="primary" icon="send" disabled=${!text.trim()} onClick=${send}>Send<//>`}
      </div>
    </div>`;
}

/** Calls of tools in an answer, and the results that whoever tries it out writes for them. */
import { html, useState } from '../../core/preact.js';
import { Button } from '../../ui/button.js';
import { TextArea } from '../../ui/field.js';
import { Icon } from '../../ui/icons.js';

/** @param {string} args of a call; indented where it is JSON */
function readable(args) {
  try {
    return JSON.stringify(JSON.parse(args), null, 2);
  } catch {
    return args; // not complete yet, or no JSON
  }
}

/** @param {{chat: import('./chat.js').Chat, turn: import('./conversation.js').Turn, running: boolean}} props */
export function Calls({ chat, turn, running }) {
  const calls = turn.answer?.calls ?? [];
  const [results, setResults] = useState(calls.map(() => ''));
  const answered = Object.values(chat.conversation.value.turns).some((each) => each.parent === turn.id);
  const write = (/** @type {number} */ at, /** @type {string} */ text) => setResults(calls.map((_, index) => (index === at ? text : results[index] ?? '')));
  return html`
    <div class="calls">
      ${calls.map((call, at) => html`
        <div key=${call.id || at} class="call">
          <p class="call-name"><${Icon} name="code" size=${15} /> <code>${call.name}</code></p>
          <pre tabIndex="0">${readable(call.args)}</pre>
          ${!running && !answered && html`<${TextArea} label=${`Result of ${call.name}`} value=${results[at] ?? ''} placeholder='{"temperature": 21}' class="code" onInput=${(/** @type {string} */ text) => write(at, text)} />`}
        </div>`)}
      ${!running && !answered && html`<${Button} icon="send" onClick=${() => chat.giveResults(turn, results)}>Give the results<//>`}
    </div>`;
}

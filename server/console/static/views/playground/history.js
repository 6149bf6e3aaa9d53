/** The chats that this browser keeps: open, bring in, take out, forget. */
import { html, useEffect, useRef, useState } from '../../core/preact.js';
import { Button, IconButton } from '../../ui/button.js';
import { Dialog } from '../../ui/dialog.js';
import { download } from '../../ui/clipboard.js';
import { ago } from '../../ui/format.js';
import { Empty, Loading } from '../../ui/states.js';
import { toast, toastFault } from '../../ui/toast.js';
import { titleOf } from './conversation.js';
import { allConversations, forgetConversation, pruneConversations } from './storage.js';
import { exported, imported } from './transfer.js';

const LARGEST_FILE = 32 * 1024 * 1024;

/** @typedef {import('./conversation.js').Conversation} Conversation */

/** @param {{onOpen: (conversation: Conversation) => void, onClose: () => void, model: string, current: string}} props */
export function History({ onOpen, onClose, model, current }) {
  const [found, setFound] = useState(/** @type {Conversation[] | null} */ (null));
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  const load = () => pruneConversations().then(allConversations).then((all) => setFound(all), () => setFound([]));
  useEffect(() => { void load(); }, []);
  const open = (/** @type {Conversation} */ conversation) => { onOpen(conversation); onClose(); };
  const bring = async (/** @type {any} */ event) => {
    const file = event.currentTarget.files[0];
    event.currentTarget.value = '';
    if (!file) return;
    try {
      if (file.size > LARGEST_FILE) throw new Error('The file is too large for a chat.');
      open(imported(await file.text(), model));
      toast('The chat is here.');
    } catch (error) {
      toastFault(error);
    }
  };
  return html`
    <${Dialog} title="Chats in this browser" onClose=${onClose} wide>
      <div class="line">
        <input type="file" accept=".json,application/json" ref=${input} class="unseen" tabIndex="-1" aria-label="File with a chat" onChange=${bring} />
        <${Button} icon="upload" onClick=${() => input.current?.click()}>Import JSON<//>
        <span class="hint">Nothing of them is kept on the server.</span>
      </div>
      ${found === null && html`<${Loading} />`}
      ${found?.length === 0 && html`<${Empty} icon="history" title="No chats yet">What you ask will be found here again.<//>`}
      ${found && found.length > 0 && html`
        <ul class="history">
          ${found.map((each) => html`
            <li key=${each.id} class=${each.id === current ? 'open' : ''}>
              <button type="button" class="history-open" onClick=${() => open(each)}>
                <strong>${titleOf(each)}</strong>
                <small>${each.model} · ${ago(each.updated / 1000)} · ${Object.keys(each.turns).length} turns</small>
              </button>
              <${IconButton} icon="download" label=${`Export “${titleOf(each)}”`} onClick=${() => download(`chat-${each.id.slice(0, 8)}.json`, exported(each))} />
              <${IconButton} icon="trash" label=${`Forget “${titleOf(each)}”`} onClick=${() => forgetConversation(each.id).then(load, toastFault)} />
            </li>`)}
        </ul>`}
    <//>`;
}

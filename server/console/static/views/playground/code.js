/** The request that would be sent next, for programs. */
import { html, useState } from '../../core/preact.js';
import { Dialog } from '../../ui/dialog.js';
import { CodeBlock, curlOf } from '../../ui/request.js';
import { Tabs } from '../../ui/tabs.js';
import { bodyOf, pythonOf } from './request.js';
import { branch } from './conversation.js';

/** @param {{conversation: import('./conversation.js').Conversation, onClose: () => void}} props */
export function Code({ conversation, onClose }) {
  const [tab, setTab] = useState('curl');
  const last = branch(conversation).at(-1);
  const leaf = last?.role === 'assistant' ? last.parent : last?.id ?? null;
  let text;
  try {
    const body = bodyOf(conversation, leaf);
    text = tab === 'curl' ? curlOf({ path: 'v1/chat/completions', body: { ...body, stream: true } }) : pythonOf(body);
  } catch (error) {
    text = error instanceof Error ? error.message : String(error);
  }
  return html`
    <${Dialog} title="The same from a program" onClose=${onClose} wide>
      <${Tabs} tabs=${[{ id: 'curl', label: 'curl' }, { id: 'python', label: 'Python' }]} chosen=${tab} onChoose=${setTab} label="Language">
        <${CodeBlock} text=${text} />
      <//>
      <p class="hint">The key stands as the variable MANYLORA_API_KEY: what you copy can be shown to others.</p>
    <//>`;
}

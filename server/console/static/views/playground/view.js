/** The playground: a chat with any model, and what it takes to understand its answers. */
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from '../../core/preact.js';
import { noteState } from '../../core/router.js';
import { Store, useStore } from '../../core/store.js';
import { useCatalog } from '../../models/catalog.js';
import { Button, IconButton } from '../../ui/button.js';
import { Dialog } from '../../ui/dialog.js';
import { Empty, Failure, Loading } from '../../ui/states.js';
import { ViewHead } from '../../ui/view_head.js';
import { Chat } from './chat.js';
import { Code } from './code.js';
import { Composer } from './composer.js';
import { branch, newConversation } from './conversation.js';
import { History } from './history.js';
import { Panel } from './panel.js';
import { DEFAULTS } from './settings.js';
import { loadConversation } from './storage.js';
import { TurnView } from './turn.js';

const QUESTIONS = ['How do I keep bread fresh?', 'Where is my order 4711?', 'Write a haiku about the sea.'];

/** The chat that was open last, for who comes back from another view. */
const latest = new Store(/** @type {Chat | null} */ (null));

/** @param {{params: URLSearchParams}} props */
export default function Playground({ params }) {
  const catalog = useCatalog();
  const chat = useStore(latest);
  const setChat = (/** @type {Chat} */ next) => latest.set(next);
  const wanted = params.get('chat') ?? '';
  const model = params.get('model') ?? '';
  useEffect(() => {
    const here = chat && !model && (!wanted || wanted === chat.conversation.value.id);
    if (!catalog.known || here) return;
    const begin = (/** @type {import('./conversation.js').Conversation | undefined} */ kept) =>
      setChat(new Chat(kept ?? newConversation(model || firstOf(catalog), { ...DEFAULTS }, params.get('system') ?? '')));
    if (wanted) loadConversation(wanted).then(begin, () => begin(undefined));
    else begin(undefined);
  }, [catalog.known, wanted, model]);
  if (catalog.error && !catalog.known) return html`<${Failure} error=${catalog.error} onRetry=${catalog.reload} />`;
  if (!chat) return html`<${Loading} />`;
  return html`<${Open} key=${chat.conversation.value.id} chat=${chat} catalog=${catalog} onChat=${setChat} prompt=${params.get('prompt') ?? ''} />`;
}

/** @param {import('../../models/catalog.js').Catalog} catalog */
function firstOf(catalog) {
  return catalog.models[0]?.id ?? catalog.base;
}

/** @param {{chat: Chat, catalog: import('../../models/catalog.js').Catalog, onChat: (chat: Chat) => void, prompt: string}} props */
function Open({ chat, catalog, onChat, prompt }) {
  const conversation = useStore(chat.conversation);
  const running = useStore(chat.running);
  const [dialog, setDialog] = useState(/** @type {'' | 'history' | 'code' | 'panel'} */ (''));
  const [asTokens, setAsTokens] = useState(false);
  const turns = useMemo(() => branch(conversation), [conversation]);
  useEffect(() => () => chat.stop(), [chat]);
  useEffect(() => { if (turns.length) noteState({ chat: conversation.id }); }, [conversation.id, turns.length > 0]);
  const open = (/** @type {import('./conversation.js').Conversation} */ other) => { chat.stop(); onChat(new Chat(other)); };
  const fresh = () => { open(newConversation(conversation.model, conversation.settings, conversation.system)); noteState({}); };
  const close = () => setDialog('');
  const panel = html`<${Panel} chat=${chat} conversation=${conversation} catalog=${catalog} />`;
  return html`
    <div class="playground">
      <div class="chat">
        <${ViewHead} title="Playground" actions=${html`
          <${Button} icon="plus" onClick=${fresh}>New chat<//>
          <${IconButton} icon="history" label="Chats in this browser" onClick=${() => setDialog('history')} />
          <${IconButton} icon="code" label="Show as curl or Python" onClick=${() => setDialog('code')} />
          <${IconButton} icon="sliders" class="only-narrow" label="Model and settings" onClick=${() => setDialog('panel')} />`} />
        <${Turns} turns=${turns} running=${running}>
          ${turns.map((turn, at) => html`
            <${TurnView} key=${turn.id} chat=${chat} conversation=${conversation} turn=${turn} running=${running === turn.id}
              last=${at === turns.length - 1} asTokens=${asTokens} base=${catalog.base} />`)}
          ${!turns.length && html`<${Begin} model=${conversation.model} onAsk=${(/** @type {string} */ text) => void chat.send(text)} />`}
        <//>
        <${Composer} running=${running !== ''} first=${prompt} onStop=${() => chat.stop()} onSend=${(/** @type {string} */ text) => void chat.send(text)}>
          <button type="button" class="button quiet" aria-pressed=${asTokens} onClick=${() => setAsTokens(!asTokens)}>Show probabilities</button>
          <span class="hint mix-now" title="The model that is asked next">${conversation.model}</span>
        <//>
      </div>
      <aside class="panel" aria-label="Model and settings">${panel}</aside>
    </div>
    ${dialog === 'history' && html`<${History} onOpen=${open} onClose=${close} model=${conversation.model} current=${conversation.id} />`}
    ${dialog === 'code' && html`<${Code} conversation=${conversation} onClose=${close} />`}
    ${dialog === 'panel' && html`<${Dialog} title="Model and settings" onClose=${close}>${panel}<//>`}`;
}

/** The turns, scrolled so that what comes can be seen, unless one reads further up. @param {{turns: any[], running: string, children: any}} props */
function Turns({ turns, running, children }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const follows = useRef(true);
  useLayoutEffect(() => {
    if (follows.current && box.current) box.current.scrollTop = box.current.scrollHeight;
  });
  useLayoutEffect(() => { follows.current = true; }, [turns.length]);
  const look = () => {
    const element = box.current;
    if (element) follows.current = element.scrollHeight - element.scrollTop - element.clientHeight < 60;
  };
  return html`<div class="turns" ref=${box} onScroll=${look} tabIndex="0" role="log" aria-label="Conversation" aria-live=${running ? 'off' : 'polite'}>${children}</div>`;
}

/** @param {{model: string, onAsk: (text: string) => void}} props */
function Begin({ model, onAsk }) {
  return html`
    <${Empty} icon="chat" title=${`Ask ${model}`} action=${html`<div class="line centred">${QUESTIONS.map((text) => html`<${Button} key=${text} onClick=${() => onAsk(text)}>${text}<//>`)}</div>`}>
      Any adapter, revision, merged copy or mix answers here. Add adapters in the mixer, and see what each does.
    <//>`;
}

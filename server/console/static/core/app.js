/** The frame: navigation, the state of the connection, the key, and the view that is open. */
import { KeyDialog, KeyMenu } from '../ui/key_dialog.js';
import { Icon } from '../ui/icons.js';
import { ConnectionBar } from '../ui/connection_bar.js';
import { Failure, Loading } from '../ui/states.js';
import { Toasts } from '../ui/toast.js';
import { VIEWS } from '../views.js';
import { access } from './access.js';
import { html, useEffect, useRef, useState } from './preact.js';
import { linkTo, route } from './router.js';
import { useStore } from './store.js';
import { addStyle } from './style.js';

/** @param {import('./access.js').Access} known @returns {import('../views.js').View[]} those that this key opens here */
function viewsFor(known) {
  return VIEWS.filter((view) => (!view.needs || known.may.includes(view.needs)) && (!view.feature || known.features[view.feature]));
}

export function App() {
  const known = useStore(access);
  const { path, params } = useStore(route);
  const main = useRef(/** @type {HTMLElement | null} */ (null));
  const [asks, setAsks] = useState(false);
  const views = viewsFor(known);
  const view = views.find((each) => path === each.path || path.startsWith(`${each.path}/`)) ?? (path === '' ? views[0] : undefined);
  const skip = (/** @type {Event} */ event) => { event.preventDefault(); main.current?.focus(); };
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to content</a>
    <nav class="rail" aria-label="Views">
      <a class="brand" href=${linkTo(views[0]?.path ?? '')}><${Mark} /><span>manylora</span></a>
      <ul>
        ${views.map((each) => html`
          <li key=${each.path}>
            <a class="rail-link" href=${linkTo(each.path)} aria-current=${each === view ? 'page' : undefined}>
              <${Icon} name=${each.icon} size=${20} /><span>${each.title}</span>
            </a>
          </li>`)}
      </ul>
      <${KeyMenu} onAsk=${() => setAsks(true)} />
    </nav>
    <main id="main" ref=${main} tabIndex="-1">
      <${ConnectionBar} />
      ${known.state === 'open' && (view
        ? html`<${OpenView} key=${view.path} view=${view} path=${path.slice(view.path.length + 1)} params=${params} />`
        : html`<${NoView} path=${path} first=${views[0]?.path ?? ''} />`)}
      ${known.state === 'asking' && html`<${Loading} lines=${5} />`}
    </main>
    ${(known.state === 'locked' || asks) && html`<${KeyDialog} needed=${known.state === 'locked'} onClose=${() => setAsks(false)} />`}
    <${Toasts} />`;
}

/** @type {Map<import('../views.js').View, Promise<any>>} */
const begun = new Map();

/** @param {import('../views.js').View} view its module and its styles, fetched once */
function load(view) {
  const known = begun.get(view);
  if (known) return known;
  const loading = Promise.all([view.load(), ...(view.styles ?? []).map(addStyle)]).then(([module]) => module.default);
  begun.set(view, loading);
  return loading;
}

/** Begin to fetch the view that the URL names, while it is not yet known whether the key opens it. */
export function loadAhead() {
  const view = VIEWS.find((each) => route.value.path.split('/')[0] === each.path) ?? VIEWS[0];
  if (view) load(view).catch(() => {}); // told when it is opened
}

/** @param {{view: import('../views.js').View, path: string, params: URLSearchParams}} props */
function OpenView({ view, path, params }) {
  const [Component, setComponent] = useState(/** @type {any} */ (null));
  const [error, setError] = useState(/** @type {Error | null} */ (null));
  useEffect(() => {
    load(view).then((component) => setComponent(() => component), () => {
      setError(new Error('This part of the console could not be loaded: the server is away, or has a newer one.'));
    });
  }, [view]);
  // A module that failed once is not asked for again by the same page.
  if (error) return html`<${Failure} error=${error} onRetry=${() => location.reload()} />`;
  return html`<div class="view">${Component ? html`<${Component} path=${path} params=${params} />` : html`<${Loading} />`}</div>`;
}

/** @param {{path: string, first: string}} props */
function NoView({ path, first }) {
  return html`
    <div class="view">
      <div class="state">
        <h1>There is no “${path}” here</h1>
        <p>It may need another key, or this server does not offer it.</p>
        <a class="button plain" href=${linkTo(first)}>To the beginning</a>
      </div>
    </div>`;
}

/** The mark: three adapters that ride on one base. */
function Mark() {
  return html`
    <svg class="mark" width="26" height="26" viewBox="0 0 26 26" aria-hidden="true">
      <rect class="mark-base" x="2" y="18.5" width="22" height="4.5" rx="2.25" />
      <path class="mark-one" d="M4.5 15.5V9a3 3 0 0 1 6 0v6.5" />
      <path class="mark-two" d="M10 15.5V6a3 3 0 0 1 6 0v9.5" />
      <path class="mark-three" d="M15.5 15.5V9a3 3 0 0 1 6 0v6.5" />
    </svg>`;
}

/** What stands where there is nothing yet: while it loads, when there is none, when it failed. */
import { ApiError, ConnectionLost } from '../core/http.js';
import { html } from '../core/preact.js';
import { Button } from './button.js';
import { Icon } from './icons.js';

/** @param {{icon?: string, title: string, children?: any, action?: any}} props */
export function Empty({ icon = 'info', title, children, action }) {
  return html`
    <div class="state">
      <span class="state-icon"><${Icon} name=${icon} size=${26} /></span>
      <h3>${title}</h3>
      ${children && html`<div class="state-text">${children}</div>`}
      ${action}
    </div>`;
}

/** @param {{lines?: number, label?: string}} props */
export function Loading({ lines = 4, label = 'Loading' }) {
  return html`
    <div class="loading" role="status" aria-label=${label}>
      ${Array.from({ length: lines }, (_, at) => html`<span key=${at} class="skeleton"></span>`)}
    </div>`;
}

/** @param {{error: Error, onRetry?: () => void}} props */
export function Failure({ error, onRetry }) {
  return html`
    <div class="state failure" role="alert">
      <span class="state-icon"><${Icon} name="warning" size=${26} /></span>
      <h3>${headline(error)}</h3>
      <div class="state-text">
        <p>${error.message}</p>
        ${error instanceof ApiError && error.requestId && html`<p class="hint">Request <code>${error.requestId}</code></p>`}
      </div>
      ${onRetry && html`<${Button} icon="retry" onClick=${onRetry}>Try again<//>`}
    </div>`;
}

/** @param {Error} error what to do about it, in a few words */
function headline(error) {
  if (error instanceof ConnectionLost) return 'No connection';
  if (!(error instanceof ApiError)) return 'Something went wrong';
  if (error.status === 401) return 'This needs a key';
  if (error.status === 403) return 'This key may not do that';
  if (error.status === 404) return 'There is no such thing';
  if (error.status === 429) return error.retryAfter ? `Too much at once: try in ${error.retryAfter} s` : 'Too much at once';
  return error.status >= 500 ? 'The server met a fault' : 'The server refused that';
}

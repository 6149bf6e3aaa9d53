/** How far something is, as a bar with words. */
import { html } from '../core/preact.js';

/** @param {{label: string, share: number | null, children?: any}} props share of 1; null: nobody knows */
export function Progress({ label, share, children }) {
  const percent = share === null ? undefined : Math.round(Math.min(1, Math.max(0, share)) * 100);
  return html`
    <div class="progress">
      <div class="progress-head"><span>${label}</span><span class="hint number-text">${children ?? (percent === undefined ? '' : `${percent} %`)}</span></div>
      <div class=${`bar ${percent === undefined ? 'unknown' : ''}`} role="progressbar" aria-label=${label} aria-valuemin="0" aria-valuemax="100" aria-valuenow=${percent}>
        <span style=${{ width: `${percent ?? 30}%` }}></span>
      </div>
    </div>`;
}

/**
 * A part of a whole, such as memory in use.
 * @param {{label: string, used: number, total: number | null, format: (value: number) => string, whole?: boolean}} props whole: the total goes without saying
 */
export function Meter({ label, used, total, format, whole = false }) {
  const share = total ? Math.min(1, used / total) : 0;
  const told = total && !whole ? `${format(used)} of ${format(total)}` : format(used);
  return html`
    <div class="progress">
      <div class="progress-head"><span>${label}</span><span class="hint number-text">${told}</span></div>
      ${total !== null && html`
        <div class=${`bar ${share > 0.9 ? 'full' : ''}`} role="meter" aria-label=${label} aria-valuemin="0" aria-valuemax=${total} aria-valuenow=${Math.min(used, total)} aria-valuetext=${told}>
          <span style=${{ width: `${share * 100}%` }}></span>
        </div>`}
    </div>`;
}

/** The aliases: where each leads, and the one that is open with its split and how its arms do. */
import { html, useState } from '../../core/preact.js';
import { go } from '../../core/router.js';
import { Button } from '../../ui/button.js';
import { ModelChip } from '../../ui/chip.js';
import { percent } from '../../ui/format.js';
import { ShowAsCurl } from '../../ui/request.js';
import { Empty } from '../../ui/states.js';
import { AliasEditor } from './alias_editor.js';

/** @typedef {import('./api.js').Alias} Alias */

/** @param {{aliases: Alias[], adapters: import('./api.js').Adapter[], open: string, onChange: () => void}} props */
export function AliasList({ aliases, adapters, open, onChange }) {
  const [makes, setMakes] = useState(false);
  const opened = aliases.find((alias) => alias.id === open);
  const choose = (/** @type {string} */ alias) => go('fleet', { tab: 'aliases', ...(alias && { alias }) });
  const create = html`<${Button} icon="plus" onClick=${() => { choose(''); setMakes(true); }}>New alias<//>`;
  const editor = makes || opened
    ? html`<${AliasEditor} key=${opened?.id ?? ''} alias=${opened ?? null} adapters=${adapters} aliases=${aliases} onChange=${onChange}
        onClose=${() => { setMakes(false); choose(''); }} onSaved=${(/** @type {string} */ name) => { setMakes(false); onChange(); choose(name); }} />`
    : null;
  if (!aliases.length && !makes) {
    return html`
      <${Empty} icon="branch" title="No alias yet" action=${create}>
        A name that stands for an adapter, a revision or a mix; or for several by share, to see which does better.
      <//>`;
  }
  return html`
    <div class="aliases">
      <ul class="alias-list" aria-label="Aliases">
        ${aliases.map((alias) => html`
          <li key=${alias.id}>
            <button type="button" class="alias" aria-current=${alias.id === open ? 'true' : undefined} onClick=${() => { setMakes(false); choose(alias.id); }}>
              <strong>${alias.id}</strong>
              <span class="split-strip" aria-hidden="true">${alias.split.map(({ target, share }, at) => html`<span key=${target} class=${`arm arm-${at % 8}`} style=${{ width: `${share * 100}%` }}></span>`)}</span>
              <span class="hint">${alias.split.map(({ target, share }) => `${alias.split.length > 1 ? `${percent(share)} ` : ''}${target}`).join(', ')}</span>
            </button>
          </li>`)}
        <li>${create}</li>
      </ul>
      ${editor ?? html`<p class="hint">Choose one to see its split, and how its arms do.</p>`}
    </div>
    <${ShowAsCurl} request=${{ path: 'v1/aliases' }} />`;
}

/** @param {{target: string, at: number}} props an arm of a split, in its colour */
export function ArmName({ target, at }) {
  return html`<span class="arm-name"><span class=${`arm arm-${at % 8}`} aria-hidden="true"></span><${ModelChip} name=${target} /></span>`;
}

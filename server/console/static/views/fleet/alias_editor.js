/** One alias: the targets of its split with a slider each, and what each has come to. */
import { askJson } from '../../core/http.js';
import { html, useId, useState } from '../../core/preact.js';
import { access } from '../../core/access.js';
import { linkTo } from '../../core/router.js';
import { Button, IconButton } from '../../ui/button.js';
import { Confirm } from '../../ui/dialog.js';
import { Checkbox, TextField } from '../../ui/field.js';
import { AllAsCurl } from '../../ui/request.js';
import { Slider } from '../../ui/slider.js';
import { toast } from '../../ui/toast.js';
import { aliasPath } from './api.js';
import { ArmResults } from './arms.js';
import { partsOf, withOneMore, withPart, without } from './split.js';

const MOST = 8; // arms

/**
 * @param {{alias: import('./api.js').Alias | null, adapters: import('./api.js').Adapter[], aliases: import('./api.js').Alias[],
 *   onChange: () => void, onClose: () => void, onSaved: (name: string) => void}} props
 */
export function AliasEditor({ alias, adapters, aliases, onChange, onClose, onSaved }) {
  const [name, setName] = useState(alias?.id ?? '');
  const [parts, setParts] = useState(alias ? partsOf(alias.split) : [{ target: '', percent: 100 }]);
  const [resets, setResets] = useState(false);
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState('');
  const [asks, setAsks] = useState(false);
  const [turn, setTurn] = useState(0);
  const options = useId();
  const set = (/** @type {number} */ at, /** @type {string} */ target) => setParts(parts.map((part, place) => (place === at ? { ...part, target } : part)));
  const body = {
    split: parts.map(({ target, percent }) => ({ target: target.trim(), share: percent / 100 })),
    ...(resets && { reset: true }),
  };
  const why = !name ? 'Give it a name.' : parts.some(({ target }) => !target.trim()) ? 'Say what each part stands for.' : parts.some(({ percent }) => percent < 1) ? 'A part of nothing: give it a share, or take it out.' : '';
  const taken = !alias && aliases.some((each) => each.id === name);
  const save = async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (why || busy) return;
    setBusy(true);
    setFault('');
    try {
      await askJson(aliasPath(name), { method: 'PUT', body });
      toast(`${name} is saved`);
      setResets(false);
      setTurn(turn + 1);
      onSaved(name);
    } catch (error) {
      setFault(error instanceof Error ? error.message : String(error));
    }
    setBusy(false);
  };
  const remove = async () => {
    await askJson(aliasPath(name), { method: 'DELETE' });
    toast(`${name} is gone`);
    onClose();
    onChange();
  };
  return html`
    <section class="card alias-card" aria-label=${alias ? `Alias ${alias.id}` : 'New alias'}>
      <form class="stack" onSubmit=${save}>
        ${alias
          ? html`<div class="line"><h2>${alias.id}</h2><a class="button quiet" href=${linkTo('playground', { model: alias.id })}>Chat</a><span class="spacer"></span><${Button} kind="danger" icon="trash" onClick=${() => setAsks(true)}>Delete…<//></div>`
          : html`<${TextField} label="Name" value=${name} onInput=${setName} autofocus fault=${taken ? 'There is an alias of this name: saving changes it.' : ''} />`}
        <datalist id=${options}>${[...(access.value.server.model ? [access.value.server.model] : []), ...adapters.slice(0, 500).map((each) => each.id)].map((each) => html`<option key=${each} value=${each}></option>`)}</datalist>
        ${parts.map((part, at) => html`
          <div key=${at} class="part">
            <span class=${`arm arm-${at % 8}`} aria-hidden="true"></span>
            <${TextField} label=${`Target ${at + 1}`} hideLabel value=${part.target} list=${options} placeholder="support, support@3f9a1c2e, a*0.7+b*0.3" onInput=${(/** @type {string} */ target) => set(at, target)} />
            <${Slider} label=${`Share of ${part.target || `target ${at + 1}`}, in percent`} hideLabel value=${part.percent} min=${0} max=${100} step=${1} onInput=${(/** @type {number} */ percent) => setParts(withPart(parts, at, percent))} />
            <${IconButton} icon="close" label=${`Take out target ${at + 1}`} small disabled=${parts.length === 1} onClick=${() => setParts(without(parts, at))} />
          </div>`)}
        <div class="line">
          <${Button} icon="plus" disabled=${parts.length >= MOST} onClick=${() => setParts(withOneMore(parts))}>Add a target<//>
          ${alias && html`<${Checkbox} label="Begin to count afresh" checked=${resets} onChange=${setResets} />`}
          <span class="spacer"></span>
          ${!alias && html`<${Button} kind="quiet" onClick=${onClose}>Cancel<//>`}
          <${Button} kind="primary" type="submit" busy=${busy} disabled=${Boolean(why)} title=${why}>Save<//>
        </div>
        ${(fault || why) && html`<p class=${fault ? 'fault whole' : 'hint'} role=${fault ? 'alert' : undefined}>${fault || why}</p>`}
      </form>
      ${alias && html`<${ArmResults} key=${turn} name=${alias.id} />`}
      <${AllAsCurl} requests=${[['save it', { path: aliasPath(name || 'NAME'), method: 'PUT', body }], ['see how its arms do', { path: aliasPath(name || 'NAME') }], ['delete it', { path: aliasPath(name || 'NAME'), method: 'DELETE' }]]} />
      ${asks && html`
        <${Confirm} title=${`Delete ${name}?`} action="Delete" danger onConfirm=${remove} onClose=${() => setAsks(false)}>
          <p>Requests for <strong>${name}</strong> are refused from then on, and what was counted of its arms is gone. What it stands for stays.</p>
        <//>`}
    </section>`;
}

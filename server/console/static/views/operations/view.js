/** Operations: what the server does now, who may use it and how much, and what was done to it. */
import { access } from '../../core/access.js';
import { html } from '../../core/preact.js';
import { go } from '../../core/router.js';
import { useStore } from '../../core/store.js';
import { Tabs } from '../../ui/tabs.js';
import { ViewHead } from '../../ui/view_head.js';
import { AuditLog } from './audit.js';
import { Live } from './live.js';
import { Tenants } from './tenants.js';

/** @param {{path: string, params: URLSearchParams}} props */
export default function OperationsView({ path, params }) {
  const { features } = useStore(access);
  const [tab = 'live', ...rest] = path.split('/');
  const tabs = [
    { id: 'live', label: 'Live' },
    ...(features.keys ? [{ id: 'tenants', label: 'Tenants and keys' }] : []),
    { id: 'audit', label: 'Audit log' },
  ];
  const chosen = tabs.some(({ id }) => id === tab) ? tab : 'live';
  return html`
    <${ViewHead} title="Operations">What the server does now, who uses it, and what was done to it.<//>
    <${Tabs} tabs=${tabs} chosen=${chosen} onChoose=${(/** @type {string} */ id) => go(`operations/${id}`)} label="Operations">
      ${chosen === 'live' && html`<${Live} />`}
      ${chosen === 'tenants' && html`<${Tenants} open=${rest.join('/')} />`}
      ${chosen === 'audit' && html`<${AuditLog} params=${params} />`}
    <//>`;
}

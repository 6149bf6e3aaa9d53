/** "Show as curl": every view can say which request it makes, ready to be pasted. */
import { ROOT } from '../core/http.js';
import { currentKey } from '../core/key.js';
import { html } from '../core/preact.js';
import { CopyButton } from './clipboard.js';
import { Icon } from './icons.js';

/**
 * @typedef {object} ShownRequest
 * @property {string} path such as 'v1/models'
 * @property {string} [method]
 * @property {object} [body]
 * @property {[name: string, value: string][]} [form] fields of a form; files as '@NAME'
 */

/** @param {string} text as one word of a shell */
export function shellQuoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/**
 * A request as a line for curl. The key stands as a variable: what is copied can be shown to others.
 * @param {ShownRequest} request
 */
export function curlOf({ path, method, body, form = [] }) {
  const verb = method ?? (body === undefined && !form.length ? 'GET' : 'POST');
  const parts = [`curl ${verb === 'GET' ? '' : `-X ${verb} `}${shellQuoted(new URL(path, ROOT).href)}`];
  if (currentKey()) parts.push('-H "Authorization: Bearer $MANYLORA_API_KEY"');
  if (body !== undefined) {
    parts.push("-H 'Content-Type: application/json'", `-d ${shellQuoted(JSON.stringify(body, null, 2))}`);
  }
  for (const [name, value] of form) parts.push(`-F ${shellQuoted(`${name}=${value}`)}`);
  return parts.join(' \\\n  ');
}

/** @param {{request: ShownRequest, label?: string}} props */
export function ShowAsCurl({ request, label = 'Show as curl' }) {
  return html`
    <details class="as-curl">
      <summary><${Icon} name="code" size=${15} /> ${label}</summary>
      <${CodeBlock} text=${curlOf(request)} />
    </details>`;
}

/**
 * Several requests, each under a line that says what it does.
 * @param {{requests: [says: string, request: ShownRequest][], label?: string}} props
 */
export function AllAsCurl({ requests, label = 'Show as curl' }) {
  return html`
    <details class="as-curl">
      <summary><${Icon} name="code" size=${15} /> ${label}</summary>
      <${CodeBlock} text=${requests.map(([says, request]) => `# ${says}\n${curlOf(request)}`).join('\n\n')} />
    </details>`;
}

/** @param {{text: string, label?: string}} props */
export function CodeBlock({ text, label = 'Copy' }) {
  return html`
    <div class="code-block">
      <pre tabIndex="0"><code>${text}</code></pre>
      <${CopyButton} text=${text} label=${label} />
    </div>`;
}

/** What models write, as formatted text: read as markdown, then freed of everything that could act. */
import { html, useMemo } from '../core/preact.js';
import { useModule } from './lazy.js';

const TAGS = [
  'a', 'blockquote', 'br', 'code', 'del', 'em', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'hr', 'li', 'ol', 'p', 'pre', 'strong',
  'table', 'tbody', 'td', 'th', 'thead', 'tr', 'ul',
];

/** Only these may a link lead to; a scheme that runs something is not among them. */
const SAFE_LINK = /^(?:https?:|mailto:)/i;

async function load() {
  const [{ marked }, { default: purify }] = await Promise.all([import('../vendor/marked.mjs'), import('../vendor/purify.mjs')]);
  purify.addHook('afterSanitizeAttributes', (/** @type {Element} */ node) => {
    if (node.tagName !== 'A') return;
    node.setAttribute('target', '_blank');
    node.setAttribute('rel', 'noopener noreferrer nofollow');
  });
  return (/** @type {string} */ text) => purify.sanitize(marked.parse(text, { async: false, breaks: true }), {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ['href', 'title', 'start', 'align'],
    ALLOWED_URI_REGEXP: SAFE_LINK,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_TRUSTED_TYPE: true,
  });
}

/** @param {{text: string}} props */
export function Markdown({ text }) {
  const clean = useModule('markdown', load);
  const markup = useMemo(() => clean && clean(text), [clean, text]);
  if (markup === null) return html`<div class="markdown plain">${text}</div>`;
  return html`<div class="markdown" dangerouslySetInnerHTML=${{ __html: markup }}></div>`;
}

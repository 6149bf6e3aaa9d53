/** What models write, as formatted text: read as markdown, then freed of everything that could act. */
import { html, useMemo } from '../core/preact.js';
import { escaped } from './escaped.js';
import { useModule } from './lazy.js';

const TAGS = [
  'a', 'blockquote', 'br', 'code', 'del', 'em', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'hr', 'li', 'ol', 'p', 'pre', 'strong',
  'table', 'tbody', 'td', 'th', 'thead', 'tr', 'ul',
];

/** Only these may a link lead to; a scheme that runs something is not among them. */
const SAFE_LINK = /^(?:https?:|mailto:)/i;

/** Tags that a model writes are shown as it wrote them. @param {{text: string}} token */
function asText({ text }) {
  return escaped(text);
}

/** Pictures are not fetched from anywhere. @param {{href: string, text: string}} token */
function asLink({ href, text }) {
  return `<a href="${escaped(href)}">${escaped(text || href)}</a>`;
}

async function load() {
  const [{ Marked }, { default: purify }] = await Promise.all([import('../vendor/marked.mjs'), import('../vendor/purify.mjs')]);
  purify.addHook('afterSanitizeAttributes', (/** @type {Element} */ node) => {
    if (node.tagName !== 'A') return;
    node.setAttribute('target', '_blank');
    node.setAttribute('rel', 'noopener noreferrer nofollow');
  });
  const reader = new Marked({ breaks: true, renderer: { html: asText, image: asLink } });
  return (/** @type {string} */ text) => purify.sanitize(reader.parse(text, { async: false }), {
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

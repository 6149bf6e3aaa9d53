/** What a tenant took: by day as a chart, by model as a table, and of its month's tokens. */
import { html, useMemo } from '../../core/preact.js';
import { useResource } from '../../core/resource.js';
import { Chart } from '../../ui/chart.js';
import { ModelChip } from '../../ui/chip.js';
import { count, day } from '../../ui/format.js';
import { Meter } from '../../ui/progress.js';
import { ShowAsCurl } from '../../ui/request.js';
import { Failure, Loading } from '../../ui/states.js';

const DAY = 86_400;
const DAYS = 30;

/** @typedef {{model: string, start: number, requests: number, prompt_tokens: number, cached_tokens: number, completion_tokens: number}} Taken */

/** @param {Taken[]} records @param {(record: Taken) => string | number} by @returns {[string | number, Taken][]} added up */
function summed(records, by) {
  /** @type {Map<string | number, Taken>} */
  const sums = new Map();
  for (const each of records) {
    const key = by(each);
    const sum = sums.get(key) ?? { ...each, requests: 0, prompt_tokens: 0, cached_tokens: 0, completion_tokens: 0 };
    sums.set(key, {
      ...sum, requests: sum.requests + each.requests, prompt_tokens: sum.prompt_tokens + each.prompt_tokens,
      cached_tokens: sum.cached_tokens + each.cached_tokens, completion_tokens: sum.completion_tokens + each.completion_tokens,
    });
  }
  return [...sums];
}

/** @param {{tenant: import('./tenants.js').TenantRecord}} props */
export function Usage({ tenant }) {
  const today = Math.floor(Date.now() / 1000 / DAY) * DAY;
  const path = `v1/usage?${new URLSearchParams({ tenant: tenant.name, by: 'day', from: String(today - (DAYS + 1) * DAY), limit: '100000' })}`;
  const { data, error, reload } = useResource(path, { every: 10_000 });
  const days = useMemo(() => {
    const found = new Map(data ? summed(data.data, ({ start }) => start) : []);
    const x = Array.from({ length: DAYS }, (_, at) => today - (DAYS - 1 - at) * DAY);
    return [x, x.map((day) => found.get(day)?.prompt_tokens ?? 0), x.map((day) => found.get(day)?.completion_tokens ?? 0)];
  }, [data, today]);
  if (error && !data) return html`<${Failure} error=${error} onRetry=${reload} />`;
  if (!data) return html`<${Loading} lines=${4} />`;
  const first = new Date();
  const month = Date.UTC(first.getUTCFullYear(), first.getUTCMonth(), 1) / 1000;
  const models = summed(data.data, ({ model }) => model).map(([, sum]) => sum).sort((a, b) => b.completion_tokens - a.completion_tokens);
  const spent = data.data.filter((/** @type {Taken} */ each) => each.start >= month).reduce((/** @type {number} */ sum, /** @type {Taken} */ each) => sum + each.prompt_tokens + each.completion_tokens, 0);
  return html`
    ${tenant.limits.monthly_tokens ? html`<${Meter} label="Tokens this month" used=${spent} total=${tenant.limits.monthly_tokens} format=${count} />` : null}
    ${!models.length
      ? html`<p class="hint">It has taken nothing in the last ${DAYS} days.</p>`
      : html`
        <${Chart} label=${`Tokens a day, in the last ${DAYS} days`} data=${days} series=${[{ label: 'Prompts', hue: 285, format: count }, { label: 'Answers', format: count }]} height=${150} time formatX=${day} range=${[0, null]} formatY=${count} />
        <div class="wide-content" tabIndex="0" role="group" aria-label="By model"><table class="plain-table">
          <caption class="unseen">By model, in the last ${DAYS} days</caption>
          <thead><tr><th scope="col">Model</th><th scope="col">Requests</th><th scope="col">Prompts</th><th scope="col">Cached</th><th scope="col">Answers</th></tr></thead>
          <tbody>${models.map((each) => html`
            <tr key=${each.model}><th scope="row"><${ModelChip} name=${each.model} base=${each.model.startsWith('(')} /></th><td>${count(each.requests)}</td><td>${count(each.prompt_tokens)}</td><td>${count(each.cached_tokens)}</td><td>${count(each.completion_tokens)}</td></tr>`)}</tbody>
        </table></div>`}
    <${ShowAsCurl} request=${{ path }} />`;
}

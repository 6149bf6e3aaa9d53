/** A contest, and what was measured of it, as one HTML file that fetches nothing. */
import { escaped } from '../../ui/escaped.js';
import { differences } from './differences.js';
import { standings } from './contest.js';
import { LEVELS, METRICS, heat, nats } from './measuring.js';
import { plot } from './plot.js';
import { factsOf } from './round.js';
import { promptText } from './setup.js';

const POLICY = "default-src 'none'; style-src 'unsafe-inline'";
const STYLE = `
:root { color-scheme: light dark; --text: #1d1d19; --muted: #5d5a4e; --bg: #fffefb; --panel: #f5f4ef; --line: #dcd9cc; --mark: #fae3a0;
  --good: #17663a; --warn: #7c5200; --bad: #ac2418; }
@media (prefers-color-scheme: dark) { :root { --text: #e9eae4; --muted: #a2a79c; --bg: #131512; --panel: #1b1e1b; --line: #2e332e; --mark: #55450f;
  --good: #74c78e; --warn: #e4b45a; --bad: #f2877b; } }
* { box-sizing: border-box; } body { margin: 0; background: var(--bg); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; } h1 { font-size: 24px; margin: 0; } h2 { font-size: 18px; margin: 34px 0 8px; }
h3 { font-size: 14px; margin: 14px 0 4px; } .soft { color: var(--muted); font-size: 13px; margin: 4px 0; }
.asked { white-space: pre-wrap; border-left: 3px solid var(--line); padding-left: 12px; color: var(--muted); }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 12px; }
.answer { background: var(--panel); border: 1px solid var(--line); border-radius: 9px; padding: 10px 14px; min-width: 0; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; } mark { background: var(--mark); color: inherit; border-radius: 3px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); } th:first-child { text-align: left; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
.strip { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--panel); border: 1px solid var(--line); border-radius: 9px; padding: 8px 12px;
  margin: 0; line-height: 1.9; font-family: ui-monospace, monospace; font-size: 13px; } .strip span { padding: 2px 0; }
.other { border-bottom: 2px solid var(--bad); } svg { display: block; width: 100%; max-width: 860px; height: auto; }
svg text { font-size: 11px; fill: var(--muted); } svg .grid { stroke: var(--line); } svg polyline { fill: none; stroke-width: 1.8; }
.legend span { margin-right: 14px; } .legend i { display: inline-block; width: 12px; height: 10px; border-radius: 2px; margin-right: 5px; }`;

/** @typedef {import('./contest.js').State} State */
/** @typedef {import('./measuring.js').Measured} Measured */

/**
 * @param {State} state
 * @param {Measured | null} result
 * @param {{server: string, when: string}} about
 */
export function reportOf(state, result, { server, when }) {
  const { setup, rounds } = state;
  const title = `${setup.targets.join(', ')}`;
  const how = `temperature ${setup.temperature}, at most ${setup.maxTokens} tokens${setup.seed ? `, seed ${setup.seed}` : ''}`;
  const ranks = standings(state).map(({ target, mean, count }) => `${setup.targets[target]}: ${mean.toFixed(2)} (${count})`).join(' · ');
  return `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="${escaped(POLICY)}"><title>${escaped(`Comparison of ${title}`)}</title><style>${STYLE}</style></head><body><main>
<h1>Comparison of ${escaped(title)}</h1><p class="soft">${escaped(`${server} · ${when} · ${how}`)}</p>
${setup.system ? `<p class="asked">${escaped(setup.system)}</p>` : ''}${ranks ? `<p>Mean score by votes: ${escaped(ranks)}</p>` : ''}
${result ? numbers(result) : ''}
${rounds.map((round, at) => `<section><h2>Prompt ${at + 1}</h2><p class="asked">${escaped(promptText(round.prompt))}</p>
<div class="answers">${setup.targets.map((name, target) => answerOf(round, name, target)).join('')}</div>
${result?.cases[at] ? strips(result, result.cases[at]) : ''}</section>`).join('\n')}
</main></body></html>\n`;
}

/** @param {import('./contest.js').Round} round @param {string} name @param {number} target */
function answerOf(round, name, target) {
  const answer = round.answers[target];
  if (!answer) return '';
  const pieces = target === 0 ? [{ text: answer.text, differs: false }] : differences(round.answers[0]?.text ?? '', answer.text);
  const text = pieces.map((piece) => (piece.differs ? `<mark>${escaped(piece.text)}</mark>` : escaped(piece.text))).join('');
  const score = round.scores[target];
  return `<div class="answer"><h3>${escaped(name)}</h3><p class="text">${text}</p>
<p class="soft">${escaped(answer.model)}<br>${escaped(factsOf(answer))}${typeof score === 'number' ? ` · score ${score}` : ''}${answer.fault ? ` · ${escaped(answer.fault)}` : ''}</p></div>`;
}

/** @param {Measured} result */
function numbers(result) {
  const rows = result.summary.map((entry) => {
    const level = entry.target === 0 ? 'baseline' : entry.level;
    const cells = METRICS.map(([, field, write]) => `<td>${entry.target === 0 && field !== 'perplexity' ? '–' : escaped(write(entry[field]))}</td>`).join('');
    return `<tr><th>${escaped(result.targets[entry.target]?.target)}</th>${cells}<td class="${LEVELS[level] ?? ''}">${escaped(level)}</td></tr>`;
  });
  return `<h2>Measured</h2><p class="${LEVELS[result.verdict.level] ?? ''}"><b>${escaped(result.verdict.sentence)}</b></p>
<div class="wide"><table><thead><tr><th>target</th>${METRICS.map(([heading]) => `<th>${heading}</th>`).join('')}<th>verdict</th></tr></thead><tbody>${rows.join('')}</tbody></table></div>`;
}

/** @param {Measured} result @param {any} found */
function strips(result, found) {
  const each = found.pairs.map((/** @type {any} */ pair) => {
    const tokens = found.reference.tokens.map((/** @type {any} */ token, /** @type {number} */ at) =>
      `<span class="${pair.top1_agrees[at] ? '' : 'other'}" style="background:rgb(226 92 40/${(heat(pair.kl[at]) * 0.62).toFixed(2)})" title="KL ${nats(pair.kl[at])}">${escaped(token.text)}</span>`);
    return `<h3>${escaped(result.targets[pair.target]?.target)}</h3><p class="strip">${tokens.join('')}</p>`;
  });
  const lines = found.pairs.map((/** @type {any} */ pair) => ({ label: result.targets[pair.target]?.target ?? '', values: pair.kl }));
  return `${each.join('')}<h3>Divergence by token</h3>${plot(lines)}`;
}

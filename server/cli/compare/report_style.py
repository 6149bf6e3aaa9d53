"""The style sheet of the HTML report: light and dark, wide and narrow windows."""

from __future__ import annotations

from typing import Final

_SERIES: Final = 7  # targets beside the baseline

STYLE: Final = """\
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5b6474; --paper: #fff; --panel: #f4f5f8;
  --edge: #d9dde5; --heat: 226 92 40; --mark: #ffe9a8; --good: #16794c; --warn: #946200; --bad: #b3261e;
  --s0: #2a6fd6; --s1: #d9601a; --s2: #12875f; --s3: #8a4fc7; --s4: #b58900; --s5: #c23a78; --s6: #4a6274; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaf0; --soft: #a2abba; --paper: #14171d;
  --panel: #1d222b; --edge: #343b48; --heat: 190 64 24; --mark: #5c4a10; --good: #58c796; --warn: #e0b040;
  --bad: #ff8a80; --s0: #6ea8ff; --s1: #ff9a5a; --s2: #4fcf9f; --s3: #c39bff; --s4: #e5c04a; --s5: #ff7fb5;
  --s6: #a9bccb; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 36px 0 10px; }
h3 { font-size: 14px; margin: 18px 0 6px; }
p { margin: 6px 0; } .soft { color: var(--soft); font-size: 13px; }
.badge { display: inline-block; padding: 3px 10px; border-radius: 99px; border: 1px solid currentColor;
  font-weight: 600; }
.equal { color: var(--good); } .small { color: var(--warn); } .different { color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { text-align: right; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--edge); }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
th { font-weight: 600; color: var(--soft); }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 12px; }
.answer { background: var(--panel); border: 1px solid var(--edge); border-radius: 8px; padding: 10px 12px;
  min-width: 0; }
.answer h3 { margin: 0 0 6px; overflow-wrap: anywhere; }
pre, .strip { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: inherit; }
.prompt { border-left: 3px solid var(--edge); padding-left: 10px; margin-bottom: 12px; color: var(--soft); }
mark { background: var(--mark); color: inherit; border-radius: 3px; }
.strip { background: var(--panel); border: 1px solid var(--edge); border-radius: 8px; padding: 8px 10px;
  line-height: 1.9; font-family: ui-monospace, monospace; font-size: 13px; }
.strip span { padding: 2px 0; } .strip .other { border-bottom: 2px solid var(--bad); }
.legend span { margin-right: 14px; white-space: nowrap; } .legend i { display: inline-block; width: 14px;
  height: 10px; margin-right: 5px; border-radius: 2px; }
svg { display: block; width: 100%; min-width: 560px; max-width: 900px; height: auto; }
svg text { font-size: 11px; fill: var(--soft); } svg .grid { stroke: var(--edge); stroke-width: 1; }
svg line.limit { stroke: var(--soft); stroke-dasharray: 5 4; } svg text.limit { font-size: 10px;
  paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
svg .series polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
""" + "\n".join(
    f".s{i} polyline {{ stroke: var(--s{i}); }} "
    f".s{i} circle, i.s{i} {{ fill: var(--s{i}); background: var(--s{i}); }}"
    for i in range(_SERIES)
)

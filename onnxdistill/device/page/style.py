"""The look of a benchmark's page, as CSS: that of the report on a compression, and classes for drawings.

Series are grey for the baseline (`s0`), then six colours (`s1` to `s6`). Each is dark enough for text on light paper
and, in another shade, light enough for text on dark paper: a contrast of 4.5 or more, as WCAG 2.2 asks for. They differ
in lightness as well, so that colour-blind readers can tell them apart; names or numbers stand at the curves anyway.
"""

from __future__ import annotations

HUES = 6
"""How many colours there are for series besides that of the baseline."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --card: #f6f8fa; --ink: #1f2328; --soft: #59626c; --line: #d8dee4;
  --good: #1a7f4e; --bad: #c9332c; --care: #8a5d00;
  --tint: 91 141 239; --tint-good: 31 157 107; --tint-bad: 217 119 43;
  --c0: #656d76; --c1: #147a52; --c2: #2f66d0; --c3: #b4530a; --c4: #690387; --c5: #0a4b5c; --c6: #4d3a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0d1117; --card: #161b22; --ink: #e6edf3; --soft: #9198a1; --line: #30363d;
    --good: #3fb97f; --bad: #ff7b72; --care: #d9a441;
    --c0: #9aa4ae; --c1: #3fb97f; --c2: #79a5ff; --c3: #f0954b; --c4: #c270be; --c5: #8be4f2; --c6: #f5e58c;
  }
}
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); } .s3 { --c: var(--c3); }
.s4 { --c: var(--c4); } .s5 { --c: var(--c5); } .s6 { --c: var(--c6); }

* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; overflow-wrap: anywhere; }
header { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: baseline; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0; letter-spacing: -.02em; }
h2 { font-size: 1.1rem; margin: 44px 0 12px; }
h3 { font-size: .95rem; margin: 24px 0 8px; }
h4 { font-size: .87rem; margin: 20px 0 4px; }
p { margin: 8px 0; max-width: 46em; }
p.small { max-width: 62em; }
code { font: .92em ui-monospace, monospace; }
.soft { color: var(--soft); }
.small { font-size: .87rem; }
.good { color: var(--good); }
.bad { color: var(--bad); }
.nowrap { white-space: nowrap; }
footer { margin-top: 48px; border-top: 1px solid var(--line); padding-top: 8px; }
footer h2 { margin-top: 16px; }
details { border-top: 1px solid var(--line); padding: 10px 0; }
section > details:last-child { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; font-weight: 600; }

.answer { font-size: 1.15rem; margin: 14px 0 6px; }
.badge { border-radius: 99px; padding: 2px 12px; font-weight: 600; font-size: .85rem; }
.badge { color: var(--paper); background: var(--good); }
.badge.missed { background: var(--bad); }
.badge.unclear { background: var(--care); }
.heroes { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin: 20px 0 8px; }
.hero { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px; }
.hero b { display: block; font-size: 1.75rem; line-height: 1.2; letter-spacing: -.02em; white-space: nowrap; }
.hero b { font-variant-numeric: tabular-nums; }
.hero b small { font-size: .55em; font-weight: 600; letter-spacing: 0; color: var(--soft); }
.hero > span { color: var(--soft); font-size: .87rem; display: block; line-height: 1.4; }
.verdicts { list-style: none; padding: 0; margin: 14px 0 0; }
.verdicts li { padding: 3px 0 3px 1.4em; text-indent: -1.4em; }
.verdicts li::before { display: inline-block; width: 1.4em; text-indent: 0; font-weight: 700; }
.verdicts .met::before { content: "✓"; color: var(--good); }
.verdicts .missed::before { content: "✗"; color: var(--bad); }
.verdicts .unclear::before { content: "?"; color: var(--care); }
.care { border-left: 4px solid var(--care); background: var(--card); border-radius: 4px 12px 12px 4px; }
.care { padding: 10px 16px; margin: 16px 0; }
.care b { color: var(--care); }
.care ul { margin: 4px 0 0; padding-left: 20px; }
.care li { padding: 1px 0; }
.care details { border: 0; padding: 4px 0 0; font-size: .87rem; }

.scroll { overflow-x: auto; max-width: 100%; }
.scroll:focus-visible { outline: 2px solid var(--c2); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: 7px 8px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th, td { vertical-align: baseline; }
thead th { color: var(--soft); font-weight: 600; font-size: .82rem; vertical-align: bottom; line-height: 1.3; }
tbody th { font-weight: 400; }
th:first-child { text-align: left; padding-left: 0; white-space: normal; position: sticky; left: 0; z-index: 1; }
th:first-child { min-width: min(1.1 * var(--longest), 12.5em, 44vw); max-width: 280px; background: var(--paper); }
figure th:first-child { background: var(--card); }
td.left, th.left { text-align: left; }
td.text, th.text { text-align: left; white-space: normal; min-width: 220px; }
td.strong { font-weight: 650; }
td.wide-cell { width: 24%; min-width: 110px; }
.cases { font-size: .87rem; }
.cases th:first-child { min-width: min(1.1 * var(--longest) + 1.2em, 11em, 38vw); }
.cases td { padding-left: 6px; padding-right: 6px; }
.below { display: block; color: var(--soft); font-size: .73rem; line-height: 1.3; font-weight: 400; }
.fix { display: block; color: var(--soft); }
.mark svg { width: 110px; height: 16px; display: block; position: relative; top: 3px; }
.bar { height: 8px; border-radius: 4px; min-width: 2px; background: var(--c); }
.heat td { text-align: center; width: 90px; min-width: 62px; padding: 9px 8px; }
.heat td { border: 2px solid var(--card); border-radius: 8px; }
.heat td.best { font-weight: 750; outline: 2px solid var(--ink); outline-offset: -4px; }
.heat th { border: 0; }
.heat thead th { text-align: center; }
.heat thead th:first-child { text-align: left; font-weight: 400; white-space: nowrap; }

figure { margin: 0 0 14px; background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
figure { padding: 12px 14px; min-width: 0; }
figure svg { width: 100%; height: auto; display: block; }
figure details { border: 0; padding: 8px 0 0; }
figcaption { color: var(--soft); font-size: .87rem; line-height: 1.45; margin: 0 0 10px; }
figcaption b { color: var(--ink); font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 14px; }
.charts.thirds { grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.charts.halves { grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.charts figure { margin: 0; }
.charts + details { margin-top: 14px; }
details > .charts { margin-top: 12px; }
.scroll + figure, .scroll + .charts { margin-top: 16px; }
.key { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; margin: 10px 0 2px; }
.key { font-size: .87rem; }
.number { display: inline-block; min-width: 1.55em; padding: 0 .3em; border-radius: 99px; }
.number { border: 1.5px solid var(--c); color: var(--c); }
.number { text-align: center; font-size: .78rem; font-weight: 650; line-height: 1.4; }
.swatch { display: inline-block; width: .75em; height: .75em; border-radius: 3px; background: var(--c); }
.narrow { display: none; }

svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .tick { fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .middle { text-anchor: middle; }
svg .end { text-anchor: end; }
svg .name { font-weight: 650; fill: var(--c, var(--ink)); }
svg .name, svg .halo { paint-order: stroke; stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
svg .grid { stroke: var(--line); }
svg .axis { stroke: var(--soft); }
svg .curve { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
svg .hair { fill: none; stroke: var(--c); }
svg .band { fill: var(--c); opacity: .22; }
svg .area { fill: var(--c); opacity: .55; }
svg .dot { fill: var(--c); }
svg .faint { opacity: .55; }
svg .disc { fill: var(--c); fill-opacity: .5; stroke: var(--c); }
svg .hollow { fill: var(--card); stroke: var(--c); stroke-width: 2; }
svg .bad-mark { stroke: var(--bad); }
svg .cross { fill: none; stroke: var(--bad); stroke-width: 2.2; stroke-linecap: round; }
svg .whisker { stroke: var(--ink); stroke-width: 1.4; }
svg .limit { stroke: var(--bad); stroke-width: 1.4; stroke-dasharray: 6 4; }
svg .limit-name { fill: var(--bad); }
svg .found { stroke: var(--good); stroke-width: 1.4; }
svg .found-name { fill: var(--good); }
svg .reference { stroke: var(--soft); stroke-dasharray: 2 3; }
svg .roof { stroke: var(--soft); stroke-width: 1.6; }
svg .dashed { stroke-dasharray: 5 4; }
svg .badge-disc { fill: var(--card); stroke: var(--c); stroke-width: 1.6; }
svg .badge-text { fill: var(--c); font-size: 10.5px; font-weight: 700; }

@media (max-width: 760px) {
  main { padding: 24px 16px 48px; }
  h1 { font-size: 1.4rem; }
  figure { padding: 10px; }
  .wide, .cases .below { display: none; }
  .narrow { display: block; }
  .heroes { grid-template-columns: 1fr 1fr; }
  .hero { padding: 12px; }
  .hero b { font-size: 1.4rem; }
}
@media print {
  .scroll { overflow: visible; }
  figure, .hero { break-inside: avoid; }
}
"""

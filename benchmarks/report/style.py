# SPDX-License-Identifier: Apache-2.0
"""Style of the report page: one column on a phone, light or dark as the system is set."""

STYLE = """
:root {
  --page: #fbfbfa; --card: #ffffff; --ink: #1d1f21; --soft: #62676c; --rule: #dfe1e2; --band: #c9d8e6;
  --s0: #2f6db0; --s1: #c8601d; --s2: #2f8a5b; --s3: #8a56b8; --s4: #a88a10; --s5: #85898d;
  --good: #2f8a5b; --bad: #c2352d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #16181a; --card: #1e2124; --ink: #e6e8ea; --soft: #9ba1a6; --rule: #34393d; --band: #2f4459;
    --s0: #6aa9ec; --s1: #ef9455; --s2: #5cc08c; --s3: #b98ae6; --s4: #d5b93c; --s5: #8b9196;
    --good: #5cc08c; --bad: #f0736a;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.45;
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 36px 0 4px; }
.where, .note, figcaption, small { color: var(--soft); }
.where { margin: 4px 0 16px; }
.note { margin: 0 0 10px; max-width: 75ch; font-size: .9rem; }
.cards { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 210px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 12px;
  display: flex; flex-direction: column; }
.card span { font-size: .85rem; color: var(--soft); }
.card b { font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.figures { columns: 2 420px; column-gap: 14px; }
.figures figure { break-inside: avoid; margin-bottom: 14px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 10px 12px; }
figcaption { font-size: .85rem; margin-bottom: 6px; }
figure.sheet { margin-top: 14px; }
svg { display: block; width: 100%; max-width: 620px; height: auto; }
img { display: block; max-width: none; image-rendering: pixelated; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px 4px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
.words { text-align: left; min-width: 7em; max-width: 46em; overflow-wrap: break-word; }
ul { padding-left: 1.2em; max-width: 75ch; overflow-wrap: anywhere; }
text { font-size: 12px; fill: var(--soft); font-family: inherit; }
text.value { fill: var(--ink); }
text.inside { font-size: 11px; font-weight: 600; fill: var(--card); }
.grid { stroke: var(--rule); }
.median { stroke: var(--ink); stroke-width: 2; }
.band { fill: var(--band); }
.roof { fill: none; stroke: var(--ink); stroke-width: 1.5; }
.curve { fill: none; stroke-width: 1.8; }
.s0 { fill: var(--s0); } .s1 { fill: var(--s1); } .s2 { fill: var(--s2); }
.s3 { fill: var(--s3); } .s4 { fill: var(--s4); } .s5 { fill: var(--s5); }
.c0 { stroke: var(--s0); } .c1 { stroke: var(--s1); } .c2 { stroke: var(--s2); }
.c3 { stroke: var(--s3); } .c4 { stroke: var(--s4); } .c5 { stroke: var(--s5); }
.good { fill: var(--good); } .bad { fill: var(--bad); } .neutral { fill: var(--soft); }
"""

"""The pages' style sheet: one column of text, grids that fold on a phone, light and dark."""

STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #fff; --ink: #1c1e21;
  --soft: #62676e; --line: #e2e3e5;
  --accent: #2563c9; --right: #1a7a3c; --wrong: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181b; --card: #1e2125; --ink: #e7e9eb;
  --soft: #9aa1a9;
  --line: #33383e; --accent: #76a9f5; --right: #5cc27f; --wrong: #f28b82; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 20px 64px; }
header p { margin: 0; color: var(--soft); max-width: 70ch; }
h1 { margin: 2px 0 6px; font-size: 32px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 12px; font-size: 22px; }
h3 { margin: 20px 0 4px; font-size: 17px; }
section { margin-top: 40px; padding-top: 24px; border-top: 1px solid var(--line); }
p { margin: 0 0 8px; }
.note { color: var(--soft); font-size: 14px; }
.missing { color: var(--soft); font-style: italic; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 14px;
  margin-top: 26px; }
.tiles div, figure, .charts > div { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.tiles div { padding: 16px 18px; }
.tiles p { margin: 0; color: var(--soft); font-size: 14px; }
.tiles strong { display: block; font-size: 34px; line-height: 1.3; font-weight: 650;
  white-space: nowrap; }
.cards { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.cards.clips { grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); }
figure { margin: 0; overflow: hidden; }
video { display: block; width: 100%; height: auto; image-rendering: pixelated; background: #000; }
figcaption { padding: 8px 10px 10px; font-size: 14px; line-height: 1.35; overflow-wrap: anywhere; }
figcaption p { margin: 0 0 4px; }
figcaption ul { margin: 0; padding: 0; list-style: none; font-size: 13px; }
figcaption .right { display: inline-block; margin-right: 8px; color: var(--right); }
figcaption .wrong { color: var(--wrong); font-weight: 600; }
.charts { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); }
.charts > div { padding: 4px 8px 4px 0; }
.chart { display: block; width: 100%; height: auto; font-size: 12px; fill: var(--soft); }
.chart .label { fill: var(--ink); font-size: 13px; font-weight: 600; }
.chart .grid { stroke: var(--line); }
.chart .frame { fill: none; stroke: var(--line); }
.chart polyline { fill: none; stroke: var(--accent); stroke-linejoin: round; }
.chart .raw { stroke-width: 1; opacity: 0.3; }
.chart .smooth { stroke-width: 2; }
.wide { overflow-x: auto; margin-bottom: 12px; }
table { border-collapse: collapse; font-size: 15px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 22px 5px 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: 14px; }
.bar { display: inline-block; width: 140px; height: 10px; border-radius: 5px;
  background: var(--line);
  overflow: hidden; }
.bar span { display: block; height: 100%; background: var(--accent); }
details { margin-bottom: 8px; }
summary { cursor: pointer; }
details .wide, details .cards { margin-top: 8px; }
section > .cards { margin-bottom: 14px; }
pre { overflow-x: auto; padding: 14px 16px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; font-size: 14px; }
code { overflow-wrap: anywhere; }
@media (max-width: 600px) { main { padding: 20px 14px 48px; } h1 { font-size: 26px; }
  .tiles { grid-template-columns: 1fr; } .tiles strong { font-size: 28px; }
  .cards { grid-template-columns: repeat(2, 1fr); } .cards.clips { grid-template-columns: 1fr; }
  .bar { width: 80px; } th, td { padding-right: 14px; } }
"""

# In addition, on the page of a curation.
CURATION_STYLE = """
nav { margin-top: 18px; line-height: 2; }
nav a { color: var(--accent); margin-right: 16px; white-space: nowrap; }
.chart .kept { fill: var(--accent); }
.chart .dropped { fill: var(--wrong); }
.chart .threshold { stroke: var(--ink); stroke-dasharray: 4 3; }
.chart .label { paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
.kept-count, .dropped-count { color: var(--accent); font-weight: 600; }
.dropped-count { color: var(--wrong); }
.bar.paper span { background: var(--soft); }
.line { white-space: nowrap; margin: 0; }
.line.note { font-size: inherit; }
section .charts { margin-bottom: 8px; }
.strip { display: flex; gap: 2px; background: #000; }
.strip img, .strip span { flex: 1 1 0; min-width: 0; width: 100%; aspect-ratio: 16 / 9;
  object-fit: contain; display: block; }
.strip span { color: #aaa; font-size: 13px; padding: 8px 10px; }
.cards { grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); }
.cards.long { grid-template-columns: repeat(auto-fill, minmax(min(350px, 100%), 1fr)); }
.sides { display: grid; gap: 8px 22px; grid-template-columns: repeat(2, 1fr); }
.sides > * { min-width: 0; }
.sides ul { margin: 0 0 14px; padding-left: 22px; }
.sides .counts { align-self: center; }
.sides h4 { margin: 12px 0 4px; font-size: 15px; }
.sides h4 code { display: inline-block; }
@media (max-width: 900px) { .sides { grid-template-columns: 1fr; } }
@media (max-width: 600px) { .chart, .chart .label { font-size: 15px; }
  .cards { grid-template-columns: repeat(2, 1fr); } .cards.long { grid-template-columns: 1fr; } }
"""

"""The page's style, for a screen of any width and for A4."""

STYLESHEET = """
:root { --ink: #1c2733; --muted: #5b6875; --rule: #d5dce3; --wash: #f4f7f9; --accent: #0072B2; --warn: #a84300; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }
main, header.page, footer { max-width: 908px; margin: 0 auto; padding: 0 24px; }
header.page { padding-top: 40px; }
.kicker { margin: 0; color: var(--muted); font-size: 14px; }
h1 { margin: 2px 0 6px; font-size: 34px; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 0 0 10px; font-size: 23px; line-height: 1.3; letter-spacing: -0.005em; }
p { margin: 0 0 12px; }
section { padding: 30px 0 6px; border-top: 1px solid var(--rule); margin-top: 26px; }
section.first { border-top: 0; margin-top: 0; padding-top: 18px; }
.state { display: inline-block; padding: 1px 10px; border: 1px solid currentColor; border-radius: 12px;
  font-size: 14px; font-weight: 600; color: var(--accent); }
.state.bad { color: var(--warn); }
.muted { color: var(--muted); }
.small { font-size: 14px; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin: 6px 0 18px; padding: 0; }
.tile { border: 1px solid var(--rule); border-radius: 8px; padding: 12px 14px; background: var(--wash); min-width: 0; }
.tile.main { border-color: var(--accent); border-width: 2px; }
.tile .name { font-size: 13.5px; color: var(--muted); line-height: 1.35; }
.tile .value { font-size: 29px; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile .value.words { font-size: 20px; line-height: 36px; }
.tile .more { font-size: 13.5px; line-height: 1.4; }
table { width: 100%; border-collapse: collapse; margin: 6px 0 12px; font-size: 14.5px; line-height: 1.4; }
caption { text-align: left; color: var(--muted); font-size: 14px; padding-bottom: 6px; }
th, td { text-align: left; vertical-align: top; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--rule); }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 600; font-size: 13.5px; border-bottom: 1.5px solid var(--muted); }
tbody th { font-weight: 600; overflow-wrap: break-word; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.total > * { border-top: 1.5px solid var(--muted); font-weight: 650; }
table.facts th { width: 34%; font-weight: 600; color: var(--muted); }
figure { margin: 8px 0 20px; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figure svg text { font-family: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, "Liberation Sans",
  sans-serif !important; }
figcaption { color: var(--muted); font-size: 14px; line-height: 1.5; margin-top: 6px; }
.notice { border-left: 4px solid var(--accent); background: var(--wash); padding: 10px 14px; margin: 6px 0 16px; }
.notice.bad { border-color: var(--warn); }
.notice p:last-child { margin-bottom: 0; }
.pictures { display: grid; grid-template-columns: 1fr 1fr; gap: 20px 22px; }
.pictures figure { margin: 0; min-width: 0; }
.pictures img { display: block; width: 100%; height: auto; background: #000; image-rendering: auto; }
.pictures figcaption strong { color: var(--ink); }
footer { color: var(--muted); font-size: 13.5px; padding-top: 18px; padding-bottom: 48px; }
nav { font-size: 14px; margin-top: 10px; }
nav a { color: var(--accent); margin-right: 14px; text-decoration: none; white-space: nowrap; display: inline-block; }
nav a:hover { text-decoration: underline; }
@media (max-width: 720px) { .tiles, .pictures { grid-template-columns: 1fr 1fr; } }
@media (max-width: 520px) { .pictures { grid-template-columns: 1fr; } }
@page { size: A4; margin: 14mm 15mm; }
@media print {
  body { font-size: 10.5pt; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main, header.page, footer { max-width: none; padding: 0; }
  header.page { padding-top: 0; }
  nav { display: none; }
  h1 { font-size: 22pt; } h2 { font-size: 15pt; } h3 { font-size: 12pt; }
  #worst > p { break-inside: avoid; page-break-inside: avoid; }
  #cost > p { break-before: avoid; page-break-before: avoid; }
  h2, h3, caption, #worst > p { break-after: avoid; page-break-after: avoid; }
  figure, .tile, .tiles, .notice, tr, table.short, table.facts { break-inside: avoid; page-break-inside: avoid; }
  thead { display: table-header-group; }
  section { padding-top: 14px; margin-top: 14px; }
  table, figcaption, caption, .small { font-size: 9pt; }
  p { orphans: 3; widows: 3; }
}
"""

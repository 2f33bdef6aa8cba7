"""How pages look, and what their tables do when they are clicked: CSS and JavaScript, which go into each page."""

STYLE = r""":root {
  color-scheme: light dark;
  --paper: #fbfbf9; --card: #ffffff; --ink: #1b1d21; --soft: #5c626c; --faint: #e3e3de; --line: #c9cac5;
  --s0: #5f83ab; --s1: #c63f27; --s2: #8a6d1d; --s3: #2f8a6b; --s4: #7a55a3;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171b; --card: #1c1f24; --ink: #e9e9e5; --soft: #a0a6b0; --faint: #2c3037; --line: #474c55;
    --s0: #7ba3cf; --s1: #ff8163; --s2: #d9b44f; --s3: #5cc29e; --s4: #b592e0;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
main { max-width: 1168px; margin: 0 auto; padding: 48px 24px 64px; }
h1, h2, p, dl, dd, ul, figure { margin: 0; padding: 0; }
.kind { color: var(--soft); font-size: 14px; letter-spacing: .02em; }
.kind b { color: var(--s1); font-weight: 650; }
h1 { font-size: clamp(24px, 1.1rem + 1.9vw, 38px); line-height: 1.2; font-weight: 650; letter-spacing: -.015em;
  margin: 10px 0 12px; max-width: 30em; text-wrap: balance; overflow-wrap: anywhere; }
.more { color: var(--soft); font-size: 18px; max-width: 44em; overflow-wrap: anywhere; }
h2 { font-size: 19px; line-height: 1.3; font-weight: 650; }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 1px; margin: 36px 0 0;
  background: var(--faint); border: 1px solid var(--faint); border-radius: 10px; overflow: hidden; }
.tiles div { display: flex; flex-direction: column; justify-content: space-between; background: var(--card);
  padding: 14px 18px 16px; }
.tiles dt { color: var(--soft); font-size: 13px; }
.tiles dd { font-size: 24px; font-weight: 600; letter-spacing: -.01em; font-variant-numeric: tabular-nums; }

section, figure { margin-top: 56px; }
figcaption { margin-bottom: 14px; }
figcaption p { margin-top: 4px; }
figcaption p, .note { color: var(--soft); font-size: 15px; max-width: 46em; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 14px; margin-bottom: 14px; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 7px;
  vertical-align: -1px; }

svg { display: block; width: 100%; overflow: visible; font-size: 12px; }
svg text { fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--faint); }
.zero { stroke: var(--line); }
.s0 { --color: var(--s0); } .s1 { --color: var(--s1); } .s2 { --color: var(--s2); }
.s3 { --color: var(--s3); } .s4 { --color: var(--s4); }
.mark { fill: var(--color); }
.mark:hover { filter: brightness(1.15); }
i[class] { background: var(--color); }
.whisker { stroke: var(--ink); stroke-width: 1.5; opacity: .7; }
.tick.x { text-anchor: middle; transform: translateY(18px); }
.axis.x { text-anchor: middle; transform: translateY(38px); }
svg text.label { font-family: var(--mono); fill: var(--ink); }

.bars .plot { --bar: 10px; --pitch: calc(var(--series) * 11px + 10px); padding: 0 64px 28px calc(var(--label) + 18px);
  font-size: 12px; font-family: var(--mono); }
.bars svg { height: calc(var(--rows) * var(--pitch)); font-family: system-ui, sans-serif; }
.row { transform: translateY(calc(var(--i) * var(--pitch))); }
.bars .mark { y: calc(5px + var(--j) * 11px); height: var(--bar); rx: 2px; min-width: 1px; }
.bars .whisker { transform: translateY(calc(10px + var(--j) * 11px)); }
.bars .value { transform: translate(7px, calc(14px + var(--j) * 11px)); font-size: 11px; }
.bars .label, .heat .label { text-anchor: end; transform: translate(-12px, calc(var(--pitch) / 2 + 4px)); }

.heat .plot { --pitch: 24px; padding: 0 0 50px calc(var(--label) + 18px); font-size: 12px; font-family: var(--mono); }
.heat svg { height: calc(var(--rows) * var(--pitch)); font-family: system-ui, sans-serif; }
.cell { height: calc(var(--pitch) - 1px); fill: var(--s1); fill-opacity: var(--depth); stroke: var(--faint); }
.missing { fill: none; stroke-dasharray: 2 3; }
.ramp { display: flex; align-items: center; gap: 10px; color: var(--soft); font-size: 13px; margin-bottom: 14px; }
.ramp i { width: 160px; height: 10px; border-radius: 3px; border: 1px solid var(--faint);
  background: linear-gradient(to right, color-mix(in srgb, var(--s1) 10%, transparent), var(--s1)); }

.axes .plot { padding: 4px 24px 50px 52px; }
.axes svg[role] { height: 340px; }
.axes svg svg { overflow: visible; }
.axis-y { color: var(--soft); font-size: 12px; margin-bottom: 8px; }
.tick.y { text-anchor: end; transform: translate(-10px, 4px); }
.diagonal { stroke: var(--line); stroke-dasharray: 5 5; }
.line { fill: none; stroke: var(--color); stroke-width: 2; stroke-linejoin: round;
  vector-effect: non-scaling-stroke; }
.band { fill: var(--color); opacity: .18; }
circle.mark { stroke: var(--paper); stroke-width: 1; }
svg text.name { font-family: var(--mono); fill: var(--ink); }
.name.right { transform: translate(10px, 4px); }
.name.left { text-anchor: end; transform: translate(-10px, 4px); }
.scatter { display: grid; grid-template: auto 1fr / minmax(0, 1fr) minmax(0, 640px); column-gap: 48px; }
.scatter figcaption { grid-row: 1 / 3; }
.scatter svg[role] { height: 460px; }
.columns .mark { rx: 2px; }

.scroll { overflow-x: auto; margin-top: 14px; border: 1px solid var(--faint); border-radius: 10px;
  background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 11px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--faint); }
tr:last-child > td, tr:last-child > th[scope=row] { border-bottom: 0; }
tbody tr:hover { background: color-mix(in srgb, var(--s0) 9%, transparent); }
thead th { font-weight: 600; vertical-align: bottom; color: var(--soft); border-bottom-color: var(--line); }
thead small { display: block; font-weight: 400; }
.text { text-align: left; }
tbody .name { font-family: var(--mono); font-size: 13px; font-weight: 400; max-width: 30em; overflow: hidden;
  text-overflow: ellipsis; text-align: left; }
thead button { all: unset; cursor: pointer; }
thead button:focus-visible { outline: 2px solid var(--s0); outline-offset: 3px; border-radius: 2px; }
th[aria-sort=ascending] button::after { content: " \2191"; }
th[aria-sort=descending] button::after { content: " \2193"; }
tbody .words { white-space: normal; min-width: 20em; text-align: left; }
.none { color: var(--soft); }
.tools { display: flex; flex-wrap: wrap; align-items: baseline; justify-content: space-between; gap: 8px 24px; }
input { font: inherit; font-size: 14px; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: 7px; padding: 5px 10px; width: 220px; max-width: 100%; }

.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 0 48px;
  margin-top: 14px; font-size: 14px; }
.facts div { display: flex; justify-content: space-between; gap: 20px; padding: 6px 0;
  border-bottom: 1px solid var(--faint); }
.facts dt { color: var(--soft); }
.facts dd { flex: none; text-align: right; font-variant-numeric: tabular-nums; }
.facts .long { grid-column: 1 / -1; }
.facts .long dt { flex: none; }
.facts .long dd { flex: initial; overflow-wrap: anywhere; }
.facts .long dd { font-family: var(--mono); font-size: 13px; }
footer { margin-top: 56px; color: var(--soft); font-size: 13px; }

@media (max-width: 960px) { .scatter { display: block; } }
@media (max-width: 700px) {
  main { padding: 28px 16px 48px; }
  section, figure { margin-top: 44px; }
  .more { font-size: 16px; }
  .tiles { grid-template-columns: repeat(2, 1fr); margin-top: 26px; }
  .tiles div { padding: 11px 14px 12px; }
  .tiles div:last-child:nth-child(odd) { grid-column: 1 / -1; }
  .tiles dd { font-size: 20px; }
  .bars .plot { --pitch: calc(var(--series) * 11px + 28px); padding-left: 0; padding-right: 56px; }
  .bars .label { text-anchor: start; transform: translate(0, 14px); }
  .bars .mark { y: calc(20px + var(--slot) * 11px); }
  .bars .whisker { transform: translateY(calc(25px + var(--slot) * 11px)); }
  .bars .value { transform: translate(7px, calc(29px + var(--slot) * 11px)); }
  .heat .plot { --pitch: 38px; padding-left: 0; }
  .heat .label { text-anchor: start; transform: translate(0, 13px); }
  .heat .cell { y: 18px; height: 18px; }
  .axes .plot { padding: 4px 10px 50px 44px; }
  .axes svg[role] { height: 280px; }
  .scatter svg[role] { height: 320px; }
  th, td { padding: 7px 10px; }
  tbody .name { max-width: 13em; }
}
@media (min-width: 701px) { .tools + .scroll { max-height: 80vh; overflow: auto; } thead th { position: sticky;
  top: 0; background: var(--card); } }
@media print { .tools + .scroll { max-height: none; } input { display: none; } }
"""

SCRIPT = r""""use strict";
// Headings sort, and a field filters; the page is complete without either.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, i) => row.cells[i].dataset.value ?? row.cells[i].textContent;
  const order = (i, sign) => (a, b) => {
    const x = value(a, i), y = value(b, i);
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y);
  };
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = head.classList.contains("text") ? "ascending" : "descending";
      const other = first === "ascending" ? "descending" : "ascending";
      const next = head.ariaSort === first ? other : first;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", next);
      body.append(...[...body.rows].sort(order(i, next === "ascending" ? 1 : -1)));
    });
  });
  if (body.rows.length > 12) {
    const field = document.createElement("input");
    field.type = "search";
    field.placeholder = "Filter rows";
    field.setAttribute("aria-label", "Filter rows");
    field.addEventListener("input", () => {
      const text = field.value.toLowerCase();
      for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(text);
    });
    table.closest("section").querySelector(".tools").append(field);
  }
}
"""

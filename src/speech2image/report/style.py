"""The style sheet and the script of the report page, embedded as they stand.

No outside font, image or library is named here; colours follow the reader's light or dark
setting.  The script only adds comfort (sliders, playback cursor, values under the pointer): without it
every number, picture and recording is still there.  Structure is in `template.py`.
"""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #1d2126; --soft: #5c646e; --rule: #e3e1dc; --wash: #f2f0ec;
  --accent: #2b5fd0; --warn: #8a5a00; --warn-wash: #fdf4e0;
  --c0: #2f6fde; --c1: #d9622b; --c2: #159a72; --c3: #b04ac0; --c4: #b58900; --c5: #1798b8; --c6: #cf3d67;
  --c7: #6b7280; --cell: 144px;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1b1f25; --ink: #e7e9ec; --soft: #9aa4b0; --rule: #2e343c; --wash: #22272e;
    --accent: #86aaff; --warn: #f0c674; --warn-wash: #2c2616;
    --c0: #6f9dff; --c1: #ff9360; --c2: #3fcf9f; --c3: #d98ae6; --c4: #e3bd3f; --c5: #4fc6e4; --c6: #ff7d9f;
    --c7: #a3abb6;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
header, main, footer { max-width: 1240px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 40px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.01em; margin: 0 0 10px; }
h2 { font-size: 23px; letter-spacing: -0.005em; margin: 52px 0 6px; padding-top: 22px;
  border-top: 1px solid var(--rule); }
h3 { font-size: 18px; margin: 36px 0 6px; }
h4 { font-size: 14px; margin: 18px 0 6px; color: var(--soft); font-weight: 600; }
p { margin: 6px 0 12px; max-width: 96ch; }
.lead { font-size: 17px; }
.soft, figcaption, .hint { color: var(--soft); }
.hint { font-size: 13.5px; }
a { color: var(--accent); text-underline-offset: 2px; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 14px 0 0; font-size: 14px; }
nav a { text-decoration: none; } nav a:hover { text-decoration: underline; }
.skip { position: absolute; left: -9999px; } .skip:focus { left: 12px; top: 8px; }
code, pre { font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--wash); border-radius: 8px; padding: 12px 14px; overflow: auto; max-height: 420px;
  margin: 8px 0; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { text-align: left; padding: 9px 12px; vertical-align: top; border-bottom: 1px solid var(--rule); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-size: 12.5px; color: var(--soft); font-weight: 600; vertical-align: bottom;
  background: var(--wash); white-space: nowrap; }
th small, td small { display: block; font-weight: 400; font-size: 12px; color: var(--soft); }
tbody th { font-weight: 600; min-width: 190px; }
tbody th:first-child, thead th:first-child { position: sticky; left: 0; background: var(--card); z-index: 1; }
thead th:first-child { background: var(--wash); }
td.number { white-space: nowrap; }
.own td.number .interval { display: block; margin-left: 0; }
td.cost { white-space: nowrap; } td.cost small { max-width: 170px; white-space: normal; }
.spread { margin-left: 3px; }
.member th, .member td { background: var(--wash); font-size: 13px; padding-top: 6px; padding-bottom: 6px; }
.own .member th:first-child { background: var(--wash); font-weight: 400; padding-left: 28px; }
.fold { font: inherit; font-size: 12px; font-weight: 400; color: var(--accent); background: none; border: 0; padding: 4px 0;
  cursor: pointer; } .fold::before { content: "▾ "; } .fold[aria-expanded=false]::before { content: "▸ "; }
.differences { margin: 14px 0; } .differences ul { margin: 4px 0; padding-left: 20px; font-size: 14px; max-width: 110ch; }
.differences li { margin: 3px 0; }
.value { font-size: 15px; } b.value { font-weight: 700; }
.interval { color: var(--soft); margin-left: 4px; font-size: 13px; }
.dot-mark { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 7px;
  background: var(--colour); flex: none; }
.gaps { background: var(--warn-wash); border-radius: 10px; padding: 10px 16px; margin: 14px 0;
  font-size: 14px; }
.gaps h4 { margin: 0 0 2px; color: var(--warn); } .gaps ul { margin: 0; padding-left: 20px; }
details { margin: 12px 0; } summary { cursor: pointer; padding: 4px 0; }
details.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 8px 16px; }
.controls { display: flex; flex-wrap: wrap; align-items: center; gap: 8px 22px; margin: 8px 0 14px; }
.controls label { display: flex; align-items: center; gap: 10px; font-size: 13.5px; color: var(--soft); }
input[type=range] { accent-color: var(--accent); width: 180px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13.5px; margin: 4px 0 10px; }
.legend span { display: inline-flex; align-items: center; }
.row { display: grid; grid-template-columns: 270px minmax(0, 1fr); gap: 22px; padding: 18px;
  background: var(--card); border: 1px solid var(--rule); border-radius: 12px; margin: 0 0 14px;
  content-visibility: auto; contain-intrinsic-size: auto 240px; }
.said { font-size: 16px; line-height: 1.4; margin: 0 0 2px; overflow-wrap: anywhere; }
.said mark { --mixed: color-mix(in srgb, var(--colour) 84%, var(--soft)); background: none; color: inherit;
  background: color-mix(in srgb, var(--mixed) 16%, transparent); border-bottom: 3px solid var(--mixed);
  border-radius: 3px 3px 0 0; padding: 0 2px; }
.row .hint { overflow-wrap: anywhere; font-size: 12.5px; margin: 0 0 10px; }
.key { display: block; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; font-size: 11.5px; }
audio { width: 100%; height: 36px; display: block; margin: 0 0 8px; }
.spectrogram { position: relative; margin: 0; }
.spectrogram img { width: 100%; height: 76px; display: block; border-radius: 6px; }
.attention { position: absolute; top: 2px; left: 0; width: 100%; height: 72px; overflow: visible; pointer-events: none; }
.attention path { fill: none; stroke: var(--line); stroke-width: 1.6; vector-effect: non-scaling-stroke;
  stroke-linejoin: round; filter: drop-shadow(0 0 1px #000); }
.a0 { --line: #7fffd4; } .a1 { --line: #ffffff; } .a2 { --line: #8fc7ff; }
.listens { font-size: 11.5px; color: var(--soft); margin: 2px 0 0; }
.listens span { display: inline-block; width: 14px; height: 0; border-top: 3px solid color-mix(in srgb, var(--line) 80%, #000);
  vertical-align: middle; margin: 0 5px 0 0; }
.spectrogram .cursor { position: absolute; top: 0; left: 0; height: 76px; width: 2px; background: #fff;
  opacity: 0; }
.spectrogram figcaption { display: flex; justify-content: space-between; font-size: 11.5px; }
.pictures { display: flex; flex-wrap: wrap; gap: 14px 18px; align-items: flex-start; }
.pictures figure { margin: 0; min-width: 0; max-width: 100%; }
.pictures figcaption { font-size: 12.5px; line-height: 1.35; margin-top: 6px; display: flex;
  align-items: baseline; max-width: calc(var(--cell) * 2); overflow-wrap: anywhere; }
.stacked .pictures figcaption { max-width: var(--cell); } .stacked .samples { flex-direction: column; }
.samples { display: flex; flex-wrap: wrap; gap: 6px; }
.samples img, .none { width: var(--cell); height: var(--cell); border-radius: 8px; background: var(--wash);
  object-fit: contain; display: block; }
.none { display: flex; align-items: center; justify-content: center; text-align: center; padding: 10px;
  font-size: 12.5px; color: var(--soft); border: 1px dashed var(--rule); background: none; }
img.crisp { image-rendering: pixelated; }
.real { padding-right: 18px; border-right: 1px solid var(--rule); }
.figures { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); }
.figures figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 14px;
  max-width: 720px; }
.figures figcaption { color: var(--ink); font-weight: 600; font-size: 13.5px; margin-bottom: 8px; }
.figures svg { width: 100%; height: auto; display: block; } .figures p { margin: 6px 0 0; } .name { fill: var(--ink); }
.grids, .charts { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 370px), 1fr)); }
.grids figure, .charts figure { margin: 0; background: var(--card); border: 1px solid var(--rule);
  border-radius: 12px; padding: 14px; }
.grids img { width: 100%; height: auto; max-height: 560px; object-fit: contain; object-position: top; border-radius: 6px;
  display: block; }
.grids img[hidden] { display: none; }
.grids input { width: 100%; margin: 10px 0 0; }
.grids output { font-variant-numeric: tabular-nums; }
.grids figcaption, .charts figcaption { display: flex; align-items: center; justify-content: space-between;
  gap: 10px; font-size: 13.5px; margin-bottom: 8px; color: var(--ink); font-weight: 600; }
.grids figcaption span, .charts figcaption span { display: inline-flex; align-items: center; min-width: 0; }
figcaption small { color: var(--soft); font-weight: 400; white-space: nowrap; }
.charts figure { position: relative; }
.charts svg { width: 100%; height: auto; display: block; touch-action: pan-y; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.rule { stroke: var(--rule); } .axis { stroke: var(--soft); }
.line, .raw { fill: none; stroke: var(--colour); stroke-linejoin: round; }
.line { stroke-width: 2; } .raw { stroke-width: 1; opacity: 0.18; } .dashed { stroke-dasharray: 6 4; }
.dot { fill: var(--colour); } .whisker { fill: none; stroke: var(--colour); stroke-width: 1.2; opacity: 0.75; }
.steps { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, max-content); gap: 16px; align-items: start; }
.steps figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
  padding: 14px; }
.steps svg { width: 100%; height: auto; display: block; } .steps td { padding: 5px 12px; }
.steps tbody th { min-width: 0; padding: 5px 12px; white-space: nowrap; }
.hair { stroke: var(--soft); stroke-dasharray: 2 3; }
.tip { position: absolute; top: 40px; pointer-events: none; background: var(--card);
  border: 1px solid var(--rule); border-radius: 8px; padding: 6px 10px; font-size: 12.5px;
  box-shadow: 0 4px 14px rgb(0 0 0 / 0.14); z-index: 2;
  font-variant-numeric: tabular-nums; max-width: 240px; }
.tip div { display: flex; align-items: center; gap: 6px; } .tip div span:nth-child(2) { flex: 1; }
.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 18px; margin: 10px 0;
  font-size: 14px; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
footer { padding-top: 30px; padding-bottom: 50px; font-size: 13px; color: var(--soft); }
COLOUR_CLASSES
@media (max-width: 760px) {
  header, main, footer { padding-left: 14px; padding-right: 14px; }
  header { padding-top: 24px; } h1 { font-size: 25px; }
  :root { --cell: 128px; }
  .row { grid-template-columns: minmax(0, 1fr); padding: 14px; gap: 14px; }
  .steps { grid-template-columns: minmax(0, 1fr); }
  .real { border-right: 0; padding-right: 0; }
  .facts { grid-template-columns: minmax(0, 1fr); gap: 0; } .facts dd { margin-bottom: 8px; }
  tbody th { min-width: 118px; } th, td { padding: 8px 10px; }
  tbody th:first-child { max-width: 150px; overflow-wrap: anywhere; }
}
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
@media print { .controls, nav { display: none; } .row { break-inside: avoid; } }
""".replace("COLOUR_CLASSES", "\n".join(f".c{place} {{ --colour: var(--c{place}); }}" for place in range(8)))

SCRIPT = """
'use strict';
(() => {
  const root = document.documentElement;
  root.dataset.errors = '0';
  window.addEventListener('error', () => { root.dataset.errors = String(Number(root.dataset.errors) + 1); });
  const all = (selector, from = document) => Array.from(from.querySelectorAll(selector));

  for (const box of all('.controls')) box.hidden = false;
  for (const slider of all('input[data-cell]')) {
    const rows = document.getElementById(slider.dataset.cell);
    slider.addEventListener('input', () => rows.style.setProperty('--cell', slider.value + 'px'));
  }
  for (const figure of all('.grids figure')) {
    const slider = figure.querySelector('input'), shown = figure.querySelector('output');
    const images = all('img', figure);
    if (!slider) continue;
    slider.hidden = false;
    slider.addEventListener('input', () => {
      images.forEach((image, place) => { image.hidden = place !== Number(slider.value); });
      const step = images[Number(slider.value)].dataset.step;
      shown.textContent = 'step ' + step;
      slider.setAttribute('aria-valuetext', 'step ' + step);
    });
  }
  for (const button of all('button.fold')) {
    const rows = all('tr[data-folded="' + button.dataset.fold + '"]');
    const turn = (shown) => {
      button.setAttribute('aria-expanded', String(shown));
      for (const row of rows) row.hidden = !shown;
    };
    button.hidden = false;
    button.addEventListener('click', () => turn(button.getAttribute('aria-expanded') !== 'true'));
    turn(false);
  }
  const players = all('audio');
  for (const player of players) {
    const picture = player.parentElement.querySelector('.spectrogram');
    const cursor = picture && picture.querySelector('.cursor');
    const move = () => {
      if (!cursor || !player.duration) return;
      cursor.style.left = 'calc(' + (100 * player.currentTime / player.duration) + '% - 1px)';
      cursor.style.opacity = player.currentTime > 0 && !player.ended ? '0.9' : '0';
      if (!player.paused && !player.ended) requestAnimationFrame(move);
    };
    player.addEventListener('play', () => {
      for (const other of players) if (other !== player) other.pause();
      move();
    });
    for (const name of ['pause', 'seeked', 'ended']) player.addEventListener(name, move);
  }

  const plot = JSON.parse(document.getElementById('charts').textContent);
  for (const figure of all('.charts figure[data-chart]')) {
    const chart = plot.charts[Number(figure.dataset.chart)], svg = figure.querySelector('svg');
    let tip = null, hair = null;
    const leave = () => { if (tip) { tip.remove(); hair.remove(); tip = hair = null; } };
    svg.addEventListener('pointerleave', leave);
    svg.addEventListener('pointermove', (event) => {
      const frame = svg.getBoundingClientRect();
      const x = (event.clientX - frame.left) / frame.width * plot.width;
      const share = (x - plot.left) / (plot.width - plot.left - plot.right);
      if (share < -0.02 || share > 1.02) return leave();
      const step = chart.view[0] + share * (chart.view[1] - chart.view[0]);
      if (!tip) {
        tip = document.createElement('div'); tip.className = 'tip'; figure.append(tip);
        hair = document.createElementNS(svg.namespaceURI, 'path');
        hair.setAttribute('class', 'hair'); svg.append(hair);
      }
      hair.setAttribute('d', 'M' + x + ' ' + plot.top + 'V' + (plot.height - plot.bottom));
      tip.replaceChildren();
      const head = document.createElement('strong');
      const at = Math.max(step, chart.view[0]);
      head.textContent = chart.unit === 'step' ? 'step ' + Math.round(at).toLocaleString('en')
        : at.toFixed(1) + ' ' + chart.unit;
      tip.append(head);
      for (const line of chart.points) {
        let near = 0;
        line.steps.forEach((at, place) => {
          if (Math.abs(at - step) < Math.abs(line.steps[near] - step)) near = place;
        });
        const entry = document.createElement('div');
        const mark = document.createElement('span'), name = document.createElement('span');
        const value = document.createElement('strong');
        mark.className = 'dot-mark c' + line.colour; name.textContent = line.label;
        value.textContent = line.values[near];
        entry.append(mark, name, value); tip.append(entry);
      }
      const left = event.clientX - figure.getBoundingClientRect().left;
      if (share < 0.5) { tip.style.left = (left + 16) + 'px'; tip.style.right = 'auto'; }
      else { tip.style.right = (figure.clientWidth - left + 16) + 'px'; tip.style.left = 'auto'; }
    });
  }

  window.addEventListener('load', () => {
    const pictures = all('img');
    root.dataset.pictures = String(pictures.length);
    root.dataset.broken = String(pictures.filter((one) => one.complete && !one.naturalWidth).length);
    root.dataset.loads = String(performance.getEntriesByType('resource')
      .filter((entry) => !entry.name.startsWith('data:')).length);
    const heard = () => {
      root.dataset.sounds = String(players.filter((one) => one.readyState > 0).length);
      root.dataset.mute = String(players.filter((one) => one.error).length);
    };
    for (const player of players) player.addEventListener('loadedmetadata', heard);
    heard();
    root.dataset.ready = 'yes';
  });
})();
"""

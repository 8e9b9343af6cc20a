// Stacked bars with uPlot (a global of its own script), drawn in the page's colours and again when these change. What a
// chart shows stands in a table beside it as well: a canvas says nothing to who cannot see it.
import { make } from './dom.js';

const drawn = new Set();
const dark = window.matchMedia('(prefers-color-scheme: dark)');
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

dark.addEventListener('change', () => drawn.forEach((chart) => chart.draw()));
const resized = new ResizeObserver((entries) => entries.forEach((entry) => entry.target.chart?.resize()));

/**
 * labels: one text a bar. series: [{name, colour: '--c1', values: number[]}], the first lowest. format: a number as the
 * axis shows it. tip(n): [title, [[colour, name, text], …]] of bar n.
 */
export function stackedBars({ label, labels, series, format, tip, height = 240 }) {
  const host = make('div', { class: 'chart', role: 'img', 'aria-label': label, tabindex: '0' });
  const card = make('div', { class: 'tip', hidden: true, 'aria-hidden': 'true' });
  const stacked = series.map((_, n) => labels.map((__, at) => series.slice(0, n + 1).reduce((total, one) => total + one.values[at], 0)));
  const chart = {
    plot: null,
    draw() {
      if (!host.isConnected) return void drawn.delete(chart);
      this.plot?.destroy();
      const axis = { stroke: colour('--muted'), font: '12px system-ui, sans-serif', ticks: { show: false } };
      const width = host.clientWidth;
      this.plot = new window.uPlot({
        width, height, padding: [12, 8, 0, 0], legend: { show: false },
        cursor: { x: false, y: false, points: { show: false }, drag: { setScale: false, x: false } },
        scales: { x: { time: false, range: [-0.6, labels.length - 0.4] }, y: { range: (_, low, high) => [Math.min(0, low || 0), (high || 1) * 1.05] } },
        axes: [
          { ...axis, grid: { show: false }, size: 28, splits: () => ticks(labels.length, width), values: (_, splits) => splits.map((at) => labels[at] ?? '') },
          { ...axis, grid: { stroke: colour('--line'), width: 1 }, size: 64, values: (_, splits) => splits.map(format), space: 44 },
        ],
        // The tallest is drawn first, and the lower ones over it.
        series: [{}, ...series.map((one) => ({ fill: colour(one.colour), stroke: 'transparent', width: 0, points: { show: false }, paths: window.uPlot.paths.bars({ size: [0.72, 44] }) })).reverse()],
        hooks: { setCursor: [(plot) => point(plot.cursor.idx)] },
      }, [labels.map((_, n) => n), ...stacked.toReversed()], host);
      host.append(card);
    },
    resize() {
      const width = host.clientWidth;
      if (!this.plot) this.draw();
      else if (width && width !== this.plot.width) this.plot.setSize({ width, height });
    },
  };
  let shown = null;
  function point(n) {
    shown = n ?? null;
    card.hidden = shown === null;
    if (card.hidden) return;
    const [title, lines] = tip(shown);
    card.replaceChildren(make('strong', {}, title), make('ul', {}, lines.map(([swatch, name, text]) =>
      make('li', {}, make('i', { style: { background: swatch ? `var(${swatch})` : 'transparent' } }), make('span', {}, name), make('b', {}, text)))));
    const at = chart.plot.valToPos(shown, 'x') + chart.plot.over.offsetLeft;
    const right = at > host.clientWidth / 2;
    card.style.left = right ? '' : `${at + 14}px`;
    card.style.right = right ? `${host.clientWidth - at + 14}px` : '';
  }
  host.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === 'Escape') point(null);
    if (!step) return;
    event.preventDefault();
    point(Math.min(labels.length - 1, Math.max(0, (shown ?? (step > 0 ? -1 : labels.length)) + step)));
  });
  host.addEventListener('blur', () => point(null));
  host.addEventListener('mouseleave', () => point(null));
  host.chart = chart;
  drawn.add(chart);
  resized.observe(host);
  return host;
}

/** As many of n places as fit, evenly. */
function ticks(n, width) {
  const step = Math.max(1, Math.ceil(n / Math.max(2, Math.floor(width / 76))));
  return Array.from({ length: Math.ceil(n / step) }, (_, k) => k * step);
}

/** Which colour stands for what. */
export const legend = (entries) => make('ul', { class: 'legend' }, entries.map(([swatch, name]) =>
  make('li', {}, make('i', { style: { background: `var(${swatch})` } }), name)));

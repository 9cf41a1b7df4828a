// plot.mjs -- plots as SVG text: horizontal bars with the spread of the rounds, and latencies as dots on a log scale.
//
// Colors are classes (see STYLE), so that one plot reads in light and dark; nothing is fetched, no script runs. Lengths in pixels.
export const WIDTH = 560;
const LABEL = 148; // where plots begin; names of servers end left of it
const VALUE = 92; // kept free on the right for figures
const BAR = 11;
const GAP = 3;
const ROW_GAP = 13;

export const escape = (text) => String(text).replace(/[&<>"]/g, (sign) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[sign]);

const fixed = (value) => String(Math.round(value * 10) / 10);

// Three figures, a unit people read.
function digits(value) {
  if (value >= 100) return String(Math.round(value));
  return value >= 10 ? String(Math.round(value * 10) / 10) : String(Math.round(value * 100) / 100);
}

export function format(value, unit) {
  if (value === null || value === undefined) return '–';
  if (unit === '/s') {
    if (value >= 1e6) return `${digits(value / 1e6)} M/s`;
    return value >= 1e4 ? `${digits(value / 1e3)} k/s` : `${Math.round(value)} /s`;
  }
  if (unit === 'B') return value >= 1024 ? `${digits(value / 1024)} KiB` : `${Math.round(value)} B`;
  if (unit === 'µs' && value >= 1e6) return `${digits(value / 1e6)} s`;
  if (unit === 'µs' && value >= 1e3) return `${digits(value / 1e3)} ms`;
  return `${digits(value)} ${unit}`;
}

export const STYLE = `
  text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--text); }
  .soft { fill: var(--soft); }
  .strong { font-weight: 600; }
  .end { text-anchor: end; }
  .middle { text-anchor: middle; }
  .grid { stroke: var(--grid); stroke-width: 1; shape-rendering: crispEdges; }
  .bar { fill: var(--peer); }
  .bar.light { fill: var(--peer-light); }
  .bar.ours { fill: var(--ours); }
  .bar.ours.light { fill: var(--ours-light); }
  .spread { stroke: var(--text); stroke-opacity: .55; stroke-width: 1; }
  .range { stroke: var(--peer-light); stroke-width: 3; stroke-linecap: round; }
  .range.ours { stroke: var(--ours-light); }
  .dot { fill: var(--peer); stroke: var(--paper); stroke-width: 1; }
  .dot.ours { fill: var(--ours); }
  .dot.hollow { fill: var(--paper); stroke: var(--peer); stroke-width: 2; }
  .dot.hollow.ours { stroke: var(--ours); }
  .warn { fill: var(--warn); }`;

export const LIGHT = '--paper: #ffffff; --text: #1c2530; --soft: #5b6776; --grid: #e3e7ec; --peer: #8593a3; --peer-light: #c3ccd6; --ours: #0b67c2; --ours-light: #86bdf0; --warn: #b3261e; --page: #f4f6f8; --line: #d8dee5; --good: #1a7f37;';
export const DARK = '--paper: #161c24; --text: #e4e9ef; --soft: #9aa7b5; --grid: #2b3440; --peer: #7c8b9c; --peer-light: #465362; --ours: #58a6ff; --ours-light: #2b5f99; --warn: #ff8a80; --page: #0e1319; --line: #2b3440; --good: #56d364;';

// Round steps for an axis from 0 to at least `top`: 3 to 6 of them.
export function steps(top) {
  if (!(top > 0)) return [0, 1];
  const power = 10 ** Math.floor(Math.log10(top));
  const step = [0.2, 0.25, 0.5, 1, 2, 2.5].map((factor) => factor * power).find((size) => top / size <= 5);
  return Array.from({ length: Math.ceil(top / step - 1e-9) + 1 }, (_, index) => index * step);
}

// Memory reads best in powers of two.
const binarySteps = (top) => {
  const unit = top >= 1024 ? 1024 : 1;
  return steps(top / unit).map((value) => value * unit);
};

const rect = (x, y, width, height, classes) => `<rect class="${classes}" x="${fixed(x)}" y="${fixed(y)}" width="${fixed(Math.max(width, 0))}" height="${height}" rx="1.5"/>`;
const line = (x1, y1, x2, y2, classes) => `<line class="${classes}" x1="${fixed(x1)}" y1="${fixed(y1)}" x2="${fixed(x2)}" y2="${fixed(y2)}"/>`;
const write = (x, y, classes, content) => `<text class="${classes}" x="${fixed(x)}" y="${fixed(y)}">${escape(content)}</text>`;

function spread(low, high, y) {
  if (high - low < 3) return '';
  return line(low, y, high, y, 'spread') + line(low, y - 2.5, low, y + 2.5, 'spread') + line(high, y - 2.5, high, y + 2.5, 'spread');
}

// The words beside a bar: its figure, and what is to be known about it.
function note(entry, unit) {
  if (entry.median === null) return entry.failed?.length ? 'failed' : '–';
  return format(entry.median, unit) + (entry.behind > 0 ? ' *' : '');
}

// rows: [{ label, ours, entries: [{ median, min, max, behind, failed }] }], one entry a series; series: names, first one dark.
// Returns { body, height } in a coordinate system that begins at 0, 0.
export function bars({ rows, series, unit }) {
  const right = WIDTH - VALUE;
  const top = series.length > 1 ? 24 : 8;
  const largest = Math.max(0, ...rows.flatMap(({ entries }) => entries.map(({ median, max }) => max ?? median ?? 0)));
  const ticks = unit === 'B' ? binarySteps(largest) : steps(largest);
  const scale = (value) => LABEL + (value / ticks[ticks.length - 1]) * (right - LABEL);
  const row_height = series.length * BAR + (series.length - 1) * GAP;
  const bottom = top + rows.length * (row_height + ROW_GAP);
  const out = ticks.map((tick) => line(scale(tick), top, scale(tick), bottom, 'grid') +
    write(scale(tick), bottom + 15, 'soft middle', tick === 0 ? '0' : format(tick, unit)));
  rows.forEach((row, index) => {
    const y = top + ROW_GAP / 2 + index * (row_height + ROW_GAP);
    out.push(write(LABEL - 10, y + row_height / 2 + 4, row.ours ? 'end strong' : 'end', row.label));
    row.entries.forEach((entry, which) => {
      const bar = y + which * (BAR + GAP);
      const end = entry.median === null ? LABEL : scale(entry.median);
      out.push(rect(LABEL, bar, end - LABEL, BAR, `bar${row.ours ? ' ours' : ''}${which > 0 ? ' light' : ''}`));
      if (entry.median !== null) out.push(spread(scale(entry.min), scale(entry.max), bar + BAR / 2));
      const after = entry.median === null ? LABEL : Math.max(end, scale(entry.max));
      out.push(write(after + 6, bar + BAR - 1.5, entry.median === null || entry.behind > 0 ? 'warn' : row.ours ? 'strong' : '', note(entry, unit)));
    });
  });
  if (series.length > 1) out.push(legend(series.map((name, which) => ({ name, mark: (x) => rect(x, 5, 14, BAR - 1, `bar ours${which > 0 ? ' light' : ''}`) + rect(x + 16, 5, 14, BAR - 1, `bar${which > 0 ? ' light' : ''}`), width: 34 }))));
  return { body: out.join('\n'), height: bottom + 24 };
}

function legend(items) {
  let x = LABEL;
  return items.map(({ name, mark, width }) => {
    const piece = mark(x) + write(x + width, 14, 'soft', name);
    x += width + name.length * 6.6 + 22;
    return piece;
  }).join('');
}

const diamond = (x, y, classes) => `<path class="${classes}" d="M${fixed(x)} ${fixed(y - 5)}l5 5l-5 5l-5 -5z"/>`;
const circle = (x, y, classes) => `<circle class="${classes}" cx="${fixed(x)}" cy="${fixed(y)}" r="4"/>`;
const MARKS = [(x, y, classes) => circle(x, y, `dot ${classes}`), (x, y, classes) => circle(x, y, `dot hollow ${classes}`), (x, y, classes) => diamond(x, y, `dot ${classes}`)];

// Latencies on a log scale. rows: [{ label, ours, lines: [{ name, values: [p50, p99, p999], behind }] }]; names: of the values.
export function dots({ rows, names, unit }) {
  const right = WIDTH - 64;
  const top = 24;
  const values = rows.flatMap(({ lines }) => lines.flatMap((item) => item.values)).filter((value) => value > 0);
  const low = 10 ** Math.floor(Math.log10(values.length ? Math.min(...values) : 1000));
  const high = 10 ** Math.ceil(Math.log10(Math.max(...values, low * 10)));
  const scale = (value) => LABEL + (Math.log10(value / low) / Math.log10(high / low)) * (right - LABEL);
  const line_height = 15;
  const row_height = Math.max(...rows.map(({ lines }) => lines.length)) * line_height;
  const bottom = top + rows.length * (row_height + 9);
  const out = [];
  for (let tick = low; tick <= high * 1.001; tick *= 10) {
    out.push(line(scale(tick), top, scale(tick), bottom, 'grid'), write(scale(tick), bottom + 15, 'soft middle', format(tick, unit)));
  }
  rows.forEach((row, index) => {
    const y = top + 4 + index * (row_height + 9);
    const ours = row.ours ? 'ours' : '';
    out.push(write(LABEL - 10, y + row_height / 2 + 4, row.ours ? 'end strong' : 'end', row.label));
    row.lines.forEach((item, which) => {
      const middle = y + which * line_height + line_height / 2;
      const known = item.values.map((value) => (value > 0 ? scale(value) : null));
      const drawn = known.filter((x) => x !== null);
      if (drawn.length === 0) {
        out.push(write(LABEL + 6, middle + 4, 'warn', item.failed ? 'failed' : '–'));
        return;
      }
      out.push(line(Math.min(...drawn), middle, Math.max(...drawn), middle, `range ${ours}`));
      known.forEach((x, mark) => x !== null && out.push(MARKS[mark](x, middle, ours)));
      out.push(write(Math.max(...drawn) + 10, middle + 4, item.behind ? 'warn' : 'soft', item.name + (item.behind ? ' *' : '')));
    });
  });
  out.push(legend(names.map((name, which) => ({ name, mark: (x) => MARKS[which](x + 5, 10, 'ours'), width: 16 }))));
  return { body: out.join('\n'), height: bottom + 24 };
}

// One plot as an element of a page.
export function figureSvg({ body, height }, title, description, id) {
  return `<svg viewBox="0 0 ${WIDTH} ${fixed(height)}" role="img" aria-labelledby="${id}-t ${id}-d"><title id="${id}-t">${escape(title)}</title><desc id="${id}-d">${escape(description)}</desc>
${body}
</svg>`;
}

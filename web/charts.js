// charts.js -- one card: a headline number, a line of figures and a uPlot of the last two minutes.

const uPlot = window.uPlot;
const WINDOW_SECONDS_MIN = 30;
const WINDOW_SECONDS_MAX = 120;
const POINTS_MAX = 600;

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

export function formatBytes(bytes) {
  let unit = 0;
  while (bytes >= 1024 && unit < UNITS.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${bytes >= 100 || unit === 0 ? bytes.toFixed(0) : bytes.toFixed(1)} ${UNITS[unit]}`;
}

export const formatRate = (bytes) => `${formatBytes(bytes)}/s`;
export const formatPercent = (percent) => `${percent.toFixed(percent < 10 ? 1 : 0)} %`;

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Powers of 1024 make readable byte axes; a floor keeps an idle line from filling the plot.
function byteRange(floor) {
  return (_plot, _min, max) => {
    let top = floor;
    while (top < (max ?? 0)) top *= 2;
    return [0, top];
  };
}

export class Chart {
  #plot;
  #points = [[], []];
  #value;
  #note;
  #description;
  #root;

  // spec: {id, title, series: [{label, read}], scale: 'percent' | 'bytes', floor, headline(item), notes(item)}
  constructor(parent, spec) {
    this.spec = spec;
    this.#points = [[], ...spec.series.map(() => [])];
    this.#root = document.createElement('article');
    this.#root.className = 'card';
    this.#root.dataset.item = spec.id;
    this.#root.dataset.points = '0';
    const head = document.createElement('div');
    head.className = 'card-head';
    const title = document.createElement('h3');
    title.textContent = spec.title;
    title.id = `card-${spec.id}`;
    this.#root.setAttribute('aria-labelledby', title.id);
    this.#value = document.createElement('p');
    this.#value.className = 'card-value';
    this.#value.textContent = '–';
    head.append(title, this.#value);
    this.#note = document.createElement('p');
    this.#note.className = 'card-note';
    this.#description = document.createElement('div');
    this.#description.className = 'plot';
    this.#description.setAttribute('role', 'img');
    this.#description.setAttribute('aria-label', `${spec.title}: no data yet`);
    this.#root.append(head, this.#note, this.#description);
    parent.append(this.#root);
    this.#plot = new uPlot(this.#options(), this.#points, this.#description);
    new ResizeObserver(() => {
      const { clientWidth: width, clientHeight: height } = this.#description;
      if (width > 0) this.#plot.setSize({ width, height });
    }).observe(this.#description);
  }

  #options() {
    const { spec } = this;
    const isPercent = spec.scale === 'percent';
    const axis = { stroke: () => color('--muted'), grid: { stroke: () => color('--line'), width: 1 }, ticks: { show: false }, font: '11px system-ui, sans-serif' };
    return {
      width: Math.max(this.#description.clientWidth, 200),
      height: 170,
      padding: [8, 8, 0, 0],
      cursor: { points: { size: 6 }, drag: { x: false, y: false }, sync: { key: 'host' } },
      legend: { show: false },
      scales: {
        x: { time: true, range: () => this.#window() },
        y: { range: isPercent ? () => [0, 100] : byteRange(spec.floor ?? 1024) },
      },
      axes: [
        { ...axis, size: 26, space: 90, grid: { show: false }, values: (_plot, ticks) => ticks.map((tick) => new Date(tick * 1000).toLocaleTimeString([], { hour12: false })) },
        { ...axis, size: 66, space: 38, values: (_plot, ticks) => ticks.map((tick) => (isPercent ? `${tick} %` : spec.rate ? formatRate(tick) : formatBytes(tick))), ...(isPercent ? {} : { incrs: byteIncrements() }) },
      ],
      series: [
        {},
        ...spec.series.map((series, index) => ({
          label: series.label,
          stroke: () => color(`--series-${index + 1}`),
          fill: () => color(`--series-${index + 1}-fill`),
          width: 1.75,
          points: { show: false },
          spanGaps: false,
        })),
      ],
    };
  }

  // The window grows with what there is to see and then moves on.
  #window() {
    const now = Date.now() / 1000;
    const first = this.#points[0][0] ?? now;
    return [Math.max(now - WINDOW_SECONDS_MAX, Math.min(first, now - WINDOW_SECONDS_MIN)), now];
  }

  // Adds the values of `item` at `seconds`; a null item marks a gap in the lines.
  add(seconds, item) {
    const [times, ...values] = this.#points;
    if (times.length > 0 && seconds <= times[times.length - 1]) return;
    times.push(seconds);
    this.spec.series.forEach((series, index) => {
      const value = item === null ? null : series.read(item);
      values[index].push(Number.isFinite(value) ? value : null);
    });
    if (times.length > POINTS_MAX) for (const column of this.#points) column.shift();
    this.#root.dataset.points = String(times.length);
    this.#plot.setData(this.#points);
    if (item !== null) this.#show(item);
  }

  #show(item) {
    const headline = this.spec.headline(item);
    this.#value.textContent = headline;
    this.#note.replaceChildren(
      ...this.spec.notes(item).map((text, index) => {
        const span = document.createElement('span');
        if (this.spec.series.length > 1 && index < this.spec.series.length) {
          const swatch = document.createElement('i');
          swatch.className = index === 0 ? 'swatch' : 'swatch second';
          span.append(swatch);
        }
        span.append(text);
        return span;
      }),
    );
    this.#description.setAttribute('aria-label', `${this.spec.title}: ${headline}, last two minutes`);
  }

  redraw() {
    this.#plot.redraw(false, true);
  }

  // Moves the window on although no event came, so that a silent worker is seen as silence.
  tick() {
    this.#plot.setData(this.#points);
  }
}

function byteIncrements() {
  const increments = [];
  for (let power = 0; power < 50; power += 1) increments.push(2 ** power);
  return increments;
}

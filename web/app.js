// app.js -- puts the page together: one connection, the host's plots, and a view of any other group.
import { Connection } from '/connection.js';
import { Chart, formatBytes, formatPercent, formatRate } from '/charts.js';
import { EventTable, ValueTable } from '/tables.js';

const HOST_STREAM = 'host';
const SILENCE_NOTICE_MS = 3000;
const parameters = new URLSearchParams(location.search);
const hostGroup = parameters.get('host') ?? 'local';
const element = (id) => document.getElementById(id);

const CHARTS = [
  {
    id: 'cpu', title: 'Processor', scale: 'percent',
    series: [{ label: 'busy', read: (item) => item.percent }, { label: 'system', read: (item) => item.system_percent }],
    headline: (item) => formatPercent(item.percent),
    notes: (item) => [`busy ${formatPercent(item.percent)}`, `system ${formatPercent(item.system_percent)}`, `load ${item.load_1m.toFixed(2)}`, `${item.cores} cores`],
  },
  {
    id: 'memory', title: 'Memory', scale: 'percent',
    series: [{ label: 'used', read: (item) => (100 * item.used_bytes) / item.total_bytes }],
    headline: (item) => formatBytes(item.used_bytes),
    notes: (item) => [`of ${formatBytes(item.total_bytes)}`, `cached ${formatBytes(item.cached_bytes)}`, `swap ${formatBytes(item.swap_used_bytes)}`],
  },
  {
    id: 'disk', title: 'Disk', scale: 'bytes', rate: true, floor: 64 * 1024,
    series: [{ label: 'read', read: (item) => item.read_bytes_per_s }, { label: 'write', read: (item) => item.write_bytes_per_s }],
    headline: (item) => formatRate(item.read_bytes_per_s + item.write_bytes_per_s),
    notes: (item) => [`read ${formatRate(item.read_bytes_per_s)}`, `write ${formatRate(item.write_bytes_per_s)}`, `${formatBytes(item.free_bytes)} free of ${formatBytes(item.total_bytes)}`],
  },
  {
    id: 'network', title: 'Network', scale: 'bytes', rate: true, floor: 4 * 1024,
    series: [{ label: 'received', read: (item) => item.received_bytes_per_s }, { label: 'sent', read: (item) => item.sent_bytes_per_s }],
    headline: (item) => formatRate(item.received_bytes_per_s + item.sent_bytes_per_s),
    notes: (item) => [`received ${formatRate(item.received_bytes_per_s)}`, `sent ${formatRate(item.sent_bytes_per_s)}`, `loopback ${formatRate(item.loopback_bytes_per_s)}`],
  },
];

const charts = new Map(CHARTS.map((spec) => [spec.id, new Chart(element('cards'), spec)]));
const hostEvents = new EventTable(element('host-events'), 12);

// Epoch, seq and gaps of one group: the next event must carry the next seq; a sync may carry any, and so may an event that stands
// for several.
const progress = { epoch: null, seq: null, events: 0, gaps: 0, times: [] };

function note(envelope) {
  const isPosition = envelope.event.type === 'sync' || envelope.event.type === 'resumed';
  if (!isPosition) {
    if (progress.seq !== null && !envelope.conflated && envelope.epoch === progress.epoch && envelope.seq !== progress.seq + 1) progress.gaps += 1;
    progress.events += 1;
    progress.times.push(performance.now());
  }
  progress.epoch = envelope.epoch ?? null;
  progress.seq = envelope.seq ?? null;
}

function showFacts() {
  const now = performance.now();
  while (progress.times.length > 0 && now - progress.times[0] > 5000) progress.times.shift();
  element('fact-epoch').textContent = progress.epoch ?? '–';
  element('fact-epoch').title = progress.epoch ?? '';
  element('fact-seq').textContent = progress.seq ?? '–';
  element('fact-rate').textContent = (progress.times.length / 5).toFixed(1);
  element('fact-events').textContent = progress.events;
  element('fact-gaps').textContent = progress.gaps;
  element('fact-reconnects').textContent = Math.max(0, connection.opens - 1);
}

function showItem(item) {
  charts.get(item?.id)?.add((typeof item.at === 'number' ? item.at : Date.now()) / 1000, item);
}

function onHost(envelope) {
  note(envelope);
  hostEvents.add(envelope);
  const { event } = envelope;
  if (event.type === 'sync' && Array.isArray(event.data)) event.data.forEach(showItem);
  else if (event.type === 'create' || event.type === 'update') showItem(event.data);
  if (event.type !== 'sync') element('host-empty').hidden = true;
  showFacts();
}

// Where sockets need a token, the page shows the one of its own address.
const token = parameters.get('token');
const query = token === null ? '' : `?token=${encodeURIComponent(token)}`;
const url = `${location.protocol === 'https:' ? 'wss:' : 'ws:'}//${location.host}/${query}`;
const connection = new Connection(url);
element('host-group').textContent = hostGroup;
const hostSubscription = connection.join(HOST_STREAM, hostGroup);

let retryAt = 0;
function showState(state) {
  element('status').dataset.state = state;
  element('status-text').textContent = state === 'waiting' ? 'connection lost, trying again' : state;
}
connection.addEventListener('state', ({ detail }) => {
  if (detail.state === 'waiting' && retryAt === 0) {
    const seconds = Date.now() / 1000;
    for (const chart of charts.values()) chart.add(seconds, null);
  }
  retryAt = detail.state === 'connected' ? 0 : 1;
  showState(detail.state);
});

// ---- any other group ----

const exploreEvents = new EventTable(element('explore-events'), 100);
const exploreValues = new ValueTable(element('explore-items'), (count) => {
  element('explore-count').textContent = explored ? `${count} value${count === 1 ? '' : 's'}` : '';
});
let explored = null;

function leave() {
  if (explored) connection.leave(explored);
  explored = null;
  element('explore-leave').disabled = true;
  element('explore-state').textContent = 'not joined';
  exploreEvents.clear();
  exploreValues.clear();
}

function join(stream, group, item) {
  leave();
  explored = connection.join(stream, group, item === '' ? null : item);
  element('explore-leave').disabled = false;
  element('explore-state').textContent = `joined ${stream} / ${group}${item === '' ? '' : ` / ${item}`}`;
}

const form = element('explore');
// By namedItem(): `elements.item` is a method of the collection.
const [streamField, groupField, itemField] = ['stream', 'group', 'item'].map((name) => form.elements.namedItem(name));
form.addEventListener('submit', (event) => {
  event.preventDefault();
  join(streamField.value, groupField.value, itemField.value);
});
element('explore-leave').addEventListener('click', leave);

connection.addEventListener('envelope', ({ detail: { subscription, envelope } }) => {
  if (subscription === hostSubscription) onHost(envelope);
  if (subscription !== explored) return;
  if (envelope.event.type === 'unauthorized') element('explore-state').textContent = 'refused: unauthorized';
  exploreEvents.add(envelope);
  exploreValues.apply(envelope);
});

if (parameters.has('stream')) {
  streamField.value = parameters.get('stream');
  groupField.value = parameters.get('group') ?? '';
  itemField.value = parameters.get('item') ?? '';
  join(streamField.value, groupField.value, itemField.value);
}

// ---- theme and clock ----

const systemDark = matchMedia('(prefers-color-scheme: dark)');
const isDark = () => (document.documentElement.dataset.theme ?? (systemDark.matches ? 'dark' : 'light')) === 'dark';
function redraw() {
  element('theme').textContent = isDark() ? 'light theme' : 'dark theme';
  for (const chart of charts.values()) chart.redraw();
}
element('theme').addEventListener('click', () => {
  const theme = isDark() ? 'light' : 'dark';
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem('weir-theme', theme);
  } catch {
    // Not remembered, then.
  }
  redraw();
});
systemDark.addEventListener('change', redraw);
redraw();

setTimeout(() => {
  if (progress.events === 0) element('host-empty').hidden = false;
}, SILENCE_NOTICE_MS);
setInterval(() => {
  showFacts();
  for (const chart of charts.values()) chart.tick();
}, 1000);

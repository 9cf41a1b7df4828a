// tables.js -- rows of events and of values, written with textContent only: stream data is never markup.

const DATA_CHARACTERS_MAX = 400;

export function clip(value) {
  const text = JSON.stringify(value) ?? '';
  return text.length > DATA_CHARACTERS_MAX ? `${text.slice(0, DATA_CHARACTERS_MAX)}…` : text;
}

function cell(row, text, className = '') {
  const element = document.createElement('td');
  element.textContent = text;
  if (className) element.className = className;
  row.append(element);
  return element;
}

function formatTime(milliseconds) {
  const time = new Date(milliseconds);
  return `${time.toLocaleTimeString([], { hour12: false })}.${String(time.getMilliseconds()).padStart(3, '0')}`;
}

// A table body that shows the newest events first; writes to the page at most once a frame.
export class EventTable {
  #body;
  #rowsMax;
  #pending = [];

  constructor(body, rowsMax) {
    this.#body = body;
    this.#rowsMax = rowsMax;
  }

  add(envelope) {
    if (this.#pending.push(envelope) === 1) requestAnimationFrame(() => this.#flush());
    if (this.#pending.length > this.#rowsMax) this.#pending.shift();
  }

  clear() {
    this.#pending = [];
    this.#body.replaceChildren();
  }

  #flush() {
    for (const envelope of this.#pending) this.#body.prepend(this.#row(envelope));
    this.#pending = [];
    while (this.#body.rows.length > this.#rowsMax) this.#body.lastElementChild.remove();
  }

  #row(envelope) {
    const { event } = envelope;
    const row = document.createElement('tr');
    cell(row, formatTime(envelope.timestamp));
    cell(row, envelope.seq ?? '');
    cell(row, event.type === 'event' ? `event ${event.event?.type ?? ''}` : event.type, 'kind').dataset.kind = event.type;
    cell(row, envelope.id ?? '');
    const data = event.type === 'event' ? event.event?.data : event.data;
    cell(row, event.type === 'sync' && envelope.reason ? `${envelope.reason}: ${clip(data)}` : clip(data)).title = clip(data);
    return row;
  }
}

// Current values of a group. A sync carries values without ids, so rows are keyed by `id` inside the value where there is one.
export class ValueTable {
  #body;
  #values = new Map();
  #isDue = false;

  constructor(body, onCount) {
    this.#body = body;
    this.onCount = onCount;
  }

  clear() {
    this.#values.clear();
    this.#draw();
  }

  apply(envelope) {
    const { event } = envelope;
    if (event.type === 'sync') this.#reset(envelope);
    else if (event.type === 'create' || event.type === 'update') this.#values.set(this.#key(envelope.id, event.data), event.data);
    else if (event.type === 'delete') this.#values.delete(this.#key(envelope.id, event.data));
    else return;
    if (this.#isDue) return;
    this.#isDue = true;
    requestAnimationFrame(() => this.#draw());
  }

  #key(id, data) {
    return typeof data?.id === 'string' ? data.id : id;
  }

  #reset(envelope) {
    const { data } = envelope.event;
    this.#values.clear();
    if (envelope.id !== null) {
      if (data !== null) this.#values.set(envelope.id, data);
    } else if (Array.isArray(data)) {
      data.forEach((value, index) => this.#values.set(this.#key(`#${index + 1}`, value), value));
    }
  }

  #draw() {
    this.#isDue = false;
    const rows = [];
    for (const [id, value] of this.#values) {
      if (rows.length === 200) break;
      const row = document.createElement('tr');
      cell(row, id);
      cell(row, clip(value)).title = clip(value);
      rows.push(row);
    }
    this.#body.replaceChildren(...rows);
    this.onCount(this.#values.size);
  }
}

// lib/follower.mjs -- a subscriber that keeps no envelopes but what they add up to: the items, in no order, and the position it
// could come back with. Each envelope has to follow from those before it: the next event, or a jump that says what it is.
import assert from 'node:assert/strict';
import { Client } from './clients.mjs';
import { until } from './weir.mjs';

export class Follower extends Client {
  items = new Map();
  epoch = null;
  seq = null; // of the newest envelope
  since = null; // what seq stands for until all that belongs to it is here
  events = 0;
  conflated = 0;
  leftOut = 0; // events nobody sent because a newer one of their item followed
  syncs = []; // {reason, seq, epoch}
  resumed = [];
  problem = null;
  shown = null; // a Map that all share who are to see the same at the same position

  // `position`: {epoch, since} of an earlier connection, whose items are given as well.
  join(streamName, groupId, { mode, position, items } = {}) {
    this.name = `${streamName}/${groupId}`;
    if (position !== undefined) {
      this.asked = position;
      this.items = new Map(items);
    }
    this.send({
      type: 'join',
      data: { subscriptionId: 's1', streamName, groupId, ...(mode === undefined ? {} : { mode }), ...(position === undefined ? {} : position) },
    });
  }

  async joined(streamName, groupId, options) {
    this.join(streamName, groupId, options);
    await this.waitFor(() => this.epoch !== null, `the start of ${streamName}/${groupId}`);
    return this;
  }

  get position() {
    return { epoch: this.epoch, since: this.since ?? this.seq };
  }

  // What it has at that position, to be given to the next connection.
  get itemsThere() {
    return this.since === null ? this.items : this.before;
  }

  #compare(what, { epoch, seq }, content) {
    const key = `${this.name} ${what} ${epoch} ${seq}`;
    const before = this.shown?.get(key);
    if (before === undefined) this.shown?.set(key, content);
    else if (before !== content) this.wrong(`at this position was ${before.slice(0, 200)}`, { what, epoch, seq, content });
  }

  wrong(what, envelope) {
    this.problem ??= `${what}: ${JSON.stringify(envelope).slice(0, 300)} after ${JSON.stringify({ epoch: this.epoch, seq: this.seq, since: this.since })}`;
  }

  take(data) {
    this.apply(JSON.parse(data));
    this.wake();
  }

  apply(envelope) {
    const { event, seq, epoch } = envelope;
    if (event.type === 'sync') this.#sync(envelope);
    else if (event.type === 'resumed') this.#resume(envelope);
    else if (this.epoch === null) this.wrong('an event comes first', envelope);
    else if (envelope.conflated !== undefined) this.#jump(envelope);
    else {
      if (this.since !== null) this.wrong('the rest of what is missing comes first', envelope);
      // A group that was empty, or was not there at all, may begin another life.
      const isAnotherLife = epoch > this.epoch && seq === 1 && this.items.size === 0;
      if (!isAnotherLife && (epoch !== this.epoch || seq !== this.seq + 1)) this.wrong('not the next event', envelope);
      this.events += 1;
      this.#change(envelope);
    }
    this.seq = seq;
    this.epoch = epoch;
    this.last = envelope;
  }

  #sync({ event, reason, seq, epoch }) {
    const isFirst = this.epoch === null;
    if (isFirst ? this.asked === undefined && reason !== undefined : typeof reason !== 'string') this.wrong('a fresh sync says why, a first one does not', { reason, seq, epoch });
    this.syncs.push({ reason, seq, epoch });
    this.items = new Map(event.data.map((value) => [value.id, value]));
    this.#compare('items', { epoch, seq }, JSON.stringify(this.values()));
    this.since = null;
  }

  #resume(envelope) {
    const { seq, epoch } = envelope;
    if (this.epoch !== null || this.asked === undefined || this.asked.epoch !== epoch || this.asked.since !== seq) this.wrong('not where it asked to go on', envelope);
    this.resumed.push({ seq, epoch });
  }

  // The newest event of an item since a position: it may come only from where this one stands.
  #jump(envelope) {
    const { conflated, seq, epoch } = envelope;
    if (epoch !== this.epoch || seq <= this.seq || conflated.since !== (this.since ?? this.seq)) this.wrong('not from where it stands', envelope);
    this.conflated += 1;
    if (this.since === null) {
      this.since = this.seq;
      this.before = new Map(this.items);
    }
    this.passed = (this.passed ?? 0) + 1;
    if (!conflated.more) {
      this.leftOut += seq - this.since - this.passed;
      this.since = null;
      this.passed = 0;
    }
    this.#change(envelope);
  }

  #change(envelope) {
    const { event, id } = envelope;
    this.#compare('event', envelope, JSON.stringify([id, event.type === 'delete' ? null : event.data]));
    if (event.type === 'create') {
      if (this.items.has(id)) this.wrong('created, and known already', envelope);
      this.items.set(id, event.data);
    } else if (event.type === 'update') {
      if (!this.items.has(id)) this.wrong('updated, and not known', envelope);
      this.items.set(id, event.data);
    } else if (event.type === 'delete') {
      if (!this.items.delete(id) && envelope.conflated === undefined) this.wrong('deleted, and not known', envelope);
    }
  }

  // By id: a group whose events were left out has the same items, in an order of its own.
  values() {
    return [...this.items.values()].sort(byId);
  }
}

export const byId = (a, b) => (a.id < b.id ? -1 : 1);

// Counters of all gateways together, by their names: `syncs_lagged`.
export async function counters(weir) {
  const text = await weir.metrics();
  const all = {};
  for (const [, name, value] of text.matchAll(/^weir_gateway_(\w+?)(?:_total)?\{[^}]*\} (\d+)$/gm)) all[name] = (all[name] ?? 0) + Number(value);
  return all;
}

// The figures of the gateway that is not asked come with the broker's next collection.
export async function counted(weir, name, value, limitMs) {
  let figure;
  await until(async () => (figure = (await counters(weir))[name]) === value, `${name} is ${value}`, limitMs)
    .catch((error) => assert.fail(`${error.message}, but ${figure}`));
}

// `write(n)` for each n, in order, `each` of them under way; then `keepsUp(n)` is waited for, so that the load is not too fast for
// those who read.
export async function writeAll(count, write, { each = 50, keepsUp } = {}) {
  for (let n = 0; n < count; n += each) {
    const answers = await Promise.all(Array.from({ length: Math.min(each, count - n) }, (_, index) => write(n + index)));
    for (const { error } of answers) if (error !== undefined) throw new Error(JSON.stringify(error));
    await keepsUp?.(Math.min(n + each, count));
  }
}

// All of `clients` have seen what was written to their group so far.
export async function seenBy(clients, worker, stream, group, n) {
  const answer = await worker.set(stream, group, 'mark', { id: 'mark', n });
  if (answer.error !== undefined) throw new Error(JSON.stringify(answer.error));
  await until(() => clients.every(({ items }) => items.get('mark')?.n === n), `all who read ${stream}/${group} have everything`).catch((error) => {
    const behind = clients.filter(({ items }) => items.get('mark')?.n !== n).map(({ seq, closed, problem }) => ({ seq, closed, problem }));
    throw new Error(`${error.message}, mark ${n} is not with ${JSON.stringify(behind)}`);
  });
}

// lib/model.mjs -- what a group must look like after each event, computed from the events of a subscriber that joined first.
import assert from 'node:assert/strict';

// Applies envelopes to an insertion-ordered map: overwriting keeps the place, delete and set moves to the end.
export class GroupModel {
  items = new Map();
  epoch = null;
  seq = null;
  timestamp = 0;

  apply(envelope) {
    const { event, id } = envelope;
    if (event.type === 'create' || event.type === 'update') this.items.set(id, event.data);
    else if (event.type === 'delete') this.items.delete(id);
    this.seq = envelope.seq;
    this.epoch = envelope.epoch;
    this.timestamp = envelope.timestamp;
  }

  // `key` tells an item's id from its value: a sync has values only.
  reset(envelope, key = (value) => value.id) {
    this.items = new Map(envelope.event.data.map((value) => [key(value), value]));
    this.seq = envelope.seq;
    this.epoch = envelope.epoch;
    this.timestamp = envelope.timestamp;
  }

  values() {
    return [...this.items.values()];
  }
}

// The full history of a group from the envelopes of a subscriber that joined it empty: texts by seq, and the values
// JSON text after each seq, made on demand.
export class History {
  constructor(texts) {
    const [sync, ...rest] = texts.map((text) => JSON.parse(text));
    assert.equal(sync.event.type, 'sync');
    assert.deepEqual(sync.event.data, []);
    this.first = sync.seq;
    this.epoch = sync.epoch;
    this.syncTimestamp = sync.timestamp;
    this.envelopes = rest;
    this.texts = texts.slice(1);
    let timestamp = sync.timestamp;
    rest.forEach((envelope, index) => {
      assert.equal(envelope.seq, this.first + 1 + index, 'no gap, no repeat');
      assert.equal(envelope.epoch, this.epoch, 'one epoch');
      assert.ok(envelope.timestamp > timestamp, `timestamps strictly increase at seq ${envelope.seq}`);
      timestamp = envelope.timestamp;
    });
    this.last = this.first + rest.length;
  }

  text(seq) {
    return this.texts[seq - this.first - 1];
  }

  timestamp(seq) {
    return seq === this.first ? this.syncTimestamp : this.envelopes[seq - this.first - 1].timestamp;
  }

  // Calls visit(seq, valuesText) for each wanted seq, in one walk.
  walk(wanted, visit) {
    const model = new GroupModel();
    const due = new Set(wanted);
    if (due.has(this.first)) visit(this.first, model);
    for (const envelope of this.envelopes) {
      model.apply(envelope);
      if (due.has(envelope.seq)) visit(envelope.seq, model);
    }
  }

  // A subscriber's texts: one sync equal to the state at its seq, then exactly the following events, byte for byte.
  // Returns the seq of its sync and the values it showed, to be checked by walk().
  checkSubscriber(texts, name) {
    const sync = JSON.parse(texts[0]);
    assert.equal(sync.event.type, 'sync', `${name}: the first frame is the sync`);
    assert.equal(sync.epoch, this.epoch, `${name}: epoch`);
    assert.ok(sync.seq >= this.first && sync.seq <= this.last, `${name}: seq ${sync.seq} exists`);
    texts.slice(1).forEach((text, index) => {
      const seq = sync.seq + 1 + index;
      if (text !== this.text(seq)) assert.equal(text, this.text(seq), `${name}: event ${seq}`);
    });
    assert.equal(sync.seq + texts.length - 1, this.last, `${name}: ends with the last event`);
    // Stamps that run ahead of the clock (more writes than milliseconds) grow by one, and leave the sync no room of its own.
    const isAhead = sync.seq > this.first + 1 && this.timestamp(sync.seq) === this.timestamp(sync.seq - 1) + 1;
    const floor = sync.seq === this.first ? 0 : this.timestamp(sync.seq) + (isAhead ? 0 : 1);
    assert.ok(sync.timestamp >= floor, `${name}: sync is stamped after what it includes`);
    if (sync.seq < this.last) assert.ok(sync.timestamp < this.timestamp(sync.seq + 1), `${name}: sync is stamped before what follows`);
    return sync;
  }
}

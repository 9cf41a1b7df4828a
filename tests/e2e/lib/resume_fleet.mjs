// lib/resume_fleet.mjs -- subscribers that come back, in a process of their own: `fork` it with URL STREAM GROUP COUNT.
//
// Each joins one group, keeps the position (epoch, seq) of the last envelope it got, and checks that every event is the next
// one and carries the number the writer gave it. Sent away with 1012 it waits as long as it was told, and joins again with its
// position. Nothing is asserted here: what was seen goes to the parent.
//
//   parent -> {reach: SEQ}   say when every subscriber has come that far
//   parent -> {report: true}
//   fleet  -> {joined: true} once, {reached: SEQ}, {report: {...}}
import { WebSocket } from 'ws';

const [url, streamName, groupId, count] = process.argv.slice(2);
const totals = {
  events: 0, lost: 0, repeated: 0, mixed: 0, resumed: 0, syncs: 0, elsewhere: 0, away: 0, unhinted: 0, cut: 0, reset: 0, refused: 0, codes: {}, hints: [],
};
const tail = /"n":(\d+).*"seq":(\d+),"epoch":(\d+)\}$/;
let wanted = null;
let first = 0;

class Resuming {
  epoch = null;
  seq = null;
  closes = 0;

  connect() {
    this.isFirst = true;
    this.isOpen = false;
    this.socket = new WebSocket(url, { perMessageDeflate: false });
    this.socket.on('open', () => {
      this.isOpen = true;
      const position = this.seq === null ? {} : { epoch: this.epoch, since: this.seq };
      this.socket.send(JSON.stringify({ type: 'join', data: { subscriptionId: 's', streamName, groupId, mode: 'lossless', ...position } }));
    });
    this.socket.on('message', (data) => this.take(data.toString()));
    this.socket.on('unexpected-response', (request, response) => {
      totals.refused += 1;
      const seconds = Number(response.headers['retry-after']);
      if (!(seconds >= 1)) totals.unhinted += 1;
      request.destroy();
      setTimeout(() => this.connect(), seconds * 1000 || 500);
    });
    this.socket.on('error', () => {});
    this.socket.on('close', (code, reason) => this.again(code, reason.toString()));
  }

  again(code, reason) {
    totals.codes[code] = (totals.codes[code] ?? 0) + 1;
    this.closes += 1;
    const hint = /retry_ms=(\d+)$/.exec(reason);
    if (code === 1012) {
      totals.away += 1;
      if (hint) totals.hints.push(Number(hint[1]));
      else totals.unhinted += 1;
    } else if (this.isOpen) {
      totals.cut += 1;
    } else {
      totals.reset += 1; // by the kernel, when a listen queue closed (docs/operations.md)
    }
    setTimeout(() => this.connect(), hint ? Number(hint[1]) : 200);
  }

  // The first envelope says where it stands.
  start(envelope) {
    this.isFirst = false;
    if (envelope.event.type === 'resumed') {
      totals.resumed += 1;
      if (envelope.seq !== this.seq || envelope.epoch !== this.epoch) totals.elsewhere += 1;
    } else {
      totals.syncs += 1;
      if (this.seq === null && ++first === Number(count)) process.send({ joined: true });
      this.offset ??= envelope.seq - (envelope.event.data.at(-1)?.n ?? 0);
    }
    this.epoch = envelope.epoch;
    this.seq = envelope.seq;
  }

  take(text) {
    if (this.isFirst) {
      this.start(JSON.parse(text));
    } else {
      const [, n, seq, epoch] = (tail.exec(text) ?? []).map(Number);
      totals.events += 1;
      if (epoch !== this.epoch || Number.isNaN(seq) || n + this.offset !== seq) totals.mixed += 1;
      if (seq > this.seq + 1) totals.lost += seq - this.seq - 1;
      if (seq <= this.seq) totals.repeated += 1;
      this.seq = seq;
    }
    if (wanted !== null) check();
  }
}

const fleet = Array.from({ length: Number(count) }, () => new Resuming());

function check() {
  if (fleet.some(({ seq }) => seq === null || seq < wanted)) return;
  process.send({ reached: wanted });
  wanted = null;
}

process.on('message', (message) => {
  if (message.reach !== undefined) {
    wanted = message.reach;
    check();
  }
  if (message.report) {
    const hints = totals.hints.sort((a, b) => a - b);
    process.send({ report: { ...totals, hints: { least: hints[0], most: hints.at(-1) }, untouched: fleet.filter(({ closes }) => closes === 0).length, least: Math.min(...fleet.map(({ seq }) => seq)) } });
  }
});
process.on('disconnect', () => process.exit(0));
for (const subscriber of fleet) subscriber.connect();

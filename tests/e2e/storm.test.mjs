// storm.test.mjs -- everything at once while processes die: writers, updates, a stream that a worker process keeps, triggers, joins
// and leaves, with gateways, the broker and worker processes killed and stopped at random. Afterwards everything has come back,
// nothing that was acknowledged by the surviving broker is missing, and nobody was told anything twice or out of order.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { GroupModel } from './lib/model.mjs';
import { openSdkWorker } from './lib/sdk.mjs';
import { Weir, delay, isSanitized, seededRandom, until } from './lib/weir.mjs';

// The SDK tells each lost connection.
console.error = () => {};

const STORM_MS = isSanitized ? 12000 : 24000;
const LIMIT_MS = 60000;
const GROUPS = ['g0', 'g1', 'g2'];
const ITEMS = 12;
const BROKER_KILLS_MAX = 3;
// A leave whose handler was called right before the broker died may be told to the next one as well.
const LEAVE_DOUBT_MS = 10000;
// Of a handshake, for a gateway may stand still.
const PATIENCE_MS = 30000;

const program = path.join(path.dirname(fileURLToPath(import.meta.url)), 'lib/storm_worker.mjs');

// A worker process with what it has said so far.
class Child {
  lines = [];
  #rest = '';

  static async start(weir) {
    const child = new Child();
    child.process = spawn(process.execPath, [program, weir.workerUrl, ...GROUPS], { stdio: ['pipe', 'pipe', 'ignore'] });
    child.exited = once(child.process, 'close');
    child.process.stdin.on('error', () => {});
    child.process.stdout.on('data', (data) => child.#take(data));
    return child;
  }

  #take(data) {
    const lines = (this.#rest + data).split('\n');
    this.#rest = lines.pop();
    for (const line of lines) this.lines.push(JSON.parse(line));
  }

  get isReady() {
    return this.lines.some(({ ready }) => ready);
  }

  // What it was given of one group, in order.
  events(group) {
    return this.lines.filter((line) => line.group === group);
  }

  async kill() {
    this.process.kill('SIGKILL');
    await this.exited;
  }
}

// What a subscriber was told on one connection: each group's events follow their sync without a gap. Only of a stream that a worker
// keeps the first sync may be missing, when the worker could not be asked.
function assertGapless(envelopes, name) {
  const last = new Map();
  for (const envelope of envelopes) {
    const { streamName, groupId, event } = envelope;
    if (event.type === 'unauthorized') continue;
    const before = last.get(groupId); // one stream a connection
    last.set(groupId, envelope);
    if (event.type === 'sync' || (!before && streamName === 'kept')) continue;
    assert.ok(before, `${name}: the sync comes first`);
    assert.equal(envelope.epoch, before.epoch, `${name}: ${groupId}: a new epoch begins with a sync`);
    assert.equal(envelope.seq, before.seq + 1, `${name}: ${groupId}: no gap, no repeat`);
    assert.ok(envelope.timestamp > before.timestamp, `${name}: ${groupId}: timestamps increase at ${envelope.seq}`);
  }
}

// At most once and in order: of one epoch seq strictly grows, and no epoch comes back.
function assertOrdered(events, name) {
  const epochs = new Set();
  let last = null;
  for (const event of events) {
    if (last?.epoch !== event.epoch) assert.ok(!epochs.has(event.epoch), `${name}: epoch ${event.epoch} has come back`);
    else assert.ok(event.seq > last.seq, `${name}: ${event.seq} after ${last.seq}`);
    epochs.add(event.epoch);
    last = event;
  }
}

const byId = (a, b) => (a.id < b.id ? -1 : 1);

class Storm {
  isOver = false;
  loops = [];
  increments = []; // {item, sentMs, doneMs, n}: n undefined when it is not known whether it was made
  connections = []; // of subscribers, to be checked at the end
  subscriptions = new Map(); // id -> {endedMs}
  leaves = new Map(); // subscription id -> when its handler was called
  children = [];
  brokerKills = [];
  counts = {};

  constructor(weir, random) {
    this.weir = weir;
    this.random = random;
  }

  count(what) {
    this.counts[what] = (this.counts[what] ?? 0) + 1;
  }

  // Runs `body` again and again until the storm is over; what fails by a death is tried anew.
  loop(body) {
    this.loops.push((async () => {
      while (!this.isOver) {
        try {
          await body();
        } catch (error) {
          if (!/ECONN|closed|socket hang up|handshake|never came|never happened|WebSocket/.test(`${error.code} ${error.message}`)) throw error;
          await delay(100);
        }
      }
    })());
  }

  openWorker() {
    return RawWorker.open(this.weir.workerUrl, { handshakeTimeout: PATIENCE_MS });
  }

  // The answer, or null when the connection is gone.
  async ask(worker, functionId, data) {
    const answer = await Promise.race([worker.callRaw(functionId, data), worker.closing.then(() => null)]);
    return answer?.message ?? null;
  }

  async increment(worker, item) {
    const entry = { item, sentMs: Date.now() };
    this.increments.push(entry);
    const answer = await this.ask(worker, 'stream::update', {
      stream_name: 'storm', group_id: 'counters', item_id: item, ops: [{ type: 'increment', path: 'n', by: 1 }],
    });
    entry.doneMs = Date.now();
    if (answer && !answer.error) {
      assert.equal(answer.result.errors ?? undefined, undefined);
      entry.n = answer.result.new_value.n;
    }
    this.count(entry.n === undefined ? 'increments unknown' : 'increments');
  }

  startCounters(number) {
    this.loop(async () => {
      const worker = await this.openWorker();
      while (!this.isOver && !worker.closed) {
        await Promise.all(Array.from({ length: 4 }, (_, at) => this.increment(worker, `c${(number + at) % 3}`)));
        await delay(2);
      }
      await worker.close();
    });
  }

  async writeOnce(worker) {
    const { random } = this;
    const stream_name = random.below(6) === 0 ? 'kept' : 'storm';
    const item_id = `i${random.below(ITEMS)}`;
    const input = { stream_name, group_id: GROUPS[random.below(GROUPS.length)], item_id };
    const kind = random.below(10);
    let answer;
    if (kind < 6) answer = await this.ask(worker, 'stream::set', { ...input, data: { id: item_id, n: random.below(1e9) } });
    else if (kind < 8) answer = await this.ask(worker, 'stream::delete', input);
    else if (kind < 9) answer = await this.ask(worker, 'stream::send', { ...input, type: 'shout', data: { loud: true } });
    else answer = await this.ask(worker, 'stream::list', input);
    this.count(answer && !answer.error ? 'writes' : 'writes failed');
  }

  startWriter() {
    this.loop(async () => {
      const worker = await this.openWorker();
      while (!this.isOver && !worker.closed) {
        await Promise.all([this.writeOnce(worker), this.writeOnce(worker), this.writeOnce(worker)]);
        await delay(this.random.below(8));
      }
      await worker.close();
    });
  }

  startSdkWriter(sdk) {
    this.loop(async () => {
      const item_id = `i${this.random.below(ITEMS)}`;
      const payload = { stream_name: 'storm', group_id: GROUPS[this.random.below(GROUPS.length)], item_id, data: { id: item_id, n: this.random.below(1e9) } };
      const failed = await sdk.trigger({ function_id: 'stream::set', payload, timeoutMs: 5000 }).then(() => false, () => true);
      this.count(failed ? 'sdk writes failed' : 'sdk writes');
      await delay(5);
    });
  }

  async openSubscriber() {
    const subscriber = await Subscriber.open(this.weir.streamUrl, { handshakeTimeout: PATIENCE_MS });
    this.connections.push(subscriber);
    return subscriber;
  }

  // A subscription under an id that is used once.
  async join(subscriber, stream, group, limitMs = 10000) {
    const id = `s${this.subscriptions.size}`;
    this.subscriptions.set(id, {});
    const before = subscriber.envelopes.length;
    subscriber.current = { id, stream, group };
    subscriber.join(stream, group, { subscriptionId: id });
    const answer = await subscriber.waitFor(() => subscriber.envelopes.slice(before).find(({ event }) => event.type === 'sync' || event.type === 'unauthorized'), 'the answer to a join', limitMs);
    this.count(answer.event.type === 'sync' ? 'joins' : 'joins refused');
    return answer.event.type === 'sync';
  }

  // Once it is let in: a gate that has come back may not be known to the gateway yet.
  joinAtLast(subscriber, stream, group) {
    return until(async () => {
      if (await this.join(subscriber, stream, group, LIMIT_MS)) return true;
      this.ended(subscriber.current.id);
      return false;
    }, `a join of ${stream}/${group} succeeds`, LIMIT_MS);
  }

  ended(id) {
    if (id !== undefined) this.subscriptions.get(id).endedMs ??= Date.now();
  }

  async leaveFor(subscriber, isRude = false) {
    this.ended(subscriber.current?.id);
    if (isRude) subscriber.socket.terminate();
    else await subscriber.close();
  }

  // Joins, leaves, goes away politely or not, comes back.
  startRover() {
    this.loop(async () => {
      const subscriber = await this.openSubscriber();
      try {
        for (let left = 1 + this.random.below(4); left > 0 && !this.isOver && !subscriber.closed; left -= 1) {
          const group = GROUPS[this.random.below(GROUPS.length)];
          if (!(await this.join(subscriber, 'storm', group))) break;
          await delay(this.random.below(400));
          if (subscriber.closed) break;
          subscriber.leave('storm', group, subscriber.current.id);
          this.ended(subscriber.current.id);
        }
      } finally {
        await this.leaveFor(subscriber, this.random.below(2) === 0);
      }
    });
  }

  // Stays as long as its gateway lives.
  startSteady(stream, group) {
    const seat = { stream, group, subscriber: null };
    this.loop(async () => {
      const subscriber = await this.openSubscriber();
      try {
        if (await this.join(subscriber, stream, group)) {
          seat.subscriber = subscriber;
          while (!this.isOver && !subscriber.closed) await Promise.race([subscriber.closing, delay(200)]);
        }
      } finally {
        if (!this.isOver || subscriber.closed || seat.subscriber !== subscriber) {
          seat.subscriber = null;
          await this.leaveFor(subscriber);
        }
      }
    });
    return seat;
  }

  async startChild() {
    this.child = await Child.start(this.weir);
    this.children.push(this.child);
  }

  // Functions and triggers of a worker of our own, on whichever gateway it is at the time.
  watch(sdk) {
    sdk.registerFunction('storm::left', async ({ subscription_id }) => {
      this.leaves.set(subscription_id, [...(this.leaves.get(subscription_id) ?? []), Date.now()]);
      return null;
    });
    sdk.registerFunction('storm::gate', async ({ subscription_id }) => ({ unauthorized: subscription_id.startsWith('bad') }));
    sdk.registerTrigger({ type: 'stream:leave', function_id: 'storm::left', config: null });
    sdk.registerTrigger({ type: 'stream:join', function_id: 'storm::gate', config: { stream_name: 'storm' } });
  }

  // ---- deaths ----

  // `child` false: one of weir's processes.
  victim() {
    const roll = this.random.below(10);
    if (roll < 3) return { name: 'child', pid: this.child.process.pid };
    if (roll < 5) return { name: 'broker', pid: this.weir.broker() };
    const gateways = this.weir.gateways();
    return { name: 'gateway', pid: gateways[this.random.below(gateways.length)] };
  }

  async stopFor(pid, ms) {
    if (!this.signal(pid, 'SIGSTOP')) return;
    await delay(ms);
    this.signal(pid, 'SIGCONT');
  }

  signal(pid, signal) {
    try {
      return process.kill(pid, signal);
    } catch {
      return false; /* it has just died */
    }
  }

  async strike() {
    const { name, pid } = this.victim();
    if (pid === undefined) return;
    this.weir.note();
    const mayKill = name !== 'broker' || this.brokerKills.length < BROKER_KILLS_MAX;
    if (!mayKill || this.random.below(2) === 0) {
      this.count(`${name} stopped`);
      const stopped = this.stopFor(pid, 200 + this.random.below(1800));
      if (this.random.below(3) === 0) this.stops.push(stopped); // the next blow falls meanwhile
      else await stopped;
      return;
    }
    this.count(`${name} killed`);
    if (name === 'child') {
      await this.child.kill();
      await this.startChild();
      return;
    }
    const killedMs = Date.now();
    if (!this.signal(pid, 'SIGKILL')) return;
    // Until it has ended it would be taken for one that serves.
    await until(() => !this.weir.isAlive(pid), `the ${name} is dead`);
    if (name === 'broker') this.brokerKills.push({ killedMs, deadMs: Date.now() });
  }

  async rage(ms) {
    this.stops = [];
    const end = Date.now() + ms;
    while (Date.now() < end) {
      await delay(300 + this.random.below(900));
      await this.strike();
    }
    await Promise.all(this.stops);
  }

  // Returns a worker. A gateway is there before it listens, and both may have been killed at last.
  async calm() {
    this.isOver = true;
    await Promise.all(this.loops);
    await until(() => this.weir.broker() !== undefined && this.weir.gateways().length === 2, 'a broker and two gateways', LIMIT_MS);
    let refusal;
    return until(() => this.openWorker().catch((error) => ((refusal = error), undefined)), 'a gateway listens', LIMIT_MS)
      .catch((error) => assert.fail(`${error.message}: ${refusal}`));
  }

  // ---- afterwards ----

  // Increments since the last broker's death were made by the one that lives: those that were acknowledged are all there. The next
  // one may have served before we knew of the death.
  checkCounters(values) {
    const { killedMs, deadMs } = this.brokerKills.at(-1) ?? { killedMs: 0, deadMs: 0 };
    for (const [item, n] of values) {
      const mine = this.increments.filter((entry) => entry.item === item);
      const sure = mine.filter((entry) => entry.sentMs > deadMs && entry.n !== undefined);
      const possible = mine.filter((entry) => entry.doneMs === undefined || entry.doneMs >= killedMs).length;
      assert.equal(new Set(sure.map((entry) => entry.n)).size, sure.length, `${item}: each acknowledged increment is one of its own`);
      assert.ok(sure.every((entry) => entry.n <= n), `${item}: no acknowledged increment is missing`);
      assert.ok(n >= sure.length && n <= possible, `${item}: ${sure.length} <= ${n} <= ${possible}`);
    }
  }

  checkLeaves(mustHaveLeft) {
    for (const [id, calls] of this.leaves) {
      if (!this.subscriptions.has(id)) continue;
      const { endedMs } = this.subscriptions.get(id);
      const isNear = (killedMs, ms) => Math.abs(killedMs - ms) < LEAVE_DOUBT_MS;
      const isInDoubt = this.brokerKills.some(({ killedMs }) => endedMs === undefined || isNear(killedMs, endedMs) || isNear(killedMs, calls[0]));
      assert.ok(calls.length <= (isInDoubt ? 2 : 1), `${id} left ${calls.length} times`);
    }
    for (const id of mustHaveLeft) assert.equal(this.leaves.get(id).length, 1, `${id} has left once`);
  }
}

test('a storm of deaths under load: everything comes back, nothing acknowledged is lost, nothing is told twice', { timeout: 600000 }, async () => {
  const random = seededRandom('storm');
  // While a gateway stands still others write: its subscribers are to get every event all the same. A worker process that stands
  // still is waited for: what it did after all, too late, would be in its items and in no event.
  const weir = await Weir.start({ settings: { lag_events: 16384, trigger_timeout_ms: 5000 } });
  const storm = new Storm(weir, random);
  const sdk = await openSdkWorker(weir.workerUrl);
  try {
    storm.watch(sdk);
    await storm.startChild();
    await until(() => storm.child.isReady, 'the worker process serves', LIMIT_MS);
    for (let n = 0; n < 2; n += 1) storm.startCounters(n);
    for (let n = 0; n < 2; n += 1) storm.startWriter();
    storm.startSdkWriter(sdk);
    for (let n = 0; n < 6; n += 1) storm.startRover();
    const seats = [...GROUPS, ...GROUPS].map((group) => storm.startSteady('storm', group));
    seats.push(storm.startSteady('kept', 'g0'));
    await storm.rage(STORM_MS);
    const worker = await storm.calm();
    console.log(`# storm: ${JSON.stringify(storm.counts)}`);

    // Everybody serves again.
    await until(() => storm.child.isReady, 'the worker process serves', LIMIT_MS);
    const ask = (functionId, data) => storm.ask(worker, functionId, data);
    const works = (functionId, data) => until(async () => !(await ask(functionId, data)).error, `${functionId} works`, LIMIT_MS);
    const idle = { id: 'end', n: 0 };
    await works('storm::left', { subscription_id: 'none' });
    await works('storm::gate', { subscription_id: 'none' });
    for (const op of ['get', 'set', 'list']) await works(`stream::${op}(kept)`, { stream_name: 'kept', group_id: 'end', item_id: 'end', data: idle });
    const functions = ['storm::left', 'storm::gate', ...GROUPS.map((group) => `storm::on::${storm.child.process.pid}::${group}`)];
    let registered;
    await until(async () => {
      registered = (await ask('engine::registered-triggers::list', {})).result.registered_triggers.map(({ function_id }) => function_id);
      return functions.every((id) => registered.includes(id));
    }, 'all triggers are there again', LIMIT_MS).catch((error) => assert.deepEqual(registered.sort(), functions.sort(), error.message));

    // Acknowledged updates.
    const before = storm.increments.length;
    await Promise.all(Array.from({ length: 150 }, (_, n) => storm.increment(worker, `c${n % 3}`)));
    assert.ok(storm.increments.slice(before).every(({ n }) => n !== undefined), 'in the calm every update succeeds');
    const counters = new Map();
    for (const item of ['c0', 'c1', 'c2']) counters.set(item, (await ask('stream::get', { stream_name: 'storm', group_id: 'counters', item_id: item })).result.n);
    storm.checkCounters(counters);

    // Triggers of the calm: each event once, in order.
    const marks = new Map();
    for (const group of GROUPS) {
      const witness = await storm.openSubscriber();
      await storm.joinAtLast(witness, 'storm', group);
      const from = witness.envelopes.length;
      for (let n = 0; n < 20; n += 1) assert.equal((await ask('stream::set', { stream_name: 'storm', group_id: group, item_id: 'mark', data: { id: 'mark', n } })).error, undefined);
      await witness.waitFor(() => witness.envelopes.length >= from + 20, 'twenty events');
      marks.set(group, witness.envelopes.slice(from));
    }
    for (const [group, envelopes] of marks) {
      const { epoch, seq } = envelopes.at(-1);
      await until(() => storm.child.events(group).some((event) => event.epoch === epoch && event.seq === seq), `the trigger of ${group} has caught up`, LIMIT_MS);
      const given = new Set(storm.child.events(group).map((event) => `${event.epoch}:${event.seq}`));
      for (const envelope of envelopes) assert.ok(given.has(`${envelope.epoch}:${envelope.seq}`), `the trigger was given ${envelope.seq} of ${group}`);
    }
    for (const child of storm.children) {
      for (const group of GROUPS) assertOrdered(child.events(group), `process ${child.process.pid}, ${group}`);
    }

    // What subscribers who have been there all the time, and those who come now, see.
    for (const [seat, { stream, group, subscriber }] of seats.entries()) {
      const isKept = stream === 'kept';
      const item_id = `last${seat}`;
      const newcomer = await storm.openSubscriber();
      await storm.joinAtLast(newcomer, stream, group);
      assert.equal((await ask('stream::set', { stream_name: stream, group_id: group, item_id, data: { id: item_id, n: 1 } })).error, undefined);
      const { result } = await ask('stream::list', { stream_name: stream, group_id: group });
      // Who lost its connection when the storm ended is not there any more, though it did not know then.
      for (const each of [newcomer, subscriber].filter((one) => one && !one.closed)) {
        // Whose gateway comes to the last broker later than the writer's finds it in the sync, as does who is told of a worker
        // that has come back.
        const hasLast = ({ id, event }) => id === item_id || (event.type === 'sync' && event.data.some((value) => value.id === item_id));
        await each.waitFor(() => hasLast(each.envelopes.at(-1)), 'the last write');
        const model = new GroupModel();
        for (const envelope of each.envelopes.filter(({ streamName, groupId, event }) => streamName === stream && groupId === group && event.type !== 'unauthorized')) {
          if (envelope.event.type === 'sync') model.reset(envelope);
          else model.apply(envelope);
        }
        if (isKept) assert.deepEqual(model.values().sort(byId), result.sort(byId), 'what a subscriber has seen is what is there');
        else assert.deepEqual(model.values(), result, 'what a subscriber has seen is what is there');
      }
    }
    for (const [index, connection] of storm.connections.entries()) assertGapless(connection.envelopes, `connection ${index}`);

    // The gate is shut again, and everybody's leave is told once.
    const intruder = await Subscriber.open(weir.streamUrl);
    intruder.join('storm', 'g0', { subscriptionId: 'bad' });
    await intruder.waitFor(() => intruder.envelopes.length > 0, 'an answer to the join');
    assert.equal(intruder.envelopes[0].event.type, 'unauthorized');
    await intruder.close();
    const present = storm.connections.filter(({ closed }) => !closed);
    const ids = present.map(({ current }) => current.id);
    await Promise.all(present.map((subscriber) => subscriber.close()));
    await until(() => ids.every((id) => storm.leaves.has(id)), 'everybody has left', LIMIT_MS)
      .catch((error) => assert.fail(`${error.message}, not told: ${ids.filter((id) => !storm.leaves.has(id))}`));
    await delay(300); // a second call would come right behind the first
    storm.checkLeaves(ids);
    await worker.close();
  } finally {
    storm.isOver = true;
    await Promise.all(storm.children.map((child) => child.kill()));
    await sdk.shutdown();
    await weir.stop();
  }
});

// bell.test.mjs -- which gateways the broker wakes for an event: those with a subscriber of its group or with stream triggers, and
// those that have slept for long. Counted by the broker itself.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { delay, until, withWeir } from './lib/weir.mjs';

const EVENTS = 40;
const STREAM = 'bell';
const SHOWN_EVERY_MS = 1000;

// The broker shows its counters about once a second, all at one moment, between two of its turns. `after`: what has been shown
// before, and is not meant.
async function shown(weir, events, after = { turns: -1 }) {
  const counter = (text, name) => Number(new RegExp(`^weir_broker_${name}_total (\\d+)$`, 'm').exec(text)?.[1]);
  let figures;
  await until(async () => {
    const page = await weir.metrics();
    figures = { events: counter(page, 'events'), wakes: counter(page, 'wakes'), spared: counter(page, 'wakes_spared'), turns: counter(page, 'turns') };
    return figures.events === events && figures.turns > after.turns;
  }, `${events} events are shown`).catch((error) => assert.fail(`${error.message}: ${JSON.stringify(figures)}`));
  return figures;
}

// Writes to groups one after the other, and says what the broker has done for them.
class Writer {
  events = 0;
  of = new Map(); // events by group
  constructor(weir, worker) {
    Object.assign(this, { weir, worker });
  }

  async write(group, count = EVENTS, text = '') {
    for (let n = 0; n < count; n += 1) assert.equal((await this.worker.set(STREAM, group, `i${n}`, { n, text })).error, undefined);
    this.events += count;
  }

  async costs(group) {
    this.of.set(group, (this.of.get(group) ?? 0) + EVENTS);
    const before = this.last?.events === this.events ? this.last : await shown(this.weir, this.events);
    await this.write(group);
    this.last = await shown(this.weir, this.events);
    return { wakes: this.last.wakes - before.wakes, spared: this.last.spared - before.spared };
  }

  // Until `isShown` of the costs of `group`: what a gateway is woken for is seen only when it sleeps, and one that stands still for a
  // moment may not have slept. All of them have to be as `isRight` says.
  async untilCosts(group, isShown, what, isRight = () => true) {
    return until(async () => {
      const costs = await this.costs(group);
      assert.ok(isRight(costs), JSON.stringify(costs));
      return isShown(costs);
    }, what);
  }

  // Groups nobody wants, of which one or another may share its bit with a group somebody wants.
  async costsOfNobodys(round) {
    const all = [];
    for (const name of ['x', 'y']) all.push(await this.costs(`nobody's ${round} ${name}`));
    return all;
  }
}

test('an event wakes the gateways that have a subscriber of its group, and no other', async () => {
  await withWeir({}, async (weir, later) => {
    const pids = weir.gateways();
    const subscribers = await weir.openOnEach(() => Subscriber.open(weir.streamUrl));
    const [here, there] = pids.map((pid) => later(subscribers.get(pid)[0]));
    const worker = later(await weir.openOn(pids[0], () => RawWorker.open(weir.workerUrl)));
    const writer = new Writer(weir, worker);
    await here.joined(STREAM, 'both', { subscriptionId: 's1' });
    await there.joined(STREAM, 'both', { subscriptionId: 's1' });
    await there.joined(STREAM, 'there', { subscriptionId: 's2' });

    await writer.untilCosts('both', ({ wakes }) => wakes > 0, 'somebody is woken', ({ spared }) => spared === 0);
    const nobodys = await writer.costsOfNobodys(1);
    assert.ok(nobodys.some(({ wakes }) => wakes === 0), JSON.stringify(nobodys));
    await until(async () => (await writer.costsOfNobodys(1)).some(({ spared }) => spared > 0), 'somebody sleeps on');
    await writer.untilCosts('there', ({ wakes }) => wakes > 0, 'the other one is woken', ({ wakes, spared }) => wakes <= EVENTS || spared > 0);
    for (const [client, groups] of [[here, ['both']], [there, ['both', 'there']]]) {
      const events = groups.reduce((sum, group) => sum + writer.of.get(group), 0);
      await client.waitFor(() => client.events.length >= events, 'every event');
      assert.equal(client.events.length, events);
    }
    const before = here.events.length;

    // A group somebody leaves is nobody's, and one that is joined rings from its join on.
    here.leave(STREAM, 'both', 's1');
    there.leave(STREAM, 'both', 's1');
    await here.ping();
    await there.ping();
    const left = [await writer.costs('both'), ...await writer.costsOfNobodys(2)];
    assert.ok(left.some(({ wakes }) => wakes === 0), JSON.stringify(left));
    const late = `nobody's 2 x`;
    await here.joined(STREAM, late, { subscriptionId: 's3' });
    await there.joined(STREAM, late, { subscriptionId: 's3' });
    assert.equal((await writer.costs(late)).spared, 0);
    await here.waitFor(() => here.events.length === before + EVENTS, 'the events of the late group');

    // Whose broker has died says it all to the next one.
    process.kill(weir.broker(), 'SIGKILL');
    for (const client of [here, there]) {
      await client.waitFor(() => client.syncs.at(-1).reason === 'restarted', 'the next sync');
    }
    const next = new Writer(weir, worker);
    assert.equal((await next.costs(late)).spared, 0);
    const again = await next.costsOfNobodys(3);
    assert.ok(again.some(({ wakes }) => wakes === 0), JSON.stringify(again));
  });
});

test('an event is shown together with what it has cost', async () => {
  await withWeir({}, async (weir, later) => {
    const writer = new Writer(weir, later(await RawWorker.open(weir.workerUrl)));
    for (let round = 0; round < 3; round += 1) {
      await shown(weir, writer.events);
      // Of two events the second is taken in the turn in which counters are due, if nothing keeps the broker: it has not waited for
      // its whole time since the first one.
      await delay(SHOWN_EVERY_MS / 3);
      await writer.write("nobody's", 1);
      await delay((SHOWN_EVERY_MS * 2) / 3);
      await writer.write("nobody's", 1);
      const first = await shown(weir, writer.events);
      const next = await shown(weir, writer.events, first);
      assert.deepEqual([first.wakes, first.spared], [next.wakes, next.spared]);
    }
  });
});

test('a gateway with stream triggers is woken for every event', async () => {
  await withWeir({}, async (weir, later) => {
    const pids = weir.gateways();
    const workers = [];
    for (const pid of pids) workers.push(later(await weir.openOn(pid, () => RawWorker.open(weir.workerUrl))));
    const writer = new Writer(weir, workers[0]);
    const seen = [0, 0];
    for (const [index, worker] of workers.entries()) {
      worker.register(`app::seen${index}`, () => {
        seen[index] += 1;
        return { result: null };
      });
      worker.send({
        type: 'registertrigger', id: `t${index}`, trigger_type: 'stream', function_id: `app::seen${index}`, config: { stream_name: STREAM },
      });
      await worker.ping();
    }
    await until(async () => {
      await writer.write('warm', 1);
      return seen[0] > 0 && seen[1] > 0;
    }, 'the triggers are there');
    assert.equal((await writer.costs('any')).spared, 0);
    for (const [index, worker] of workers.entries()) worker.send({ type: 'unregistertrigger', id: `t${index}`, trigger_type: 'stream' });
    await until(async () => (await writer.costs('any')).wakes === 0, 'nobody wants it any more');
  });
});

test('a gateway that sleeps through much is woken before the ring laps it', async () => {
  await withWeir({ settings: { ring_bytes: '1MiB' } }, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    const writer = new Writer(weir, worker);
    const text = 'x'.repeat(8192);
    await until(async () => {
      await Promise.all(Array.from({ length: 40 }, () => writer.write('g', 1, text)));
      return (await shown(weir, writer.events)).wakes > 0;
    }, 'somebody is woken');
  });
});

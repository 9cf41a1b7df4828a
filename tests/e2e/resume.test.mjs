// resume.test.mjs -- a subscriber that was there before goes on from its position: on any gateway, after the death of a gateway or
// of the broker, with every event in between and none twice; where that cannot be, a sync says so.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { counted, counters } from './lib/follower.mjs';
import { codeOf, openSdkWorker } from './lib/sdk.mjs';
import { EventStream } from './lib/sse.mjs';
import { seededRandom, temporaryDirectory, until, withWeir } from './lib/weir.mjs';

const set = (worker, item, data, group = 'g') =>
  worker.result('stream::set', { stream_name: 's', group_id: group, item_id: item, data });
const openStream = (weir, target = '') => Subscriber.open(weir.streamUrl + target);

// In one answer: another may come from the other gateway, with older figures of this one.
async function resumedWithSyncs(weir, resumes, syncs) {
  let figures;
  await until(async () => (figures = await counters(weir)).resumes === resumes, `${resumes} have resumed`).catch((error) => assert.fail(`${error.message}, but ${figures.resumes}`));
  assert.equal(figures.syncs, syncs, 'nobody else read the store');
}

// The first envelope greets with the position, and every event behind it up to `last` is there, once and in order.
async function assertResumed(subscriber, { epoch, since }, last) {
  await subscriber.waitFor(() => (subscriber.envelopes.at(-1)?.seq ?? -1) >= last, `event ${last}`);
  const [greeting, ...events] = subscriber.envelopes;
  assert.deepEqual(greeting.event, { type: 'resumed' }, JSON.stringify(greeting));
  assert.deepEqual([greeting.epoch, greeting.seq], [epoch, since]);
  assert.deepEqual(events.map(({ seq }) => seq), Array.from({ length: last - since }, (_, index) => since + 1 + index));
  events.forEach((envelope) => assert.equal(envelope.epoch, epoch));
}

async function assertExpired(subscriber, what) {
  const [sync] = await subscriber.count(1);
  assert.deepEqual([sync.event.type, sync.reason], ['sync', 'expired'], what);
  return sync;
}

test('on either gateway, by a join and by the path, however the numbers are written', async () => {
  await withWeir({}, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    for (let i = 1; i <= 10; i += 1) await set(worker, `m${i % 3}`, i);
    const first = await openStream(weir);
    await first.joined('s', 'g');
    const position = first.position;
    await first.close();
    for (let i = 11; i <= 20; i += 1) await set(worker, `m${i % 3}`, i);
    await counted(weir, 'syncs', 1);
    for (const [, [subscriber]] of await weir.openOnEach(() => openStream(weir))) {
      later(subscriber).join('s', 'g', position);
      await assertResumed(subscriber, position, 20);
    }
    const texts = later(await openStream(weir));
    texts.join('s', 'g', { epoch: String(position.epoch), since: String(position.since), mode: 'lossless' });
    await assertResumed(texts, position, 20);
    const byPath = later(await openStream(weir, `/stream/s/g?token=x&epoch=${position.epoch}&since=%31${String(position.since).slice(1)}&mode=latest&epo=1`));
    await assertResumed(byPath, position, 20);
    const newest = later(await openStream(weir));
    newest.join('s', 'g', { epoch: position.epoch, since: 20 });
    await assertResumed(newest, { epoch: position.epoch, since: 20 }, 20);
    await set(worker, 'm', 21); // and they are all live
    for (const subscriber of [texts, byPath, newest]) await subscriber.waitFor(() => subscriber.envelopes.at(-1).seq === 21, 'the next event');
    await resumedWithSyncs(weir, 5, 1);
    // null is as if it was not there
    const fresh = later(await openStream(weir));
    fresh.join('s', 'g', { epoch: null, since: null, mode: null });
    assert.deepEqual([(await fresh.count(1))[0].event.type, fresh.envelopes[0].reason], ['sync', undefined]);
  });
});

test('what is wrong with a position or a mode is told, and the socket goes on', async () => {
  await withWeir({ gateways: 1 }, async (weir, later) => {
    const subscriber = later(await openStream(weir));
    const position = /epoch and since are whole numbers/;
    const wrongs = [
      [{ epoch: 1 }, position], [{ since: 1 }, position], [{ epoch: 1, since: null }, position],
      [{ epoch: -1, since: 1 }, position], [{ epoch: 1, since: 1.5 }, position], [{ epoch: 1, since: '' }, position],
      [{ epoch: 1, since: '1 ' }, position], [{ epoch: '18446744073709551616', since: 0 }, position],
      [{ epoch: true, since: 0 }, position], [{ epoch: [1], since: 0 }, position],
      [{ mode: 'fast' }, /mode is latest, lossless or disconnect/], [{ mode: 1 }, /mode/], [{ mode: '' }, /mode/],
    ];
    for (const [words, reason] of wrongs) {
      const before = subscriber.envelopes.length;
      subscriber.join('s', 'g', { id: 'i', ...words });
      await subscriber.count(before + 1);
      const { event, reason: said, streamName, groupId, id } = subscriber.envelopes[before];
      assert.deepEqual([event, streamName, groupId, id], [{ type: 'unauthorized' }, 's', 'g', 'i'], JSON.stringify(words));
      assert.match(said, reason);
    }
    await counted(weir, 'joins_refused', wrongs.length);
    subscriber.join('s', 'g', { epoch: '18446744073709551615', since: '18446744073709551615' });
    await subscriber.count(wrongs.length + 1);
    assert.equal(subscriber.envelopes.at(-1).reason, 'expired');
    subscriber.send({ type: 'leave', data: { subscriptionId: 's1', streamName: 's', groupId: 'g', mode: 7 } });
    await subscriber.ping();
    for (const query of ['epoch=1', 'epoch=1&since=x', 'mode=fast', 'since=%zz']) {
      const refused = await new Promise((resolve, reject) => {
        fetch(`http://127.0.0.1:${weir.streamPort}/stream/s/g?${query}`).catch(reject);
        openStream(weir, `/stream/s/g?${query}`).then(reject, resolve);
      });
      assert.match(String(refused), /400/, query);
    }
  });
});

test('an old position, one of another life, and one that has not been, are told "expired"', async () => {
  await withWeir({ settings: { ring_bytes: '1MiB' } }, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    await set(worker, 'm', 0);
    const first = later(await openStream(weir));
    const { epoch } = await first.joined('s', 'g');
    for (let i = 1; i <= 200; i += 1) await set(worker, 'm', 'x'.repeat(10000));
    for (const [position, what] of [
      [{ epoch, since: 1 }, 'lapped'],
      [{ epoch, since: 202 }, 'not yet'],
      [{ epoch: epoch - 1, since: 200 }, 'an older life'],
      [{ epoch: epoch + 1, since: 200 }, 'a later life'],
      [{ epoch: 0, since: 0 }, 'no life'],
    ]) {
      const subscriber = later(await openStream(weir));
      subscriber.join('s', 'g', position);
      assert.equal((await assertExpired(subscriber, what)).seq, 201);
    }
    const near = later(await openStream(weir));
    near.join('s', 'g', { epoch, since: 190 });
    await assertResumed(near, { epoch, since: 190 }, 201);
    await counted(weir, 'resumes_expired', 5);
    await counted(weir, 'resumes', 1);
    // A group nobody has written to: its own position is right, too.
    const empty = await openStream(weir);
    await empty.joined('s', 'empty');
    const position = empty.position;
    await empty.close();
    await set(worker, 'a', 1, 'empty');
    await set(worker, 'b', 2, 'empty');
    const again = later(await openStream(weir));
    again.join('s', 'empty', position);
    await assertResumed(again, position, 2);
  });
});

test('single items go on too, and several subscriptions of a socket from one position', async () => {
  await withWeir({ gateways: 1 }, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    for (const item of ['a', 'b']) await set(worker, item, 0);
    const first = await openStream(weir);
    await first.joined('s', 'g', { id: 'a' });
    const position = first.position;
    await first.close();
    for (let i = 1; i <= 6; i += 1) await set(worker, i % 2 ? 'a' : 'b', i);
    const subscriber = later(await openStream(weir));
    subscriber.socket._socket.cork(); // in one piece, so that the first has not moved on when the second comes
    subscriber.join('s', 'g', { id: 'a', subscriptionId: 'one', ...position });
    subscriber.join('s', 'g', { id: 'b', subscriptionId: 'two', ...position });
    subscriber.socket._socket.uncork();
    await subscriber.waitFor(() => subscriber.envelopes.at(-1)?.seq === 8, 'all of it');
    const greetings = subscriber.envelopes.filter(({ event }) => event.type === 'resumed');
    assert.deepEqual(greetings.map(({ id }) => id), ['a', 'b']);
    assert.deepEqual(subscriber.envelopes.filter(({ event }) => event.type === 'update').map(({ id, seq }) => [id, seq]),
      [['a', 3], ['b', 4], ['a', 5], ['b', 6], ['a', 7], ['b', 8]]);
    // The link has moved on: another one cannot go back.
    subscriber.join('s', 'g', { subscriptionId: 'three', ...position });
    await subscriber.waitFor(() => subscriber.syncs.length === 1, 'its sync');
    assert.equal(subscriber.syncs[0].reason, 'expired');
    subscriber.join('s', 'g', { subscriptionId: 'four', epoch: position.epoch, since: 8 });
    await subscriber.waitFor(() => subscriber.envelopes.filter(({ event }) => event.type === 'resumed').length === 3, 'it is where the link is');
    await set(worker, 'c', 9);
    await subscriber.waitFor(() => subscriber.envelopes.at(-1).seq === 9, 'the next event');
    assert.equal(subscriber.envelopes.filter(({ seq, event }) => seq === 9 && event.type === 'create').length, 1);
  });
});

test('kill -9 of a gateway: its subscribers go on at the other one, nothing lost or repeated', async () => {
  await withWeir({}, async (weir, later) => {
    const random = seededRandom('resume elsewhere');
    const workers = [...(await weir.openOnEach(() => RawWorker.open(weir.workerUrl))).entries()];
    const [victim, survivor] = workers.map(([pid]) => pid);
    const worker = later(workers[1][1][0]);
    await set(worker, 'm0', 0);
    const subscribers = [];
    for (let i = 0; i < 5; i += 1) subscribers.push(await weir.openOn(victim, () => openStream(weir)));
    for (const subscriber of subscribers) await subscriber.joined('s', 'g');
    let written = 1;
    const write = async (count) => {
      for (let i = 0; i < count; i += 1, written += 1) await set(worker, `m${random.below(5)}`, written);
    };
    await write(50);
    const writing = write(300);
    process.kill(victim, 'SIGKILL');
    await Promise.all(subscribers.map((subscriber) => subscriber.closing));
    for (const subscriber of subscribers) {
      const { position } = subscriber;
      const again = later(await weir.openOn(survivor, () => openStream(weir)));
      again.join('s', 'g', position);
      await writing;
      await assertResumed(again, position, written);
    }
    await workers[0][1][0].close();
  });
});

for (const isKept of [true, false]) {
  test(`kill -9 of the broker, ${isKept ? 'with a log: positions stay good' : 'without one: they are expired'}`, async () => {
    const directory = temporaryDirectory();
    try {
      const settings = isKept ? { data_dir: path.join(directory, 'data'), durability: 'written' } : {};
      await withWeir({ settings }, async (weir, later) => {
        let worker = later(await RawWorker.open(weir.workerUrl));
        for (let i = 1; i <= 10; i += 1) await set(worker, 'm', i);
        const first = await openStream(weir);
        await first.joined('s', 'g');
        const position = first.position;
        await first.close();
        for (let i = 11; i <= 15; i += 1) await set(worker, 'm', i);
        const victim = weir.broker();
        process.kill(victim, 'SIGKILL');
        const meanwhile = later(await openStream(weir)); // served from what is mapped, or once the next broker is there
        meanwhile.join('s', 'g', position);
        await weir.brokerAfter(victim);
        await until(async () => (await set(worker, 'm', 16).then(() => true, () => false)), 'a write');
        const again = later(await openStream(weir));
        again.join('s', 'g', position);
        if (isKept) {
          await assertResumed(again, position, 16);
          await assertResumed(meanwhile, position, 16);
        } else {
          await again.count(1);
          if (again.envelopes[0].event.type === 'resumed') { // its gateway had not heard of the new broker yet
            await again.waitFor(() => again.envelopes.at(-1).event.type === 'sync', 'the new broker\'s items');
            assert.equal(again.envelopes.at(-1).reason, 'restarted');
          } else await assertExpired(again);
          await again.waitFor(() => /16/.test(JSON.stringify(again.envelopes.at(-1).event.data)), 'the newest');
        }
      });
    } finally {
      fs.rmSync(directory, { recursive: true, force: true });
    }
  });
}

test('a gate that denies gives nothing, one that passes lets it go on, with the auth context', async () => {
  await withWeir({ settings: { auth_function: 'app::auth' } }, async (weir, later) => {
    const worker = later(await openSdkWorker(weir.workerUrl));
    worker.registerFunction('app::auth', async (input) => ({ context: { who: input.query_params.who?.[0] ?? 'nobody' } }));
    worker.registerFunction('app::gate', async (join) => ({ unauthorized: join.context.who !== 'friend' }));
    worker.registerFunction('app::up', async () => true);
    await until(async () => (await codeOf(worker.trigger({ function_id: 'app::up', payload: {} }))) === undefined, 'the worker is there');
    const writer = later(await RawWorker.open(weir.workerUrl));
    for (let i = 1; i <= 5; i += 1) await set(writer, 'm', i);
    const first = await openStream(weir, '/?who=friend');
    await first.joined('s', 'g');
    const { epoch } = first.position;
    await first.close();
    worker.registerTrigger({ type: 'stream:join', function_id: 'app::gate', config: { stream_name: 's' } });
    for (const [, [probe]] of await weir.openOnEach(() => openStream(weir))) {
      await until(async () => {
        probe.join('s', 'probe');
        const before = probe.envelopes.length;
        await probe.count(before + 1);
        return probe.envelopes.at(-1).event.type === 'unauthorized';
      }, 'the gate is known');
      await probe.close();
    }
    const foe = later(await openStream(weir, '/?who=foe'));
    foe.join('s', 'g', { epoch, since: 2, mode: 'lossless' });
    await foe.count(1);
    assert.deepEqual([foe.envelopes[0].event.type, foe.envelopes[0].reason], ['unauthorized', undefined]);
    const path = await openStream(weir, `/stream/s/g?who=foe&epoch=${epoch}&since=2`);
    await path.closing;
    assert.equal(path.closed.code, 4403);
    assert.ok(path.envelopes.every(({ event }) => event.type === 'unauthorized'));
    for (const target of ['/?who=friend', `/stream/s/g?who=friend&epoch=${epoch}&since=2`]) {
      const friend = later(await openStream(weir, target));
      if (target.startsWith('/?')) friend.join('s', 'g', { epoch, since: 2 });
      await assertResumed(friend, { epoch, since: 2 }, 5);
    }
  });
});

test("a worker's own stream goes on from the ring", async () => {
  await withWeir({}, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    const items = new Map();
    let reads = 0;
    const own = (name, handler) => worker.register(`stream::${name}(own)`, ({ data }) => ({ result: handler(data) }));
    own('get', ({ item_id: id }) => (reads += 1, items.get(id) ?? null));
    own('set', ({ item_id: id, data }) => {
      const old = items.get(id) ?? null;
      items.set(id, data);
      return { old_value: old, new_value: data };
    });
    own('delete', ({ item_id: id }) => ({ old_value: items.get(id) ?? null }));
    own('list', () => (reads += 1, [...items.values()]));
    own('list_groups', () => ['g']);
    own('update', () => null);
    // An answer to the listing comes behind what the broker has told the gateway of these functions.
    for (const [caller] of (await weir.openOnEach(() => RawWorker.open(weir.workerUrl))).values()) {
      later(caller);
      await until(async () => (await caller.result('engine::functions::list', { search: '(own)' })).functions.length === 6, 'the functions are known');
    }
    const put = (item, data) => worker.result('stream::set', { stream_name: 'own', group_id: 'g', item_id: item, data });
    await put('a', 1);
    const first = await openStream(weir);
    await first.joined('own', 'g');
    const position = first.position;
    await first.close();
    await put('a', 2);
    await put('b', 3);
    const before = reads;
    const again = later(await openStream(weir));
    again.join('own', 'g', position);
    await assertResumed(again, position, position.since + 2);
    assert.equal(reads, before, 'the worker was not asked');
  });
});

test('a hundred come back at once, each from its own position: all are live again, none reads the store', async () => {
  await withWeir({}, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    for (let i = 1; i <= 100; i += 1) await set(worker, 'm', i);
    const first = await openStream(weir);
    await first.joined('s', 'g');
    const { epoch } = first.position;
    await first.close();
    await counted(weir, 'syncs', 1);
    const subscribers = [];
    for (let i = 0; i < 100; i += 1) subscribers.push(later(await openStream(weir)));
    subscribers.forEach((subscriber, since) => subscriber.join('s', 'g', { epoch, since }));
    for (const [since, subscriber] of subscribers.entries()) if (since > 0) await assertResumed(subscriber, { epoch, since }, 100);
    await set(worker, 'm', 101);
    for (const subscriber of subscribers) await subscriber.waitFor(() => subscriber.envelopes.at(-1)?.seq === 101, 'the next event');
    await resumedWithSyncs(weir, 100, 1);
  });
});

test('event streams and sockets share positions', async () => {
  await withWeir({}, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    for (let i = 1; i <= 3; i += 1) await set(worker, 'm', i);
    const stream = later(await EventStream.open(weir.streamPort, '/sse/s/g'));
    await stream.count(1);
    const [epoch, since] = stream.lastId.split('-').map(Number);
    await set(worker, 'm', 4);
    const socket = later(await openStream(weir));
    socket.join('s', 'g', { epoch, since });
    await assertResumed(socket, { epoch, since }, 4);
  });
});

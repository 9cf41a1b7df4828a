// update.test.mjs -- stream::update on the wire: exact results, events, refusals, and its order among other writes.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { codeOf, openSdkClient } from './lib/sdk.mjs';
import { Weir, isSanitized } from './lib/weir.mjs';

const COUNTER_WORKERS = 8;
const COUNTER_INCREMENTS = isSanitized ? 1000 : 10000; // of each
const WINDOW = 200;

let weir;
let here; // a raw worker on one gateway
let there; // and one on the other
const open = [];

before(async () => {
  weir = await Weir.start();
  [[here], [there]] = [...(await weir.openOnEach(() => RawWorker.open(weir.workerUrl))).values()];
  open.push(here, there);
});
after(async () => {
  await Promise.all(open.map((client) => client.close()));
  await weir?.stop();
});

const at = (group_id, item_id, ops) => ({ stream_name: 'update', group_id, item_id, ops });
const update = (worker, group, item, ops) => worker.call('stream::update', at(group, item, ops));
const eventOf = ({ id, event }) => ({ id, event });

// covers: A.3, 3#8
test('a failing operation leaves the others in force and is told with its index', async () => {
  await here.set('update', 'a3', 'i', { n: 4 });
  const { result } = await update(there, 'a3', 'i', [{ type: 'increment', path: 'n', by: 1 }, { type: 'append', path: 'n', value: 'x' }]);
  assert.deepEqual({ ...result, errors: undefined }, { old_value: { n: 4 }, new_value: { n: 5 }, errors: undefined });
  assert.equal(result.errors.length, 1);
  assert.equal(result.errors[0].op_index, 1);
  assert.equal(result.errors[0].code, 'append.type_mismatch');
  assert.equal(typeof result.errors[0].message, 'string');
  assert.deepEqual(await here.call('stream::get', at('a3', 'i')), { result: { n: 5 } });
});

// covers: 3.1#3, 3#8
test('every update is a create or an update with the resulting value, also without effect', async () => {
  const subscriber = await Subscriber.open(weir.streamUrl);
  open.push(subscriber);
  await subscriber.joined('update', 'events');
  assert.deepEqual(await update(here, 'events', 'i', []), { result: { old_value: null, new_value: {} } });
  assert.deepEqual(await update(there, 'events', 'i', []), { result: { old_value: {}, new_value: {} } });
  const failed = await update(here, 'events', 'i', [{ type: 'increment', path: '', by: 1 }]);
  assert.deepEqual(failed.result.new_value, {});
  assert.deepEqual(failed.result.errors.map(({ op_index, code }) => ({ op_index, code })), [{ op_index: 0, code: 'increment.not_number' }]);
  await update(here, 'events', 'i', [{ type: 'set', path: 'a.b', value: [1] }, { type: 'merge', path: ['x', 'y'], value: { z: null } }]);
  const fresh = await update(there, 'events', 'new', [{ type: 'increment', path: '', by: 3 }, { type: 'append', value: 'no' }]);
  assert.deepEqual([fresh.result.old_value, fresh.result.new_value, fresh.result.errors.length], [null, 3, 1]);
  await subscriber.count(6);
  assert.deepEqual(subscriber.events.map(eventOf), [
    { id: 'i', event: { type: 'create', data: {} } },
    { id: 'i', event: { type: 'update', data: {} } },
    { id: 'i', event: { type: 'update', data: {} } },
    { id: 'i', event: { type: 'update', data: { 'a.b': [1], x: { y: { z: null } } } } },
    { id: 'new', event: { type: 'create', data: 3 } },
  ]);
});

// covers: 3#8, 3.1#8, 2.9#2
test('operations that cannot be read refuse the whole call: no effect, no event', async () => {
  const subscriber = await Subscriber.open(weir.streamUrl);
  open.push(subscriber);
  await here.set('update', 'bad', 'i', { n: 1 });
  await subscriber.joined('update', 'bad');
  const bad = [
    undefined, null, {}, 'text', 7, [1], [null], [[]], [{}], [{ type: 'Set', path: 'n' }], [{ type: 'set' }], [{ type: 'set', path: ['n'], value: 1 }],
    [{ type: 'increment', path: 'n' }], [{ type: 'increment', path: 'n', by: 1.5 }], [{ type: 'increment', path: 'n', by: '1' }],
    [{ type: 'merge', path: '' }], [{ type: 'append', path: 7, value: 1 }], [{ type: 'remove' }],
    [{ type: 'increment', path: 'n', by: 1 }, { type: 'nope' }],
  ];
  for (const ops of bad) {
    const { error } = await update(here, 'bad', 'i', ops);
    assert.equal(error?.code, 'deserialization_error', JSON.stringify(ops));
    assert.match(error.message, /^stream::update: /, 'the function is named');
  }
  assert.match((await update(here, 'bad', 'i', undefined)).error.message, /ops/);
  assert.equal((await here.call('stream::update', { stream_name: 'update', group_id: 'bad', ops: [] })).error.code, 'deserialization_error');
  assert.deepEqual(await update(here, 'bad', 'i', [{ type: 'increment', path: 'n', by: 1, more: true }]), { result: { old_value: { n: 1 }, new_value: { n: 2 } } });
  await subscriber.count(2);
  assert.deepEqual(eventOf(subscriber.events[0]), { id: 'i', event: { type: 'update', data: { n: 2 } } });
});

test('a new value beyond its limit is STREAM_UPDATE_ERROR and changes nothing', async () => {
  const small = await Weir.start({ gateways: 1, settings: { value_bytes_max: '1KiB' } });
  try {
    const worker = await RawWorker.open(small.workerUrl);
    await worker.set('update', 'g', 'i', ['x'.repeat(600)]);
    const { error } = await update(worker, 'g', 'i', [{ type: 'append', value: 'y'.repeat(600) }]);
    assert.equal(error.code, 'STREAM_UPDATE_ERROR');
    assert.match(error.message, /larger/);
    assert.equal((await update(worker, 'g', 'i', [{ type: 'set', path: '', value: 'z'.repeat(2100) }])).error.code, 'STREAM_UPDATE_ERROR');
    assert.deepEqual((await worker.call('stream::get', at('g', 'i'))).result, ['x'.repeat(600)]);
    await worker.close();
  } finally {
    await small.stop();
  }
});

test('the published SDK sends updates and reads their results', async () => {
  const { worker, close } = await openSdkClient(weir.workerUrl);
  const call = (payload) => worker.trigger({ function_id: 'stream::update', payload });
  assert.deepEqual(await call(at('sdk', 'i', [{ type: 'merge', value: { a: 1 } }])), { old_value: null, new_value: { a: 1 } });
  assert.equal(await codeOf(call(at('sdk', 'i', [{ type: 'what' }]))), 'deserialization_error');
  await close();
});

// covers: 3.1#3
test(`${COUNTER_WORKERS} workers add ${COUNTER_INCREMENTS} each: nothing is lost`, async () => {
  const workers = [...(await weir.openOnEach(() => RawWorker.open(weir.workerUrl), COUNTER_WORKERS / 2)).values()].flat();
  open.push(...workers);
  const seen = new Set();
  await Promise.all(workers.map(async (worker) => {
    let left = COUNTER_INCREMENTS;
    const lane = async () => {
      while (left > 0) {
        left -= 1;
        const { result } = await update(worker, 'counter', 'i', [{ type: 'increment', path: '', by: 1 }]);
        seen.add(result.new_value);
      }
    };
    await Promise.all(Array.from({ length: WINDOW }, lane));
  }));
  const total = COUNTER_WORKERS * COUNTER_INCREMENTS;
  assert.deepEqual(await here.call('stream::get', at('counter', 'i')), { result: total });
  assert.equal(seen.size, total, 'each call saw a value of its own');
});

// covers: 3.1#1, 3.1#2, 3.1#3, 3.1#4, 3.1#6
test('updates keep their place among the other writes of their group', async () => {
  const [[left], [right]] = [...(await weir.openOnEach(() => Subscriber.open(weir.streamUrl))).values()];
  open.push(left, right);
  for (const subscriber of [left, right]) await subscriber.joined('update', 'mixed');
  const answers = [];
  const events = [];
  for (let n = 0; n < 100; n += 1) {
    answers.push(here.set('update', 'mixed', 'i', { n }));
    answers.push(update(here, 'mixed', 'i', [{ type: 'increment', path: 'n', by: 1000 }]));
    answers.push(here.call('stream::send', { stream_name: 'update', group_id: 'mixed', type: 'tick', data: n }));
    answers.push(here.call('stream::delete', at('mixed', 'i')));
    events.push({ id: 'i', event: { type: 'create', data: { n } } }, { id: 'i', event: { type: 'update', data: { n: n + 1000 } } },
      { id: null, event: { type: 'event', event: { type: 'tick', data: n } } }, { id: 'i', event: { type: 'delete', data: { n: n + 1000 } } });
  }
  await Promise.all(answers);
  for (const subscriber of [left, right]) {
    await subscriber.count(401);
    assert.deepEqual(subscriber.events.map(eventOf), events);
    subscriber.events.forEach(({ seq }, index) => assert.equal(seq, subscriber.syncs[0].seq + index + 1));
    assert.ok(subscriber.envelopes.every(({ timestamp }, index, all) => index === 0 || timestamp > all[index - 1].timestamp), 'stamps rise');
  }
});

// triggers.test.mjs -- `stream` triggers: what an event matches, what the handler is given, in which order, and what becomes of
// handlers that are slow, throw, say nothing or go away. The owner of a trigger, its handler and the writer are on any gateway.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { openSdkClient, openSdkWorker } from './lib/sdk.mjs';
import { Weir, delay, isSanitized, until } from './lib/weir.mjs';

let weir;
let here; // an SDK worker on one gateway
let there; // and one on the other
const clients = [];

before(async () => {
  weir = await Weir.start({ settings: { trigger_timeout_ms: 600000 } }); // for handlers that are held
  const found = await weir.openOnEach(() => openSdkClient(weir.workerUrl));
  [[here], [there]] = [...found.values()].map((each) => each.map(({ worker }) => worker));
  clients.push({ close: () => here.shutdown() }, { close: () => there.shutdown() });
});

after(async () => {
  await Promise.all(clients.map((client) => client.close()));
  await weir?.stop();
});

const call = (worker, name, payload) => worker.trigger({ function_id: `stream::${name}`, payload });
const set = (worker, stream_name, group_id, item_id, data) => call(worker, 'set', { stream_name, group_id, item_id, data });
const openRaw = async (on = weir) => {
  const raw = await RawWorker.open(on.workerUrl);
  clients.push(raw);
  return raw;
};
const openRawPair = async () => {
  const found = await weir.openOnEach(() => RawWorker.open(weir.workerUrl));
  const [[first], [second]] = [...found.values()];
  clients.push(first, second);
  return [first, second];
};

// A write travels behind what its connection said before, through gateway and broker: then all of that is in effect.
const settle = (worker) => (worker instanceof RawWorker ? worker.set('settle', 'g', 'i', 1) : set(worker, 'settle', 'g', 'i', 1));

let names = 0;
const fresh = (name) => `${name}${(names += 1)}`;

function bindRaw(worker, function_id, config, { id = fresh('trigger-'), ...rest } = {}) {
  worker.send({ type: 'registertrigger', id, trigger_type: 'stream', function_id, config, ...rest });
  return id;
}

// A function that keeps what it is given. `take(data, metadata)` may say what it answers.
function collect(worker, take = () => null) {
  const id = fresh('on::event');
  const seen = [];
  worker.registerFunction(id, async (data, metadata) => {
    seen.push({ data, metadata });
    return take(data, metadata);
  });
  return { id, seen, data: () => seen.map(({ data }) => data.event.data ?? data.event.event.data) };
}

async function bind(worker, handler, config, rest = {}) {
  const trigger = worker.registerTrigger({ type: 'stream', function_id: handler.id, config, ...rest });
  await settle(worker);
  return trigger;
}

// Waits until `seen` has so many: as long as more come, each has the time a thing may take.
async function arrived(seen, number, what) {
  for (let had = seen.length; had < number; had = seen.length) await until(() => seen.length > had, `${what}: ${had} of ${number} have come`);
}

// The figures of the other gateway may be a second old: wait for a value, do not ask once.
const metric = async (name, on = weir) => {
  const text = await on.metrics();
  return [...text.matchAll(new RegExp(`^weir_gateway_${name}(?:\\{[^}]*\\})? (\\d+)`, 'gm'))].reduce((sum, [, value]) => sum + Number(value), 0);
};

// Whatever fires wrongly would have been called before this event of another trigger of the same owner and handler.
async function nothingMore(owner, handlerWorker, writer) {
  const last = collect(handlerWorker);
  const stream = fresh('last');
  const trigger = await bind(owner, last, { stream_name: stream });
  await settle(handlerWorker);
  await set(writer, stream, 'g', 'i', 1);
  await arrived(last.seen, 1, 'the last event');
  trigger.unregister();
}

// covers: B#8, 2.3/2#2
test('create, update, delete and event reach a handler with the very text a subscriber gets', async () => {
  const [owner, executor] = await openRawPair();
  const subscriber = await Subscriber.open(weir.streamUrl);
  const stream = 'byte for "byte" \\ \u0001 é😀';
  executor.register('on::bytes', () => ({ result: null }));
  await settle(executor);
  bindRaw(owner, 'on::bytes', { stream_name: stream, unknown: [1] }, { metadata: { deep: { a: [1, null] }, text: 'm' } });
  await settle(owner);
  await subscriber.joined(stream, 'g/ü"');
  for (const data of [{ id: 'i', n: 1 }, [1.0, '\u0000', '18446744073709551615']]) await set(here, stream, 'g/ü"', 'i"\n', data);
  await call(there, 'delete', { stream_name: stream, group_id: 'g/ü"', item_id: 'i"\n' });
  await call(here, 'send', { stream_name: stream, group_id: 'g/ü"', type: 'typing', data: { who: 'é' } });
  await call(there, 'send', { stream_name: stream, group_id: 'g/ü"', id: 'i', type: 'typing', data: null });
  const text = `{"type":"invokefunction","invocation_id":"x","function_id":"stream::set","data":{"stream_name":${JSON.stringify(stream)},"group_id":"g/ü\\"","item_id":"big","data":18446744073709551615.0}}`;
  await owner.callText('x', text);
  await subscriber.count(7);
  await executor.waitFor(() => executor.invocations.length === 6, 'six invocations');
  const given = executor.texts.filter((each) => each.includes('"invokefunction"'));
  const pushed = subscriber.texts.slice(1);
  for (const [index, envelope] of pushed.entries()) {
    assert.ok(given[index].includes(`"data":${envelope}`), `${given[index]} holds ${envelope}`);
  }
  assert.deepEqual(executor.invocations.map(({ data }) => data.event.type), ['create', 'update', 'delete', 'event', 'event', 'create']);
  for (const message of executor.invocations) {
    assert.match(message.invocation_id, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
    assert.deepEqual(message.metadata, { deep: { a: [1, null] }, text: 'm' });
    assert.deepEqual(Object.keys(message).sort(), ['data', 'function_id', 'invocation_id', 'metadata', 'type']);
  }
  await subscriber.close();
});

test('group and item narrow a trigger; null and empty do not', async () => {
  const stream = fresh('match');
  const configs = {
    all: {}, nulls: { group_id: null, item_id: null }, empties: { group_id: '', item_id: '' },
    group: { group_id: 'g' }, item: { item_id: 'i' }, both: { group_id: 'g', item_id: 'i' }, quoted: { group_id: 'q"', item_id: '\\' },
  };
  const handlers = {};
  for (const [name, config] of Object.entries(configs)) {
    handlers[name] = collect(there);
    here.registerTrigger({ type: 'stream', function_id: handlers[name].id, config: { stream_name: stream, ...config } });
  }
  await settle(there);
  await settle(here);
  const writes = [['g', 'i'], ['g', 'j'], ['h', 'i'], ['h', 'j'], ['q"', '\\'], ['', ''], ['*', '*']];
  for (const [n, [group, item]] of writes.entries()) await set(n % 2 ? here : there, stream, group, item, n);
  await call(here, 'send', { stream_name: stream, group_id: 'g', type: 't', data: 7 });
  await call(here, 'send', { stream_name: stream, group_id: 'g', id: 'i', type: 't', data: 8 });
  await set(here, `${stream}x`, 'g', 'i', 99);
  await set(here, '', 'g', 'i', 99);
  const expected = {
    all: [0, 1, 2, 3, 4, 5, 6, 7, 8], nulls: [0, 1, 2, 3, 4, 5, 6, 7, 8], empties: [0, 1, 2, 3, 4, 5, 6, 7, 8],
    group: [0, 1, 7, 8], item: [0, 2, 8], both: [0, 8], quoted: [4],
  };
  await until(() => Object.keys(expected).every((name) => handlers[name].seen.length >= expected[name].length), 'every match');
  await nothingMore(here, there, here);
  for (const [name, numbers] of Object.entries(expected)) {
    assert.deepEqual(handlers[name].data().sort((a, b) => a - b), numbers, name);
  }
});

test('the empty stream name matches only itself', async () => {
  const handler = collect(there);
  const trigger = await bind(here, handler, { stream_name: '' });
  await settle(there);
  await set(there, fresh('named'), 'g', 'i', 1);
  await set(there, '', 'g', 'i', 2);
  await arrived(handler.seen, 1, 'the event');
  await nothingMore(here, there, there);
  assert.deepEqual(handler.data(), [2]);
  trigger.unregister();
});

test('a join, a sync and a write that changes nothing do not fire', async () => {
  const stream = fresh('silent');
  const handler = collect(here);
  await set(there, stream, 'g', 'i', 1);
  await bind(there, handler, { stream_name: stream });
  await settle(here);
  const subscriber = await Subscriber.open(weir.streamUrl);
  await subscriber.joined(stream, 'g');
  await call(here, 'delete', { stream_name: stream, group_id: 'g', item_id: 'missing' });
  await call(here, 'get', { stream_name: stream, group_id: 'g', item_id: 'i' });
  await nothingMore(there, here, there);
  assert.deepEqual(handler.seen, []);
  await subscriber.close();
});

test('a condition gets the payload without metadata, and only false skips', async () => {
  const stream = fresh('condition');
  const results = [undefined, null, 0, 'false', {}, [], true, false, 'last'];
  const asked = [];
  const condition = fresh('if::event');
  const handler = collect(there);
  here.registerFunction(condition, async (data, metadata) => {
    asked.push({ data, metadata });
    return results[data.event.data];
  });
  await settle(here);
  await settle(there);
  await bind(there, handler, { stream_name: stream, condition_function_id: condition }, { metadata: { m: 1 } });
  for (const n of results.keys()) await set(here, stream, 'g', `i${n}`, n);
  await arrived(handler.seen, results.length - 1, 'every event but one');
  assert.deepEqual(handler.data(), [0, 1, 2, 3, 4, 5, 6, 8]);
  assert.deepEqual(asked.map(({ data }) => data.event.data), [...results.keys()]);
  for (const { metadata } of asked) assert.equal(metadata ?? null, null);
  for (const { metadata } of handler.seen) assert.deepEqual(metadata, { m: 1 });
  const [{ data: first }] = asked;
  assert.deepEqual(handler.seen[0].data, first, 'both get the same');
  await until(async () => (await metric('trigger_skipped_total')) >= 1, 'the skip is counted');
});

test('a condition that throws or is missing skips the handler, and the next event follows', async () => {
  const stream = fresh('condition-fails');
  const before = await metric('trigger_failed_total');
  const handler = collect(there);
  const condition = fresh('if::throws');
  here.registerFunction(condition, async ({ event }) => {
    if (event.data === 0) throw new Error('no');
  });
  await settle(here);
  await settle(there);
  await bind(there, handler, { stream_name: stream, condition_function_id: condition });
  const missing = collect(there);
  await bind(there, missing, { stream_name: stream, condition_function_id: 'nobody::has::this' });
  for (const n of [0, 1]) await set(here, stream, 'g', 'i', n);
  await arrived(handler.seen, 1, 'the event whose condition did not throw');
  await until(async () => (await metric('trigger_failed_total')) >= before + 3, 'three failures are counted');
  assert.deepEqual(handler.data(), [1]);
  assert.deepEqual(missing.seen, []);
});

test('1,000 writes to one group arrive in order, one at a time; groups do not wait for each other', async () => {
  const stream = fresh('order');
  const size = isSanitized ? 300 : 1000;
  const running = new Map();
  let most = 0;
  let met;
  const others = new Promise((resolve) => (met = resolve));
  const handler = collect(there, async (data) => {
    const now = (running.get(data.groupId) ?? 0) + 1;
    running.set(data.groupId, now);
    most = Math.max(most, now);
    if (data.seq % 50 === 0) await delay(2);
    // Group a is held at its first event until both others have been given theirs.
    if (data.groupId === 'a') await others;
    else if (['b', 'c'].every((group) => running.has(group))) met();
    running.set(data.groupId, running.get(data.groupId) - 1);
  });
  await settle(there);
  await bind(here, handler, { stream_name: stream });
  const writers = await openRawPair();
  const writes = [];
  for (let n = 0; n < size; n += 1) {
    for (const group of ['a', 'b', 'c']) writes.push(writers[n % 2].set(stream, group, `i${n % 10}`, n));
  }
  for (const answer of await Promise.all(writes)) assert.equal(answer.error, undefined);
  await arrived(handler.seen, 3 * size, 'every event');
  for (const group of ['a', 'b', 'c']) {
    const seqs = handler.seen.filter(({ data }) => data.groupId === group).map(({ data }) => data.seq);
    assert.deepEqual(seqs, Array.from({ length: size }, (_, index) => index + 1), group);
  }
  assert.equal(most, 1, 'one at a time');
});

test('a slow handler delays neither the writer, nor another trigger, nor another group of its own', async () => {
  const stream = fresh('slow');
  let release;
  const released = new Promise((resolve) => (release = resolve));
  const slow = collect(there, ({ groupId }) => (groupId === 'g' ? released : null));
  const fast = collect(there);
  await settle(there);
  await bind(here, slow, { stream_name: stream });
  await bind(here, fast, { stream_name: stream });
  for (let n = 0; n < 50; n += 1) await set(here, stream, 'g', 'i', n); // each answered while the slow one is busy
  await set(here, stream, 'other', 'i', 'x');
  await arrived(fast.seen, 51, 'the fast trigger has everything');
  await arrived(slow.seen, 2, 'the slow one has one event of each group');
  assert.deepEqual(slow.data().sort(), [0, 'x']);
  release(null);
  await arrived(slow.seen, 51, 'the rest follows');
  assert.deepEqual(slow.data().filter((each) => each !== 'x'), Array.from({ length: 50 }, (_, n) => n));
});

test('a handler that throws or is missing is counted, and the next event follows', async () => {
  const stream = fresh('throws');
  const before = await metric('trigger_failed_total');
  const handler = collect(there, ({ event }) => {
    if (event.data % 2 === 0) throw new Error('even');
    return 'ignored';
  });
  await settle(there);
  await bind(here, handler, { stream_name: stream });
  await bind(here, { id: 'nobody::has::this' }, { stream_name: stream });
  for (let n = 0; n < 10; n += 1) await set(here, stream, 'g', 'i', n);
  await arrived(handler.seen, 10, 'every event');
  assert.deepEqual(handler.data(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  await until(async () => (await metric('trigger_failed_total')) >= before + 15, 'fifteen failures are counted');
});

test('a handler that never answers is given up after trigger_timeout_ms', async () => {
  const own = await Weir.start({ settings: { trigger_timeout_ms: 200 } });
  const worker = await RawWorker.open(own.workerUrl);
  try {
    worker.register('on::silent', () => undefined);
    bindRaw(worker, 'on::silent', { stream_name: 's' });
    await settle(worker);
    for (let n = 0; n < 3; n += 1) await worker.set('s', 'g', 'i', n);
    await worker.waitFor(() => worker.invocations.length === 3, 'three invocations');
    assert.deepEqual(worker.invocations.map(({ data }) => data.seq), [1, 2, 3]);
    await until(async () => (await metric('trigger_failed_total', own)) === 3, 'three failures are counted');
    // An answer that comes too late meets nobody.
    for (const { invocation_id, function_id } of worker.invocations) worker.send({ type: 'invocationresult', invocation_id, function_id, result: 1 });
    await worker.ping();
    assert.equal(await metric('trigger_handled_total', own), 0);
    await until(() => /event=trigger_failed count=\d+ function="on::silent" reason="no answer within trigger_timeout_ms"/.test(own.stderr), 'the log says so');
  } finally {
    await worker.close();
    await own.stop();
  }
});

test('more than trigger_queue_max events are dropped, counted and logged', async () => {
  const own = await Weir.start({ settings: { trigger_queue_max: 10, trigger_timeout_ms: 600000 } });
  const worker = await RawWorker.open(own.workerUrl);
  try {
    worker.register('on::busy', () => undefined);
    bindRaw(worker, 'on::busy', { stream_name: 's' });
    await settle(worker);
    await Promise.all(Array.from({ length: 50 }, (_, n) => worker.set('s', 'g', 'i', n)));
    await until(async () => (await metric('trigger_dropped_total', own)) === 40, 'forty drops are counted');
    await until(async () => (await metric('trigger_queued', own)) === 10, 'ten are kept');
    for (let n = 0; n < 10; n += 1) {
      await worker.waitFor(() => worker.invocations.length === n + 1, `invocation ${n}`);
      const { invocation_id, function_id, data } = worker.invocations[n];
      assert.equal(data.seq, n + 1, 'the oldest are kept');
      worker.send({ type: 'invocationresult', invocation_id, function_id });
    }
    await until(async () => (await metric('trigger_queued', own)) === 0, 'nothing waits');
    await until(() => /event=trigger_events_dropped count=\d+ function="on::busy" reason="too many events wait"/.test(own.stderr), 'the log says so');
  } finally {
    await worker.close();
    await own.stop();
  }
});

test('the handler\'s worker disconnects mid-call: that event has failed, later ones reach the next worker', async () => {
  const stream = fresh('gone');
  const before = await metric('trigger_failed_total');
  const doomed = await openRaw();
  doomed.register('on::gone', () => undefined);
  await settle(doomed);
  await bind(here, { id: 'on::gone' }, { stream_name: stream });
  await set(there, stream, 'g', 'i', 0);
  await doomed.waitFor(() => doomed.invocations.length === 1, 'the first event');
  doomed.socket.terminate();
  await until(async () => (await metric('trigger_failed_total')) >= before + 1, 'its call has ended');
  const next = await openRaw();
  next.register('on::gone', () => ({ result: null }));
  await settle(next);
  await set(there, stream, 'g', 'i', 1);
  await next.waitFor(() => next.invocations.length === 1, 'the second event');
  assert.equal(next.invocations[0].data.event.data, 1, 'delivered at most once');
});

// covers: 2.3/1#7, 2.3/1#8
test('registering an id again replaces it, unregistering stops it, a closed owner takes its triggers along', async () => {
  const stream = fresh('again');
  const [owner, executor] = await openRawPair();
  executor.register('on::again', () => ({ result: null }));
  executor.register('on::instead', () => ({ result: null }));
  await settle(executor);
  const seen = () => executor.invocations.map(({ function_id, data }) => [function_id, data.event.data]);
  const id = bindRaw(owner, 'on::again', { stream_name: stream });
  bindRaw(owner, 'on::again', { stream_name: stream }, { id });
  await settle(owner);
  await set(here, stream, 'g', 'i', 0);
  await nothingMore(here, there, here);
  await executor.waitFor(() => executor.invocations.length >= 1, 'the event');
  await settle(executor);
  assert.deepEqual(seen(), [['on::again', 0]], 'not doubled');
  bindRaw(owner, 'on::instead', { stream_name: stream, group_id: 'h' }, { id });
  await settle(owner);
  await set(here, stream, 'g', 'i', 1);
  await set(here, stream, 'h', 'i', 2);
  await executor.waitFor(() => executor.invocations.length >= 2, 'the event of the new config');
  assert.deepEqual(seen().slice(1), [['on::instead', 2]]);
  owner.send({ type: 'unregistertrigger', id });
  await settle(owner);
  await set(here, stream, 'h', 'i', 3);
  await settle(owner); // its gateway is past that event
  bindRaw(owner, 'on::again', { stream_name: stream });
  await settle(owner);
  await set(here, stream, 'h', 'i', 4);
  await executor.waitFor(() => executor.invocations.length >= 3, 'the event of another trigger');
  assert.deepEqual(seen().slice(2), [['on::again', 4]]);
  await owner.close();
  await until(async () => {
    const { length } = executor.invocations;
    await set(here, stream, 'h', 'i', 5);
    await nothingMore(here, there, here);
    await settle(executor);
    return executor.invocations.length === length;
  }, 'the trigger is gone with its owner');
});

test('1,000 triggers on one stream each get each event, in order', async () => {
  const stream = fresh('thousand');
  const count = isSanitized ? 200 : 1000;
  const [owner, executor] = await openRawPair();
  executor.register('on::thousand', () => ({ result: null }));
  await settle(executor);
  for (let n = 0; n < count; n += 1) bindRaw(owner, 'on::thousand', { stream_name: stream }, { metadata: n });
  await settle(owner);
  const quiet = await openRaw();
  await Promise.all([0, 1, 2, 3, 4].map((n) => quiet.set(stream, 'g', 'i', n)));
  await arrived(executor.invocations, 5 * count, 'every event of every trigger');
  const seqs = new Map();
  for (const { metadata, data } of executor.invocations) {
    assert.equal(data.seq, (seqs.get(metadata) ?? 0) + 1);
    seqs.set(metadata, data.seq);
  }
  assert.equal(seqs.size, count);
  await owner.close();
});

test('a delivery carries the trace context of the write, but not for iii:devtools streams', async () => {
  const [owner, executor] = await openRawPair();
  const streams = [fresh('traced'), 'iii:devtools:spans', 'iii:devtools'];
  const trace = { traceparent: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', baggage: 'k="v",iii.function.id=x' };
  executor.register('on::trace', () => ({ result: null }));
  executor.register('if::trace', () => ({ result: true }));
  await settle(executor);
  for (const stream_name of streams) bindRaw(owner, 'on::trace', { stream_name, condition_function_id: 'if::trace' });
  await settle(owner);
  for (const stream_name of streams) {
    await executor.callRaw('stream::set', { stream_name, group_id: 'g', item_id: 'i', data: 1 }, trace);
    await executor.callRaw('stream::set', { stream_name, group_id: 'g', item_id: 'i', data: 2 });
  }
  await executor.waitFor(() => executor.invocations.length === 12, 'two calls for each write');
  for (const { function_id, data, ...message } of executor.invocations) {
    const given = { traceparent: message.traceparent, baggage: message.baggage };
    const expected = data.event.data === 1 && data.streamName !== 'iii:devtools:spans' ? trace : { traceparent: undefined, baggage: undefined };
    assert.deepEqual(given, expected, `${function_id} ${data.streamName}`);
  }
});

test('a writer gets its answer while the handler is still at work, also when writer and handler are one worker', async () => {
  const stream = fresh('self');
  const worker = await openSdkWorker(weir.workerUrl);
  clients.push({ close: () => worker.shutdown() });
  const order = [];
  const handler = collect(worker, async ({ event }) => {
    if (event.data > 3) return;
    await set(worker, stream, 'g', 'i', event.data + 1); // a write from inside, which fires again
    order.push(event.data);
  });
  await settle(worker);
  await bind(worker, handler, { stream_name: stream });
  await set(worker, stream, 'g', 'i', 0);
  await arrived(handler.seen, 5, 'each write fires the next');
  assert.deepEqual(handler.data(), [0, 1, 2, 3, 4]);
  assert.deepEqual(order, [0, 1, 2, 3]);
});

test('the broker is replaced: triggers go on with what is written from then on', async () => {
  const own = await Weir.start();
  const worker = await RawWorker.open(own.workerUrl);
  try {
    worker.register('on::after', () => ({ result: null }));
    bindRaw(worker, 'on::after', { stream_name: 's' });
    await settle(worker);
    await worker.set('s', 'g', 'i', 'before');
    await worker.waitFor(() => worker.invocations.length === 1, 'the first event');
    const old = own.broker();
    process.kill(old, 'SIGKILL');
    await own.brokerAfter(old);
    await until(async () => (await worker.set('s', 'g', 'i', 'after')).error === undefined, 'a write succeeds');
    await worker.waitFor(() => worker.invocations.some(({ data }) => data.event.data === 'after'), 'its event');
    assert.equal(worker.invocations.filter(({ data }) => data.event.data === 'before').length, 1);
  } finally {
    await worker.close();
    await own.stop();
  }
});

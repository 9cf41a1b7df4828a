// worker.test.mjs -- the worker port: an unchanged iii-sdk 0.22.1, and the same by raw frames where the SDK would hide it.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { TriggerAction } from 'iii-sdk';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { RawSocket } from './lib/frames.mjs';
import { codeOf, openSdkClient, openSdkWorker } from './lib/sdk.mjs';
import { Weir, standStill, until } from './lib/weir.mjs';

let weir;
let here; // an SDK worker on one gateway
let there; // and one on the other
const workers = [];

before(async () => {
  weir = await Weir.start();
  const found = await weir.openOnEach(() => openSdkClient(weir.workerUrl));
  [[here], [there]] = [...found.values()].map((clients) => clients.map(({ worker }) => worker));
  workers.push(here, there);
});

after(async () => {
  await Promise.all(workers.map((worker) => worker.shutdown()));
  await weir?.stop();
});

const call = (worker, name, payload) => worker.trigger({ function_id: `stream::${name}`, payload });
const at = (stream_name, group_id, item_id, rest = {}) => ({ stream_name, group_id, item_id, ...rest });
// A connection may not have been accepted yet, or a look at the sockets may miss it.
const gatewayOf = (client) => until(() => weir.gatewayOf(client.localPort, client.remotePort), 'the gateway that holds a connection');
const openRaw = async () => {
  const raw = await RawWorker.open(weir.workerUrl);
  workers.push({ shutdown: () => raw.close() });
  return raw;
};

// covers: 3#1, 3#2, 3#3, 3.1#5, 1.2#3, B#5
test('set, get and delete give exactly the documented results', async () => {
  assert.deepEqual(await call(here, 'set', at('exact', 'g', 'i', { data: { id: 'i', n: 1 } })), { old_value: null, new_value: { id: 'i', n: 1 } });
  assert.deepEqual(await call(there, 'get', at('exact', 'g', 'i')), { id: 'i', n: 1 });
  assert.deepEqual(await call(there, 'set', at('exact', 'g', 'i', { data: [2] })), { old_value: { id: 'i', n: 1 }, new_value: [2] });
  assert.deepEqual(await call(here, 'delete', at('exact', 'g', 'i')), { old_value: [2] });
  assert.deepEqual(await call(here, 'delete', at('exact', 'g', 'i')), { old_value: null });
  assert.equal(await call(here, 'get', at('exact', 'g', 'i')), undefined);
});

// covers: 1.2#1, 3#2
test('a missing item has no result key and a stored null has one', async () => {
  const raw = await openRaw();
  assert.deepEqual(await raw.call('stream::get', at('null', 'g', 'i')), {});
  assert.deepEqual(await raw.set('null', 'g', 'i', null), { result: { old_value: null, new_value: null } });
  assert.deepEqual(await raw.call('stream::get', at('null', 'g', 'i')), { result: null });
  assert.deepEqual(await raw.call('stream::send', { stream_name: 'null', group_id: 'g', type: 't', data: 1 }), { result: null });
  assert.deepEqual(await raw.call('stream::list', { stream_name: 'null', group_id: 'g' }), { result: [null] });
});

// covers: 3#4
test('list keeps insertion order, overwriting keeps the place, delete and set moves to the end', async () => {
  for (const id of ['c', 'a', 'b']) await call(here, 'set', at('order', 'g', id, { data: id }));
  await call(here, 'set', at('order', 'g', 'a', { data: 'A' }));
  assert.deepEqual(await call(here, 'list', { stream_name: 'order', group_id: 'g' }), ['c', 'A', 'b']);
  await call(there, 'delete', at('order', 'g', 'c'));
  await call(there, 'set', at('order', 'g', 'c', { data: 'C' }));
  assert.deepEqual(await call(there, 'list', { stream_name: 'order', group_id: 'g' }), ['A', 'b', 'C']);
  assert.deepEqual(await call(here, 'list', { stream_name: 'order', group_id: 'nobody' }), []);
});

// covers: 3#5, 3#6
test('list_groups is sorted bytewise and drops a group with its last item; list_all names real streams', async () => {
  for (const group of ['z', 'B', 'é', 'a:b', '']) await call(here, 'set', at('groups:x', group, 'i', { data: 1 }));
  assert.deepEqual(await call(here, 'list_groups', { stream_name: 'groups:x' }), ['', 'B', 'a:b', 'z', 'é']);
  await call(here, 'delete', at('groups:x', 'z', 'i'));
  assert.deepEqual(await call(here, 'list_groups', { stream_name: 'groups:x' }), ['', 'B', 'a:b', 'é']);
  assert.deepEqual(await call(here, 'list_groups', { stream_name: 'nobody' }), []);
  const all = await call(here, 'list_all', {});
  assert.deepEqual(all.stream.find(({ id }) => id === 'groups:x'), { id: 'groups:x', groups: ['', 'B', 'a:b', 'é'] });
  assert.equal(all.count, all.stream.length);
  assert.deepEqual(all.stream.map(({ id }) => id), all.stream.map(({ id }) => id).sort());
});

test('names with colons stay apart: (a, b:c) is not (a:b, c)', async () => {
  await call(here, 'set', at('a', 'b:c', 'i', { data: 1 }));
  await call(here, 'set', at('a:b', 'c', 'i', { data: 2 }));
  assert.equal(await call(here, 'get', at('a', 'b:c', 'i')), 1);
  assert.equal(await call(here, 'get', at('a:b', 'c', 'i')), 2);
});

// covers: 2.9#2, 3.1#8
test('inputs that do not fit answer deserialization_error and change nothing', async () => {
  const bad = [
    ['set', at('bad', 'g', 'i')], // data is required
    ['set', { stream_name: 'bad', group_id: 'g', data: 1 }],
    ['set', at(7, 'g', 'i', { data: 1 })],
    ['set', at('bad', null, 'i', { data: 1 })],
    ['set', at('bad', 'g', ['i'], { data: 1 })],
    ['get', at('bad', 'g')], ['get', {}], ['get', 'text'], ['get', 5], ['get', null],
    ['delete', at('bad', 'g', 1)], ['list', { stream_name: 'bad' }], ['list_groups', {}],
    ['send', { stream_name: 'bad', group_id: 'g', type: 't' }], ['send', { stream_name: 'bad', group_id: 'g', type: 't', id: 7, data: 1 }],
    ['send', { stream_name: 'bad', group_id: 'g', type: 7, data: 1 }],
  ];
  for (const [name, payload] of bad) {
    assert.equal(await codeOf(call(here, name, payload)), 'deserialization_error', `${name} ${JSON.stringify(payload)}`);
  }
  assert.deepEqual(await call(here, 'list_groups', { stream_name: 'bad' }), []);
});

// covers: 3#7, 3.1#6
test('send without type uses event_type, else message', async () => {
  const subscriber = await Subscriber.open(weir.streamUrl);
  await subscriber.joined('lenient', 'g');
  await call(here, 'send', { stream_name: 'lenient', group_id: 'g', event_type: 'typing', data: 1 });
  await call(here, 'send', { stream_name: 'lenient', group_id: 'g', id: null, data: 2 });
  await subscriber.count(3);
  assert.deepEqual(subscriber.events.map(({ event, id }) => ({ event, id })), [
    { event: { type: 'event', event: { type: 'typing', data: 1 } }, id: null },
    { event: { type: 'event', event: { type: 'message', data: 2 } }, id: null },
  ]);
  await subscriber.close();
});

// covers: 2.3/1#10, B#3
test('extra keys in inputs are ignored, absent data is null', async () => {
  const raw = await openRaw();
  assert.deepEqual(await raw.call('stream::get', at('extra', 'g', 'i', { data: 1, more: { x: [] } })), {});
  const { message } = await raw.callRaw('stream::list_all', undefined);
  assert.equal(message.error?.code, 'deserialization_error', 'list_all wants an object, absent data is null');
});

test('values come back as written: numbers, unicode, empty keys, big integers', async () => {
  const raw = await openRaw();
  const texts = ['18446744073709551615', '-9223372036854775808', '1.0', '1e2', '-0.0', '"\\u0000\\ud83d\\ude00é"', '{"":{"":[]}}',
    '[true,false,null]', '{"a":0.1,"b":123456789012345678}', '""'];
  for (const [index, text] of texts.entries()) {
    const id = `v${index}`;
    const answer = await raw.callText(id, `{"type":"invokefunction","invocation_id":"${id}","function_id":"stream::set","data":{"stream_name":"values","group_id":"g","item_id":"${id}","data":${text}}}`);
    assert.ok(answer.text.includes(`"new_value":${text}`), `${answer.text} holds ${text}`);
    const read = await raw.callRaw('stream::get', at('values', 'g', id));
    assert.ok(read.text.includes(`"result":${text}`), `${read.text} holds ${text}`);
  }
});

test('pipelined writes and reads of one connection take effect in order', async () => {
  const raw = await openRaw();
  const answers = [];
  for (let n = 0; n < 300; n += 1) {
    answers.push(raw.set('pipeline', 'g', 'i', n));
    answers.push(raw.call('stream::get', at('pipeline', 'g', 'i')));
    if (n % 10 === 0) answers.push(raw.call('stream::list', { stream_name: 'pipeline', group_id: 'g' }).then(({ result }) => ({ result: result[0] })));
  }
  let last = null;
  for (const { result } of await Promise.all(answers)) {
    if (result !== null && typeof result === 'object') {
      assert.equal(result.old_value, last);
      last = result.new_value;
    } else assert.equal(result, last, 'a read sees the write before it, and not the one after it');
  }
});

// covers: B#4, 3.1#7
test('a void set before a get is seen by the get and never answered', async () => {
  const raw = await openRaw();
  raw.send({ type: 'invokefunction', invocation_id: 'void-1', function_id: 'stream::set', data: at('void', 'g', 'i', { data: 1 }), action: { type: 'void' } });
  raw.send({ type: 'invokefunction', function_id: 'stream::set', data: at('void', 'g', 'j', { data: 2 }) });
  assert.deepEqual((await raw.call('stream::list', { stream_name: 'void', group_id: 'g' })).result, [1, 2]);
  await raw.ping();
  assert.deepEqual(raw.texts.filter((text) => text.includes('invocationresult')), []);
});

// covers: B#6
test('a call reaches a worker on the other gateway, with _caller_worker_id and metadata', async () => {
  const seen = [];
  there.registerFunction('app::echo', async (input, metadata) => {
    seen.push({ input, metadata });
    return { got: input.x };
  });
  await until(async () => (await codeOf(here.trigger({ function_id: 'app::echo', payload: {} }))) === undefined, 'the registration is known');
  seen.length = 0;
  const result = await here.trigger({ function_id: 'app::echo', payload: { x: [1, 'é'], _caller_worker_id: 'forged' }, metadata: { m: 1 } });
  assert.deepEqual(result, { got: [1, 'é'] });
  assert.deepEqual(seen, [{ input: { x: [1, 'é'], _caller_worker_id: here.workerId }, metadata: { m: 1 } }]);
  seen.length = 0;
  await here.trigger({ function_id: 'app::echo', payload: [3] });
  assert.deepEqual(seen[0].input, [3], 'nothing is added to what is not an object');
  assert.deepEqual(await there.trigger({ function_id: 'app::echo', payload: { x: 5 } }), { got: 5 }, 'also from its own connection');
});

// covers: B#4
test('void calls run and are not answered', async () => {
  const seen = [];
  there.registerFunction('app::void', async (input) => void seen.push(input.n));
  await until(async () => (await codeOf(here.trigger({ function_id: 'app::void', payload: { n: 0 } }))) === undefined, 'the registration is known');
  assert.equal(await here.trigger({ function_id: 'app::void', payload: { n: 1 }, action: TriggerAction.Void() }), undefined);
  await until(() => seen.includes(1), 'the void call ran');
});

// covers: 2.3/1#11, 2.3/2#3, B#6
test('results: a value, nothing and null as the contract has them', async () => {
  const [caller, executor] = [...(await weir.openOnEach(openRaw)).values()].flat();
  executor.register('raw::value', () => ({ result: { a: 1 } }));
  executor.register('raw::nothing', () => ({}));
  executor.register('raw::null', () => ({ result: null }));
  executor.register('raw::error', () => ({ error: { code: 'mine', message: 'no', stacktrace: 'at x' }, result: 1 }));
  executor.register('raw::null-error', () => ({ error: null, result: 2 }));
  executor.register('raw::ill-error', () => ({ error: { message: 5 } }));
  executor.register('raw::shape', (message) => ({ result: Object.keys(message).sort() }));
  await until(async () => (await caller.call('raw::shape', {})).error === undefined, 'the registrations are known');
  assert.deepEqual(await caller.call('raw::value', {}), { result: { a: 1 } });
  assert.deepEqual(await caller.call('raw::nothing', {}), {});
  assert.deepEqual(await caller.call('raw::null', {}), {});
  assert.deepEqual(await caller.call('raw::error', {}), { error: { code: 'mine', message: 'no', stacktrace: 'at x' } });
  assert.deepEqual(await caller.call('raw::null-error', {}), { result: 2 });
  assert.equal((await caller.call('raw::ill-error', {})).error.code, 'invocation_failed');
  assert.deepEqual((await caller.call('raw::shape', {})).result, ['data', 'function_id', 'invocation_id', 'type']);
});

// covers: 2.3/2#2, B#4
test('the executor gets a fresh UUID, the caller its own id and trace fields back', async () => {
  const [caller, executor] = [...(await weir.openOnEach(openRaw)).values()].flat();
  executor.register('raw::trace', (message) => ({ result: message }));
  await until(async () => (await caller.call('raw::trace', {})).error === undefined, 'the registration is known');
  const { message } = await caller.callRaw('raw::trace', { x: 1 }, { invocation_id: 'any text "é', traceparent: '00-ab-cd-01', baggage: 'a=b' });
  assert.equal(message.invocation_id, 'any text "é');
  assert.match(message.result.invocation_id, /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/);
  assert.equal(message.result.traceparent, '00-ab-cd-01');
  assert.equal(message.result.baggage, 'a=b');
  assert.deepEqual(message.result.data, { x: 1, _caller_worker_id: caller.registered.worker_id });
});

// covers: 2.9#6
test("a handler's error is relayed with its code, message and stack", async () => {
  there.registerFunction('app::throws', async () => {
    throw new Error('the reason');
  });
  let error;
  await until(async () => {
    error = await here.trigger({ function_id: 'app::throws', payload: {} }).catch((reason) => reason);
    return error.code !== 'function_not_found';
  }, 'the registration is known');
  assert.equal(error.code, 'invocation_failed');
  assert.match(error.message, /the reason/);
  assert.match(error.stacktrace, /worker\.test\.mjs/);
});

// covers: 2.9#1, 2.3/1#5
test('an unknown function answers function_not_found, an unregistered one too', async () => {
  assert.equal(await codeOf(here.trigger({ function_id: 'app::nobody', payload: {} })), 'function_not_found');
  const handle = there.registerFunction('app::leaving', async () => 1);
  await until(async () => (await codeOf(here.trigger({ function_id: 'app::leaving', payload: {} }))) === undefined, 'the registration is known');
  handle.unregister();
  await until(async () => (await codeOf(here.trigger({ function_id: 'app::leaving', payload: {} }))) === 'function_not_found', 'it is gone');
});

// covers: 2.9#11, B#4
test('calls without a queue provider answer enqueue_error', async () => {
  assert.equal(await codeOf(here.trigger({ function_id: 'app::any', payload: {}, action: TriggerAction.Enqueue({ queue: 'q' }) })), 'enqueue_error');
});

// covers: 2.9#8, B#6, B#9
test('a pending call ends with invocation_stopped when its executor goes, on either gateway', async () => {
  const caller = await openRaw();
  for (const pid of weir.gateways()) {
    const executor = await weir.openOn(pid, openRaw);
    executor.register('raw::never', () => undefined);
    await until(async () => {
      const { result } = await caller.call('engine::functions::list', { search: 'raw::never' });
      return result.functions.length === 1;
    }, 'the registration is known');
    const answer = caller.call('raw::never', {});
    await until(() => executor.invocations.length > 0, 'the executor was asked');
    executor.socket.terminate();
    assert.equal((await answer).error.code, 'invocation_stopped');
    assert.equal((await caller.call('raw::never', {})).error.code, 'function_not_found');
  }
});

test('only the worker that was asked may answer, and only once', async () => {
  const [caller, executor] = [...(await weir.openOnEach(openRaw)).values()].flat();
  const stranger = await openRaw();
  executor.register('raw::slow', () => undefined);
  await until(async () => (await caller.call('engine::functions::list', { search: 'raw::slow' })).result.functions.length === 1, 'the registration is known');
  const answer = caller.callRaw('raw::slow', {});
  await until(() => executor.invocations.length > 0, 'the executor was asked');
  const { invocation_id } = executor.invocations[0];
  stranger.send({ type: 'invocationresult', invocation_id, function_id: 'raw::slow', result: 'forged' });
  await stranger.ping();
  executor.send({ type: 'invocationresult', invocation_id, function_id: 'raw::slow', result: 'true' });
  executor.send({ type: 'invocationresult', invocation_id, function_id: 'raw::slow', result: 'again' });
  assert.equal((await answer).message.result, 'true');
  await caller.set('once', 'g', 'i', 1);
  assert.deepEqual(caller.texts.filter((text) => text.includes('invocationresult')), []);
});

// covers: 2.3/2#6
test('a second worker cannot take a living function; it takes over when the owner goes', async () => {
  const [caller, owner] = [...(await weir.openOnEach(openRaw)).values()].flat();
  owner.register('raw::owned', () => ({ result: 'owner' }));
  await until(async () => (await caller.call('raw::owned', {})).result === 'owner', 'the registration is known');
  const standby = await openRaw();
  standby.register('raw::owned', () => ({ result: 'standby' }));
  const rejected = JSON.parse(await standby.waitFor(() => standby.texts.find((text) => text.includes('registrationrejected')), 'registrationrejected'));
  assert.equal(rejected.code, 'FUNCTION_NAMESPACE_CONFLICT');
  assert.equal(rejected.function_id, 'raw::owned');
  assert.equal(rejected.namespace, 'default');
  assert.equal(rejected.owner_worker_id, owner.registered.worker_id);
  assert.equal((await caller.call('raw::owned', {})).result, 'owner');
  await owner.close();
  await until(async () => (await caller.call('raw::owned', {})).result === 'standby', 'the standby is promoted');
});

// covers: 2.3/2#6
test('builtin functions cannot be replaced', async () => {
  const raw = await openRaw();
  raw.register('stream::set', () => ({ result: 'mine' }));
  const rejected = JSON.parse(await raw.waitFor(() => raw.texts.find((text) => text.includes('registrationrejected')), 'registrationrejected'));
  assert.equal(rejected.code, 'FUNCTION_NAMESPACE_CONFLICT');
  assert.equal(rejected.owner_worker_id, '');
  assert.deepEqual(await raw.set('builtin', 'g', 'i', 1), { result: { old_value: null, new_value: 1 } });
});

// covers: B#11
test('engine::functions::list shows functions of workers on every gateway, sorted, engine ones hidden', async () => {
  here.registerFunction('list::b', async () => 1, { description: 'second' });
  there.registerFunction('list::a', async () => 1, { metadata: { tag: 1 } });
  there.registerFunction('list::hidden', async () => 1, { metadata: { internal: true } });
  const list = async (payload) => (await here.trigger({ function_id: 'engine::functions::list', payload })).functions;
  await until(async () => (await list({ prefix: 'list::', include_internal: true })).length === 3, 'all are known');
  const shown = await list({ prefix: 'list::' });
  assert.deepEqual(shown.map(({ function_id }) => function_id), ['list::a', 'list::b']);
  assert.deepEqual(shown[0].metadata, { tag: 1 });
  assert.equal(shown[1].description, 'second');
  for (const { namespace, worker_name } of shown) {
    assert.equal(namespace, 'default');
    assert.equal(typeof worker_name, 'string');
  }
  const all = await list({});
  const ids = all.map(({ function_id }) => function_id);
  assert.ok(ids.includes('stream::set'));
  assert.ok(!ids.some((id) => id.startsWith('engine::')));
  assert.deepEqual(ids, [...ids].sort());
});

// covers: 2.3/1#12, 2.3/2#7, B#1
test('message-level ping gets pong, WebSocket ping its own payload', async () => {
  const raw = await openRaw();
  raw.send({ type: 'ping' });
  await raw.waitFor(() => raw.texts.some((text) => JSON.parse(text).type === 'pong'), 'pong');
  await raw.ping();
});

// covers: 2.3/1#1, B#2
for (const where of ['the same', 'the other']) test(`reattach on ${where} gateway: the right token retires the old connection, a wrong one does not`, async () => {
  const old = await openRaw();
  const home = await gatewayOf(old);
  const wanted = where === 'the same' ? home : weir.gateways().find((pid) => pid !== home);
  old.register(`raw::reattached ${where}`, () => ({ result: 'old' }));
  const caller = await openRaw();
  await until(async () => (await caller.call(`raw::reattached ${where}`, {})).result === 'old', 'the registration is known');
  const next = await weir.openOn(wanted, openRaw);
  next.send({ type: 'reattach', previous_worker_id: old.registered.worker_id, reattach_token: 'wrong' });
  await next.result('stream::list_groups', { stream_name: 'nobody' }); // kept back until that is decided
  assert.equal((await caller.call(`raw::reattached ${where}`, {})).result, 'old');
  next.send({ type: 'reattach', previous_worker_id: old.registered.worker_id, reattach_token: old.registered.reattach_token });
  next.register(`raw::reattached ${where}`, () => ({ result: 'new' }));
  await until(() => old.closed, 'the old connection is closed');
  assert.equal(old.closed.code, 1006, 'without a Close frame');
  await until(async () => (await caller.call(`raw::reattached ${where}`, {})).result === 'new', 'the function moved');
  assert.deepEqual(next.texts.filter((text) => text.includes('registrationrejected')), []);
});

test('a reattach keeps back what follows it, pings excepted, until the gateway of the old connection has let go', async () => {
  const old = await openRaw();
  const home = await gatewayOf(old);
  const next = await weir.openOn(weir.gateways().find((pid) => pid !== home), openRaw);
  let groups;
  let sets;
  let isAnswered = false;
  const stoppedMs = Date.now();
  try {
    await standStill(home);
    next.send({ type: 'reattach', previous_worker_id: old.registered.worker_id, reattach_token: old.registered.reattach_token });
    groups = next.result('stream::list_groups', { stream_name: 'nobody' });
    groups.then(() => (isAnswered = true), () => {});
    next.send({ type: 'ping' });
    await next.waitFor(() => next.texts.some((text) => JSON.parse(text).type === 'pong'), 'pong');
    await next.ping();
    // It waits REATTACH_MS_MAX at most, which may be over when it is this process that stood still.
    assert.ok(!isAnswered || Date.now() - stoppedMs >= 5000, 'the call waits');
    sets = Array.from({ length: 64 }, (_, n) => next.set('held', 'g', 'i', { n, filler: 'x'.repeat(65536) })); // more than is kept
  } finally {
    process.kill(home, 'SIGCONT');
  }
  assert.deepEqual(await groups, []);
  const olds = (await Promise.all(sets)).map(({ result }) => result.old_value?.n);
  assert.deepEqual(olds, [undefined, ...olds.keys()].slice(0, 64), 'in the order they were sent');
  await until(() => old.closed, 'the old connection is closed');
});

// covers: 0#2, B#1
test('the telemetry path is accepted, read and discarded; other paths are refused', async () => {
  const telemetry = await RawSocket.open(weir.workerPort, '/otel');
  telemetry.write(Buffer.from([0x82, 0x84, 0, 0, 0, 0, 0x4f, 0x54, 0x4c, 0x50]));
  telemetry.send('{"type":"ping"}');
  const based = await RawSocket.open(weir.workerPort, '/base/otel');
  const plain = await RawSocket.open(weir.workerPort, '/ws');
  await until(() => plain.texts.some((text) => text.includes('workerregistered')), 'workerregistered on /ws');
  assert.deepEqual(telemetry.texts, []);
  await assert.rejects(RawSocket.open(weir.workerPort, '/nope'), /404/);
  for (const socket of [telemetry, based, plain]) socket.destroy();
});

test('an SDK worker with telemetry on works as well', async () => {
  const worker = await openSdkWorker(weir.workerUrl, { otel: { enabled: true }, enableMetricsReporting: true });
  assert.deepEqual(await call(worker, 'set', at('otel', 'g', 'i', { data: 1 })), { old_value: null, new_value: 1 });
  await worker.shutdown();
});

// channel.test.mjs -- the worker channel message by message (docs/protocol.md section 2): what is accepted, what is answered, and
// with which words, by raw frames and by an unchanged iii-sdk, on two gateways.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { after, before, test } from 'node:test';
import { TriggerAction } from 'iii-sdk';
import { RawWorker } from './lib/clients.mjs';
import { BINARY, RawSocket, TEXT, frame } from './lib/frames.mjs';
import { LocalWorker, TYPE } from './lib/local.mjs';
import { Pair } from './lib/pair.mjs';
import { codeOf, openSdkWorker } from './lib/sdk.mjs';
import { until, withWeir } from './lib/weir.mjs';

const UUID_V4 = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

const pair = new Pair();
let weir;
let here;

before(async () => {
  ({ weir, here } = await pair.start());
});

after(() => pair.stop());

const openRaw = () => pair.openRaw();
// A caller on one gateway and an executor on the other.
const openPair = () => pair.openRawOnEach();
const isKnown = (caller, id, fields) => until(async () => (await caller.call(id, {}, fields)).error?.code !== 'function_not_found', `${id} is known`);
const gone = (caller, id, fields) => until(async () => (await caller.call(id, {}, fields)).error?.code === 'function_not_found', `${id} is gone`);
const parsed = (raw, type) => raw.texts.map((text) => JSON.parse(text)).filter((message) => message.type === type);
async function counterOf(name) {
  const page = await weir.metrics();
  return [...page.matchAll(new RegExp(`^weir_gateway_${name}_total\\{[^}]*\\} (\\d+)$`, 'gm'))].reduce((sum, [, value]) => sum + Number(value), 0);
}

// covers: 2.3/2#1, B#1, B#2, 0#1
test('the upgrade takes no extension, and workerregistered comes before anything is sent', async () => {
  const offers = { 'Sec-WebSocket-Extensions': 'permessage-deflate; client_max_window_bits', 'X-Mine': 'ignored' };
  const raw = await RawSocket.open(weir.workerPort, '/', { headers: offers });
  assert.doesNotMatch(raw.head, /sec-websocket-extensions/i);
  await until(() => raw.texts.length > 0, 'the first message');
  const { type, worker_id, reattach_token, ...rest } = JSON.parse(raw.texts[0]);
  assert.equal(type, 'workerregistered');
  assert.match(worker_id, UUID_V4);
  assert.match(reattach_token, UUID_V4);
  assert.notEqual(worker_id, reattach_token);
  assert.deepEqual(rest, {});
  raw.destroy();
});

// covers: 2.3/1#12, 2.3/2#7
test('a message may come in pieces, as binary, or be nothing but space', async () => {
  const raw = await RawSocket.open(weir.workerPort, '/');
  const call = (id) => Buffer.from(`{"type":"invokefunction","invocation_id":"${id}","function_id":"stream::list_all","data":{}}`);
  const answered = (id) => until(() => raw.texts.some((text) => text.includes(`"${id}"`)), `the answer to ${id}`);
  const pieces = call('pieces');
  raw.write(frame(pieces.subarray(0, 1), { opcode: TEXT, fin: false }));
  raw.write(frame('mid', { opcode: 9 }));
  for (let at = 1; at < pieces.length - 1; at += 1) raw.write(frame(pieces.subarray(at, at + 1), { opcode: 0, fin: false }));
  raw.write(frame(pieces.subarray(-1), { opcode: 0 }));
  await answered('pieces');
  assert.ok(raw.frames.some(({ opcode, payload }) => opcode === 10 && payload.toString() === 'mid'), 'a Ping between the pieces has its Pong');
  raw.write(frame(call('binary'), { opcode: BINARY }));
  await answered('binary');
  for (const nothing of ['', ' ', '\r\n\t ', 'OTLP{}', 'MTRC', 'LOGS{']) {
    raw.write(frame(nothing, { opcode: BINARY }));
    if (!/^[A-Z]/.test(nothing)) raw.write(frame(nothing));
  }
  raw.write(frame(call('after'), { opcode: BINARY }));
  await answered('after');
  raw.send('{"type":"ping"}');
  await until(() => raw.texts.includes('{"type":"pong"}'), 'pong');
  raw.destroy();
});

// covers: 2.3/1#6, B#3
test('unknown keys and types, message_type, and registerservice change nothing', async () => {
  const [caller, executor] = await openPair();
  executor.send({ type: 'registerservice', id: 's', name: 'x', parent_service_id: null, description: 'd' });
  executor.send({ type: 'registersomething', id: 's' });
  executor.register('channel::late', () => ({ result: 1 }), { message_type: 'registerfunction', surprise: { a: [] }, description: null });
  executor.send({ type: 'invokefunction', function_id: 'engine::workers::register', data: { runtime: 'raw', name: 'late', surprise: 1 }, action: { type: 'void' } });
  await isKnown(caller, 'channel::late');
  await executor.ping();
  assert.deepEqual(executor.texts.filter((text) => !/workerregistered|invokefunction/.test(text)), []);
});

// covers: 2.3/1#4, 2.3/1#5, 2.3/1#10, 2.3/1#11, 2.3/2#2, 2.3/2#3, B#4, B#6
test('a call and its answer, byte for byte', async () => {
  const [caller, executor] = await openPair();
  executor.register('channel::bytes', () => ({ result: { kept: '\u2028' } }));
  await isKnown(caller, 'channel::bytes');
  executor.texts.length = 0;
  const { text } = await caller.callText('id "1"', '{"type":"invokefunction","invocation_id":"id \\"1\\"","function_id":"channel::bytes","data":[1.0,"\\u0041"],"metadata":null,"baggage":"b=\\"1\\"","action":null,"namespace":null}');
  assert.equal(text, '{"type":"invocationresult","invocation_id":"id \\"1\\"","function_id":"channel::bytes","result":{"kept":"\u2028"},"baggage":"b=\\"1\\""}');
  const [asked] = executor.texts;
  const { invocation_id } = JSON.parse(asked);
  assert.match(invocation_id, UUID_V4);
  assert.equal(asked, `{"type":"invokefunction","invocation_id":"${invocation_id}","function_id":"channel::bytes","data":[1.0,"\\u0041"],"baggage":"b=\\"1\\""}`, 'null metadata is none');
  executor.send({ type: 'unregisterfunction', id: 'channel::bytes' });
  await gone(caller, 'channel::bytes');
});

// covers: A.5, 2.9#1
test('an unknown function: the error names it', async () => {
  const raw = await openRaw();
  const id = randomUUID();
  const { message } = await raw.callRaw('nope', {}, { invocation_id: id });
  const { error, ...rest } = message;
  assert.deepEqual(rest, { type: 'invocationresult', invocation_id: id, function_id: 'nope' });
  assert.deepEqual(Object.keys(error).sort(), ['code', 'message']);
  assert.equal(error.code, 'function_not_found');
  assert.match(error.message, /nope/);
});

test('ids of a call have 1 to 128 bytes and come back as they were written', async () => {
  const raw = await openRaw();
  for (const id of ['x', 'é'.repeat(64), '\\u0041'.repeat(128), 'y'.repeat(128)]) {
    const { text } = await raw.callText(JSON.parse(`"${id}"`), `{"type":"invokefunction","invocation_id":"${id}","function_id":"stream::list_all","data":{}}`);
    assert.ok(text.includes(`"invocation_id":"${id}"`), text.slice(0, 200));
  }
  const before = await counterOf('worker_messages_ignored');
  for (const id of ['""', `"${'z'.repeat(129)}"`, '5', '{}']) raw.send(`{"type":"invokefunction","invocation_id":${id},"function_id":"stream::list_all","data":{}}`);
  await raw.ping();
  assert.deepEqual(raw.texts.filter((text) => text.includes('invocationresult')), []);
  await until(async () => (await counterOf('worker_messages_ignored')) >= before + 4, 'they are counted');
});

test('void calls are never answered, whatever is wrong with them', async () => {
  const raw = await openRaw();
  const action = { type: 'void' };
  const wrong = [
    { function_id: 'nope' }, { function_id: 5 }, { function_id: 'stream::set', data: 1 }, { function_id: 'stream::set', namespace: ' ', data: {} },
    { function_id: 'engine::log::info', data: {} }, { function_id: 'engine::workers::register', data: { namespace: '' } },
  ];
  for (const fields of wrong) raw.send({ type: 'invokefunction', invocation_id: randomUUID(), action, ...fields });
  await raw.result('stream::list_all', {});
  await raw.ping();
  assert.deepEqual(raw.texts.filter((text) => text.includes('invocationresult')), []);
});

// covers: 2.9#11
test('enqueue without a queue worker says what is missing; a bad action is told apart', async () => {
  const raw = await openRaw();
  const action = { type: 'enqueue', queue: 'q' };
  const { error } = await raw.call('app::any', { a: 1 }, { action });
  assert.equal(error.code, 'enqueue_error');
  assert.match(error.message, /queue worker.*none is connected/);
  raw.send({ type: 'invokefunction', function_id: 'app::any', data: {}, action });
  for (const bad of [{ type: 'enqueue' }, { type: 'enqueue', queue: 5 }, { type: 'later' }, { type: 5 }, {}, 'void', []]) {
    assert.equal((await raw.call('app::any', {}, { action: bad })).error?.code, 'invalid_message', JSON.stringify(bad));
  }
  assert.deepEqual(raw.texts.filter((text) => text.includes('invocationresult')), []);
});

// covers: 2.9#11
test('a queue worker gets what is enqueued, and its caller a receipt', async () => {
  const [caller, queue] = await openPair();
  const queued = [];
  let answer = () => ({ result: { anything: 1 } });
  queue.register('engine::queue::enqueue', ({ data }) => {
    queued.push(data);
    return answer();
  });
  const action = { type: 'enqueue', queue: 'mail' };
  await until(async () => (await caller.call('app::send', { to: 'x' }, { action })).result !== undefined, 'the queue worker is known');
  queued.length = 0;
  const { result } = await caller.call('app::send', { to: 'x', _caller_worker_id: 'kept' }, { action, traceparent: '00-ab-cd-01' });
  assert.deepEqual(Object.keys(result), ['messageReceiptId']);
  assert.match(result.messageReceiptId, UUID_V4);
  assert.deepEqual(queued, [{ queue: 'mail', function_id: 'app::send', data: { to: 'x', _caller_worker_id: 'kept' }, messageReceiptId: result.messageReceiptId, traceparent: '00-ab-cd-01', baggage: null }]);
  await caller.call('app::send', 5, { action, namespace: 'blue', baggage: 'a=b' });
  assert.deepEqual({ ...queued[1], messageReceiptId: null }, { queue: 'mail', function_id: 'app::send', data: 5, messageReceiptId: null, traceparent: null, baggage: 'a=b', namespace: 'blue' });
  assert.match((await here.trigger({ function_id: 'app::send', payload: {}, action: TriggerAction.Enqueue({ queue: 'q' }) })).messageReceiptId, UUID_V4, 'the SDK takes it too');
  answer = () => ({ error: { code: 'disk_full', message: 'no room', stacktrace: 's' } });
  assert.deepEqual((await caller.call('app::send', {}, { action })).error, { code: 'enqueue_error', message: 'no room' });
  await queue.close();
  await until(async () => /none is connected/.test((await caller.call('app::send', {}, { action })).error?.message), 'the queue worker has gone');
});

// covers: 2.9#12, 2.15#1
test('a blank namespace is refused wherever one may stand', async () => {
  const raw = await openRaw();
  for (const namespace of ['', ' ', '\t\n']) {
    for (const id of ['app::any', 'stream::list_all', 'engine::functions::list']) {
      assert.equal((await raw.call(id, {}, { namespace })).error?.code, 'INVALID_NAMESPACE', id);
    }
    assert.equal((await raw.call('engine::workers::register', { namespace })).error?.code, 'INVALID_NAMESPACE');
    raw.send({ type: 'registertrigger', id: `t${namespace.length}`, trigger_type: 'any', function_id: 'f', config: null, namespace });
    raw.send({ type: 'registertrigger', id: `u${namespace.length}`, trigger_type: 'any', function_id: 'f', config: null, trigger_namespace: namespace });
    raw.send({ type: 'registertriggertype', id: 'blank', description: '', namespace });
  }
  await until(() => parsed(raw, 'triggerregistrationresult').length >= 6, 'the answers');
  await raw.ping();
  const results = parsed(raw, 'triggerregistrationresult');
  assert.equal(results.length, 6);
  assert.ok(results.every(({ error }) => error.code === 'INVALID_NAMESPACE'), JSON.stringify(results));
  assert.equal((await raw.call('app::any', {}, { namespace: 5 })).error?.code, 'invalid_message');
});

// covers: 2.15#1
test('engine::workers::register answers, checks its input, and moves what the worker has', async () => {
  const [caller, executor] = await openPair();
  executor.register('channel::moves', () => ({ result: 'moved' }));
  await isKnown(caller, 'channel::moves');
  assert.deepEqual(await executor.call('engine::workers::register', {}), { result: { success: true } });
  for (const bad of [null, [], 'text', { namespace: 5 }, { namespace: ['a'] }]) {
    assert.equal((await executor.call('engine::workers::register', bad)).error?.code, 'deserialization_error', JSON.stringify(bad));
  }
  assert.equal((await executor.call('engine::workers::register', { description: 'x'.repeat(70000) })).error?.code, 'deserialization_error');
  for (const namespace of ['x'.repeat(5000), 'a\u0000b']) {
    assert.equal((await executor.call('engine::workers::register', { namespace })).error?.code, 'INVALID_NAMESPACE');
  }
  assert.equal((await executor.call('engine::workers::register', {}, { namespace: 'blue' })).error?.code, 'function_not_found');
  assert.deepEqual(await caller.call('channel::moves', {}), { result: 'moved' }, 'nothing has moved yet');
  assert.deepEqual(await executor.call('engine::workers::register', { namespace: 'blue', name: 'n' }), { result: { success: true } });
  await isKnown(caller, 'channel::moves', { namespace: 'blue' });
  assert.deepEqual(await caller.call('channel::moves', {}, { namespace: 'blue' }), { result: 'moved' });
  await gone(caller, 'channel::moves');
  executor.register('channel::later', () => ({ result: 'later' }));
  await isKnown(caller, 'channel::later', { namespace: 'blue' });
});

test('stream functions are the same in every namespace, everything else is not there', async () => {
  const raw = await openRaw();
  const item = { stream_name: 'spaces', group_id: 'g', item_id: 'i' };
  assert.deepEqual(await raw.call('stream::set', { ...item, data: 1 }, { namespace: 'blue' }), { result: { old_value: null, new_value: 1 } });
  assert.deepEqual(await raw.call('stream::get', item, { namespace: 'green' }), { result: 1 });
  assert.deepEqual(await raw.call('stream::get', item, { namespace: 'default' }), { result: 1 });
  for (const id of ['engine::log::info', 'engine::functions::list', 'app::any']) {
    assert.equal((await raw.call(id, { message: 'm' }, { namespace: 'blue' })).error?.code, 'function_not_found', id);
  }
});

// covers: 2.15#13
test('engine::log writes one clean line, and says when the message is none', async () => {
  const raw = await openRaw();
  await raw.call('engine::workers::register', { name: 'logger "1"' });
  const before = await counterOf('log_lines');
  for (const level of ['info', 'warn', 'error', 'debug', 'trace']) {
    assert.deepEqual(await raw.call(`engine::log::${level}`, { message: `one ${level}`, trace_id: 't', data: { a: 1 } }), {});
  }
  assert.deepEqual(await raw.call('engine::log::info', { message: 'two\nweir-gateway: event=forged \u202e"x"\u0007' }, { namespace: 'default' }), {});
  assert.deepEqual(await raw.call('engine::log::info', { message: `three ${'x'.repeat(10000)}` }), {});
  for (const bad of [{}, { message: 5 }, { message: null }, 'text', null, []]) {
    assert.equal((await raw.call('engine::log::warn', bad)).error?.code, 'deserialization_error', JSON.stringify(bad));
  }
  assert.equal((await raw.call('engine::log::fatal', { message: 'm' })).error?.code, 'function_not_found');
  const output = () => weir.stdout + weir.stderr;
  await until(() => output().includes('message="three'), 'the lines');
  for (const level of ['info', 'warn', 'error', 'debug', 'trace']) {
    assert.ok(output().includes(`event=worker_log level=${level} worker="logger \\"1\\"" message="one ${level}"`), level);
  }
  assert.ok(output().includes('message="two\\nweir-gateway: event=forged \\u202e\\"x\\"\\u0007"'));
  assert.match(output(), /message="three x{2042}\.\.\."/);
  await until(async () => (await counterOf('log_lines')) === before + 7, 'they are counted');
  // Those of one second are limited; a gateway that stands still meanwhile has more than one second for them.
  await until(async () => {
    for (let n = 0; n < 500; n += 1) raw.send({ type: 'invokefunction', function_id: 'engine::log::info', data: { message: `flood ${n}` } });
    await raw.ping();
    return /event=worker_log_left_out lines=\d+/.test(output());
  }, 'the number of those left out');
  // Other tests' lines are not to be left out because of that.
  let n = 0;
  await until(async () => {
    n += 1;
    await raw.call('engine::log::info', { message: `again ${n}` });
    return /message="again/.test(output());
  }, 'a line of a later second');
});

// covers: 2.9#7
test('a function to be called by HTTP answers function_not_invokable, and the log says it once', async () => {
  const [caller, executor] = await openPair();
  for (const id of ['channel::web', 'channel::web2']) executor.register(id, () => ({ result: 1 }), { invocation: { url: 'http://127.0.0.1:9/', method: 'POST' } });
  await isKnown(caller, 'channel::web2');
  for (const id of ['channel::web', 'channel::web2']) {
    const { error } = await caller.call(id, {});
    assert.equal(error.code, 'function_not_invokable');
    assert.match(error.message, /HTTP/);
  }
  assert.deepEqual(executor.invocations, []);
  const lines = () => (weir.stdout + weir.stderr).match(/event=http_function_unsupported/g)?.length;
  await until(() => lines() > 0, 'the line');
  executor.register('channel::web', () => ({ result: 2 }));
  await until(async () => (await caller.call('channel::web', {})).result === 2, 'registered anew it is called');
  assert.equal(await codeOf(here.trigger({ function_id: 'channel::web2', payload: {} })), 'function_not_invokable');
  assert.equal(lines(), 1);
});

// covers: 2.9#6, 2.9#9
test('an answer that cannot be passed on ends the call with an error', async () => {
  const [caller, executor] = await openPair();
  executor.register('channel::ill', () => undefined);
  executor.send({ type: 'registerfunction', id: 'channel::ill' });
  const rests = ['"result":"\\ud800"}', '"result":NaN}', '"error":{"code":5,"message":"m"}}', '"error":{"code":"c","message":"m","stacktrace":5}}', '"error":"text"}', '"result":'];
  for (const rest of rests) {
    executor.invocations.length = 0;
    let answer;
    await until(async () => {
      answer = caller.call('channel::ill', {});
      return Promise.race([answer.then(({ error }) => error.code !== 'function_not_found'), until(() => executor.invocations.length > 0, 'the executor is asked')]);
    }, 'the registration is known');
    executor.send(`{"type":"invocationresult","invocation_id":"${executor.invocations[0].invocation_id}","function_id":"channel::ill",${rest}`);
    assert.equal((await answer).error?.code, 'invocation_failed', rest);
  }
});

// covers: 2.11#5, 2.3/2#4, 2.9#14
test('a stream trigger with a bad config is refused with the reason, and the SDK goes on', async () => {
  const raw = await openRaw();
  const bad = { none: null, empty: {}, number: { stream_name: 5 }, list: { stream_name: ['s'] }, group: { stream_name: 's', group_id: 5 }, item: { stream_name: 's', item_id: {} }, condition: { stream_name: 's', condition_function_id: 1 }, text: 'chat' };
  for (const [id, config] of Object.entries(bad)) raw.send({ type: 'registertrigger', id, trigger_type: 'stream', function_id: 'f', config });
  raw.send({ type: 'registertrigger', id: 'absent', trigger_type: 'stream', function_id: 'f', message_type: 'registertrigger' });
  raw.send({ type: 'registertrigger', id: 'join', trigger_type: 'stream:join', function_id: 'f', config: { stream_name: 5 } });
  raw.send({ type: 'registertrigger', id: 'leave', trigger_type: 'stream:leave', function_id: 'f', config: 5 });
  await until(() => parsed(raw, 'triggerregistrationresult').length > Object.keys(bad).length + 2, 'the answers');
  const results = parsed(raw, 'triggerregistrationresult');
  assert.deepEqual(results.map(({ id }) => id), [...Object.keys(bad), 'absent', 'join', 'leave']);
  for (const { type, id, error, ...rest } of results) {
    assert.deepEqual(rest, { trigger_type: id === 'join' ? 'stream:join' : id === 'leave' ? 'stream:leave' : 'stream', function_id: 'f' });
    assert.equal(error.code, 'trigger_registration_failed');
    assert.ok(error.message.length > 5);
  }
  assert.equal(results.find(({ id }) => id === 'absent').error.message, 'stream_name is required');
  here.registerTrigger({ type: 'stream', function_id: 'f', config: {} });
  assert.deepEqual(await here.trigger({ function_id: 'stream::list', payload: { stream_name: 's', group_id: 'g' } }), []);
});

// covers: A.4
test('an SDK worker whose socket breaks comes back, says what it was, and sends what waited', async () => {
  const worker = await openSdkWorker(weir.workerUrl);
  pair.closeLater({ close: () => worker.shutdown() });
  worker.registerFunction('channel::survivor', async (input) => ({ got: input.n }));
  const caller = await openRaw();
  await isKnown(caller, 'channel::survivor');
  const before = worker.workerId;
  worker.ws.terminate();
  await until(() => worker.ws?.readyState !== 1, 'the socket is gone');
  const waited = worker.trigger({ function_id: 'stream::set', payload: { stream_name: 'survivor', group_id: 'g', item_id: 'i', data: 1 } });
  assert.deepEqual(await waited, { old_value: null, new_value: 1 });
  assert.notEqual(worker.workerId, before, 'a new connection has a new id');
  await until(async () => (await caller.call('channel::survivor', { n: 2 })).result?.got === 2, 'its function is there again');
});

// covers: 2.3/1#1
test('a reattach with half of what it takes is passed over', async () => {
  const old = await openRaw();
  const next = await openRaw();
  const { worker_id, reattach_token } = old.registered;
  const wrong = [{}, { previous_worker_id: worker_id }, { previous_worker_id: worker_id, reattach_token: null }, { previous_worker_id: 'x', reattach_token }, { previous_worker_id: randomUUID(), reattach_token },
    { previous_worker_id: next.registered.worker_id, reattach_token: next.registered.reattach_token }, { previous_worker_id: worker_id, reattach_token: next.registered.reattach_token }, { previous_worker_id: 5, reattach_token }];
  for (const fields of wrong) next.send({ type: 'reattach', ...fields });
  assert.deepEqual((await next.result('stream::list', { stream_name: 'nobody', group_id: 'g' })), []);
  await old.ping();
  assert.deepEqual([...old.texts, ...next.texts].filter((text) => !text.includes('workerregistered')), []);
});

const openLocal = async (options) => pair.closeLater(await LocalWorker.open(weir, options));

test("libweir's channel: calls both ways, and what does not fit is refused", async () => {
  const caller = await openRaw();
  const local = await openLocal();
  assert.match(local.id, UUID_V4);
  assert.match(local.token, UUID_V4);
  local.register('local::f');
  await until(async () => (await caller.call('engine::functions::list', { search: 'local::f' })).result.functions.length === 1, 'the function');
  caller.send({ type: 'invokefunction', function_id: 'local::f', data: { n: 1 }, metadata: null });
  assert.deepEqual((await local.next(TYPE.INVOKE)).fields.slice(1), ['local::f', JSON.stringify({ n: 1, _caller_worker_id: caller.registered.worker_id }), null, null, null]);
  local.messages.length = 0;
  const answer = caller.call('local::f', { n: 2 });
  local.answer(await local.next(TYPE.INVOKE), { got: 2 });
  assert.deepEqual(await answer, { result: { got: 2 } });
  local.send(TYPE.CALL, [0, ' ', 'local::f', '{}', null, null, null], 7n);
  local.send(TYPE.CALL, [0, null, 'engine::log::info', '{"message":5}', null, null, null], 8n);
  local.send(TYPE.TRIGGER_REGISTER, [0, 't', 'stream', 'local::f', '{"stream_name":5}', null, null, null]);
  local.send(TYPE.TRIGGER_REGISTER, [0, 't', 'any', 'local::f', null, null, ' ', null]);
  const errors = [await local.next(TYPE.RESULT), await local.next(TYPE.RESULT, 2)].map(({ id, fields }) => [id, JSON.parse(fields[1]).code]);
  assert.deepEqual(errors, [[7n, 'INVALID_NAMESPACE'], [8n, 'deserialization_error']]);
  await local.next(TYPE.TRIGGER_RESULT, 2);
  assert.deepEqual(local.of(TYPE.TRIGGER_RESULT).map(({ fields }) => [fields[1], fields[2], fields[3], JSON.parse(fields[4]).code]),
    [['t', 'stream', 'local::f', 'trigger_registration_failed'], ['t', 'any', 'local::f', 'INVALID_NAMESPACE']]);
  local.send(TYPE.TRIGGER_REGISTER, [0, 't', 'any', 'local::f', '{', null, null, null]);
  await local.next(TYPE.REFUSED);
  await until(() => local.isClosed, 'the close');
  for (const [code, options] of [['INVALID_NAMESPACE', { namespace: ' ' }], ['INVALID_NAMESPACE', { metadata: { namespace: '' } }], ['INVALID_HELLO', { metadata: { description: 'x'.repeat(70000) } }]]) {
    const refused = await openLocal(options);
    assert.deepEqual(refused.messages.map(({ type, fields }) => [type, fields[0]]), [[TYPE.REFUSED, code]]);
  }
});

test('libweir comes back with its id and token: its predecessor is gone before it registers, wherever that was', async () => {
  const caller = await openRaw();
  // Its own function: that of its predecessor may still be listed when the socket of that has been closed already.
  const isThere = (local, name) => until(async () => {
    const { functions } = (await caller.call('engine::functions::list', { search: 'local::back' })).result;
    return functions.length === 1 && functions[0].worker_name === name && !local.isClosed;
  }, `the function of ${name}`);
  let old = await openLocal({ name: 'first' });
  old.register('local::back');
  await isThere(old, 'first');
  const stranger = await openLocal({ previous: { id: old.id, token: randomUUID() } });
  stranger.register('local::stranger');
  await until(async () => (await caller.call('engine::functions::list', { search: 'local::stranger' })).result.functions.length === 1, 'a wrong token is passed over');
  assert.equal(old.isClosed, false);
  for (let round = 0; round < 8; round += 1) { // whichever of the gateways takes each
    const name = `round ${round}`;
    const next = await openLocal({ name, previous: old });
    next.register('local::back');
    await until(() => old.isClosed, 'the predecessor is closed');
    assert.deepEqual(old.of(TYPE.REFUSED), [], 'without a word');
    await isThere(next, name);
    assert.deepEqual(next.of(TYPE.FUNCTION_REJECTED), []);
    const answer = caller.call('local::back', { round });
    next.answer(await next.next(TYPE.INVOKE), round);
    assert.deepEqual(await answer, { result: round });
    old = next;
  }
});

// covers: B#9, 2.9#8
test('workers are told 1001 when the server stops, and whoever waits for one that leaves is told', async () => {
  await withWeir({}, async (other, later) => {
    const [caller, executor] = [...(await other.openOnEach(() => RawWorker.open(other.workerUrl))).values()].flat();
    const telemetry = await RawSocket.open(other.workerPort, '/otel');
    later({ close: () => telemetry.destroy() });
    executor.register('channel::never', () => undefined);
    const answer = (async () => {
      for (;;) {
        const { error } = await caller.call('channel::never', {});
        if (error.code !== 'function_not_found') return error;
      }
    })();
    await until(() => executor.invocations.length > 0, 'the executor is asked');
    executor.socket.terminate();
    assert.equal((await answer).code, 'invocation_stopped');
    assert.deepEqual(caller.texts.filter((text) => !text.includes('workerregistered')), [], 'nobody else hears of it');
    await other.stop();
    await until(() => caller.closed && telemetry.isClosed, 'the closes');
    assert.equal(caller.closed.code, 1001);
    assert.equal(telemetry.closeCode, 1001);
  });
});

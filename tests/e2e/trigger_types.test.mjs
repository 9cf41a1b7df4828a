// trigger_types.test.mjs -- triggers and trigger types of workers (docs/protocol.md 2.11): who is told of which bind, and when, with
// owner and provider on different gateways; by raw frames and by an unchanged iii-sdk.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { RawWorker } from './lib/clients.mjs';
import { LocalWorker, TYPE } from './lib/local.mjs';
import { Pair } from './lib/pair.mjs';
import { until, withWeir } from './lib/weir.mjs';

// A new connection waits so long for the end of the one whose place it takes (docs/architecture.md); when that one's gateway stands
// still for longer, the name is not free yet.
const REATTACH_MS = 5000;

const pair = new Pair();
let weir;
let here;
let there;
let counter = 0;
const fresh = (name) => `${name}-${(counter += 1)}`;

before(async () => {
  ({ weir, here, there } = await pair.start());
});

after(() => pair.stop());

const openRaw = () => pair.openRaw();
const openPair = () => pair.openRawOnEach();
const parsed = (raw, type) => raw.texts.map((text) => JSON.parse(text)).filter((message) => message.type === type);
const next = (raw, type, number = 1) => raw.waitFor(() => parsed(raw, type).length >= number && parsed(raw, type)[number - 1], `${type} ${number}`);
const provide = (raw, id, fields = {}) => raw.send({ type: 'registertriggertype', id, description: 'of a test', ...fields });
const bind = (raw, id, trigger_type, fields = {}) => raw.send({ type: 'registertrigger', id, trigger_type, function_id: 'app::f', config: null, ...fields });
const answerBind = (raw, { id, trigger_type, function_id }, error) => raw.send({ type: 'triggerregistrationresult', id, trigger_type, function_id, ...(error === undefined ? {} : { error }) });
// Everything a worker has sent so far has reached the broker, and what that leads to has reached `others`.
async function settled(...workers) {
  for (const worker of workers) await worker.call('engine::functions::list', { search: 'nothing' });
}
const set = (raw, stream_name, item_id, data) => raw.result('stream::set', { stream_name, group_id: 'r1', item_id, data });

// covers: A.1, B#8
test('a worker starts: one function, one trigger, one call', async () => {
  const raw = await openRaw();
  assert.deepEqual(Object.keys(raw.registered).sort(), ['reattach_token', 'type', 'worker_id']);
  raw.texts.length = 0;
  const stream = fresh('chat');
  const id = fresh('aa11');
  raw.send(`{"type":"registerfunction","id":"app::on-${stream}"}`);
  raw.send(`{"type":"registertrigger","id":"${id}","trigger_type":"stream","function_id":"app::on-${stream}","config":{"stream_name":"${stream}"},"message_type":"registertrigger"}`);
  raw.send('{"type":"invokefunction","function_id":"engine::workers::register","data":{"runtime":"node","name":"box:1"},"action":{"type":"void"}}');
  const { text } = await raw.callText('e5f6', `{"type":"invokefunction","invocation_id":"e5f6","function_id":"stream::set","data":{"stream_name":"${stream}","group_id":"r1","item_id":"m1","data":{"id":"m1"}}}`);
  assert.equal(text, '{"type":"invocationresult","invocation_id":"e5f6","function_id":"stream::set","result":{"old_value":null,"new_value":{"id":"m1"}}}');
  const asked = await next(raw, 'invokefunction');
  assert.match(asked.invocation_id, /^[0-9a-f-]{36}$/);
  assert.equal(asked.function_id, `app::on-${stream}`);
  const { type, timestamp, streamName, groupId, id: item, event } = asked.data;
  assert.deepEqual({ type, streamName, groupId, item, event }, { type: 'stream', streamName: stream, groupId: 'r1', item: 'm1', event: { type: 'create', data: { id: 'm1' } } });
  assert.equal(typeof timestamp, 'number');
  raw.send({ type: 'invocationresult', invocation_id: asked.invocation_id, function_id: asked.function_id });
  raw.send({ type: 'unregistertrigger', id, trigger_type: 'stream', message_type: 'unregistertrigger' });
  // A trigger of later is shown the same event.
  raw.register(`app::after-${stream}`, () => ({ result: null }));
  bind(raw, fresh('after'), 'stream', { function_id: `app::after-${stream}`, config: { stream_name: stream } });
  await set(raw, stream, 'm2', 1);
  assert.equal((await next(raw, 'invokefunction', 2)).function_id, `app::after-${stream}`);
  await raw.ping();
  assert.deepEqual(raw.texts.map((each) => JSON.parse(each).type), ['invokefunction', 'invokefunction'], 'nothing else was said');
});

// covers: 2.3/1#7, 2.3/1#8, 2.11#1
test('a trigger registered again fires once, and only its owner takes it away', async () => {
  const [owner, stranger] = await openPair();
  const stream = fresh('again');
  owner.register(`app::${stream}`, () => ({ result: null }));
  const config = { stream_name: stream };
  for (let n = 0; n < 3; n += 1) bind(owner, 'same', 'stream', { function_id: `app::${stream}`, config });
  bind(owner, 'same', 'stream', { function_id: `app::${stream}`, config, metadata: { last: true } });
  await settled(owner);
  stranger.send({ type: 'unregistertrigger', id: 'same', trigger_type: 'stream' });
  await settled(stranger);
  await set(stranger, stream, 'i', 1);
  await next(owner, 'invokefunction');
  await set(stranger, stream, 'j', 2);
  await next(owner, 'invokefunction', 2);
  assert.deepEqual(owner.invocations.map(({ data, metadata }) => [data.id, metadata]), [['i', { last: true }], ['j', { last: true }]]);
});

// covers: 2.3/1#2, 2.3/1#9, 2.3/2#5
test('an SDK provides a trigger type, another SDK binds to it and is called', async () => {
  const type = fresh('sdk');
  const bound = new Map();
  const gone = [];
  here.registerTriggerType({ id: type, description: 'of a test' }, {
    registerTrigger: async ({ id, function_id, config, metadata }) => void bound.set(id, { function_id, config, metadata }),
    unregisterTrigger: async ({ id }) => void gone.push(id),
  });
  const seen = [];
  there.registerFunction(`${type}::handler`, async (input) => void seen.push(input.n));
  const trigger = there.registerTrigger({ type, function_id: `${type}::handler`, config: { every: 5 }, metadata: { m: 1 } });
  await until(() => bound.size === 1, 'the bind');
  const [[id, bind_]] = [...bound];
  assert.deepEqual(bind_, { function_id: `${type}::handler`, config: { every: 5 }, metadata: { m: 1 } });
  await here.trigger({ function_id: bind_.function_id, payload: { n: 7 } });
  assert.deepEqual(seen, [7]);
  trigger.unregister();
  await until(() => gone.length === 1, 'the unbind');
  assert.deepEqual(gone, [id]);
});

// covers: 2.11#2
test('without a provider a bind waits in silence, and goes with its owner', async () => {
  const [owner, provider] = await openPair();
  const type = fresh('parked');
  const leaver = await openRaw();
  leaver.register(`${type}::leaver`, () => ({ result: null }));
  bind(owner, 'stays', type, { config: { a: 1 } });
  bind(owner, 'leaves', type);
  bind(leaver, 'goes', type);
  owner.send({ type: 'unregistertrigger', id: 'leaves' });
  await settled(owner, leaver);
  await leaver.close();
  await until(async () => (await owner.call(`${type}::leaver`, {})).error?.code === 'function_not_found', 'the broker knows that it has left');
  assert.deepEqual(parsed(owner, 'triggerregistrationresult'), []);
  provide(provider, type);
  assert.deepEqual(await next(provider, 'registertrigger'), { type: 'registertrigger', id: 'stays', trigger_type: type, function_id: 'app::f', config: { a: 1 } });
  answerBind(provider, { id: 'stays', trigger_type: type, function_id: 'app::f' });
  await settled(provider, owner);
  assert.equal(parsed(provider, 'registertrigger').length, 1);
  assert.deepEqual(parsed(owner, 'triggerregistrationresult'), [], 'success is silent');
  await owner.close();
  assert.deepEqual(await next(provider, 'unregistertrigger'), { type: 'unregistertrigger', id: 'stays', trigger_type: type });
});

// covers: 2.11#5, 2.3/2#4, 2.9#14
test("a provider's refusal reaches the owner; an ill-formed one as well", async () => {
  const [owner, provider] = await openPair();
  const type = fresh('refusing');
  provide(provider, type);
  await settled(provider);
  const errors = [{ code: 'trigger_registration_failed', message: 'config.every is required' }, { code: 'mine', message: 'no', stacktrace: 's' }, { message: 'no code' }];
  for (const [n, error] of errors.entries()) {
    bind(owner, `r${n}`, type);
    answerBind(provider, await next(provider, 'registertrigger', n + 1), error);
    const { error: told, ...rest } = await next(owner, 'triggerregistrationresult', n + 1);
    assert.deepEqual(rest, { type: 'triggerregistrationresult', id: `r${n}`, trigger_type: type, function_id: 'app::f' });
    if (error.code === undefined) assert.equal(told.code, 'trigger_registration_failed');
    else assert.deepEqual(told, error);
  }
});

// covers: 2.9#15
test('an SDK that has forgotten a type answers trigger_type_not_found, and the owner hears it', async () => {
  const owner = await openRaw();
  const type = fresh('forgotten');
  const handler = { registerTrigger: async () => {}, unregisterTrigger: async () => {} };
  here.registerTriggerType({ id: type, description: 'of a test' }, handler);
  here.triggerTypes.delete(type);
  bind(owner, 'lost', type);
  assert.equal((await next(owner, 'triggerregistrationresult')).error.code, 'trigger_type_not_found');
});

test('a provider that goes and comes back, or is replaced, gets the binds that stand', async () => {
  const [owner, provider] = await openPair();
  const type = fresh('coming-back');
  provide(provider, type);
  bind(owner, 'a', type, { metadata: [1] });
  await next(provider, 'registertrigger');
  provider.socket.terminate();
  const second = await openRaw();
  bind(owner, 'b', type);
  await settled(owner);
  provide(second, type);
  await next(second, 'registertrigger', 2);
  assert.deepEqual(parsed(second, 'registertrigger').map(({ id, metadata }) => [id, metadata]).sort(), [['a', [1]], ['b', undefined]]);
  const third = await openRaw();
  provide(third, type);
  await next(third, 'registertrigger', 2);
  await next(second, 'unregistertrigger', 2);
  assert.deepEqual(parsed(second, 'unregistertrigger').map(({ id }) => id).sort(), ['a', 'b']);
  answerBind(second, { id: 'a', trigger_type: type, function_id: 'app::f' }, { code: 'late', message: 'not mine any more' });
  await settled(second, owner);
  assert.deepEqual(parsed(owner, 'triggerregistrationresult'), [], 'only the provider of the day may answer');
});

// covers: 2.3/1#3
test('unregistertriggertype parks the binds until the type is back', async () => {
  const [owner, provider] = await openPair();
  const type = fresh('withdrawn');
  provide(provider, type);
  bind(owner, 'w', type);
  await next(provider, 'registertrigger');
  provider.send({ type: 'unregistertriggertype', id: type, description: 'of a test' });
  await settled(provider);
  const before = parsed(provider, 'registertrigger').length;
  bind(owner, 'x', type);
  await settled(owner, provider);
  assert.equal(parsed(provider, 'registertrigger').length, before);
  provide(provider, type);
  await next(provider, 'registertrigger', before + 2);
  assert.deepEqual(parsed(provider, 'registertrigger').slice(before).map(({ id }) => id).sort(), ['w', 'x']);
});

test("weir's own trigger types cannot be taken over", async () => {
  const [owner, thief] = await openPair();
  for (const id of ['stream', 'stream:join', 'stream:leave']) provide(thief, id);
  await settled(thief);
  const stream = fresh('own');
  owner.register(`app::${stream}`, () => ({ result: null }));
  bind(owner, 's', 'stream', { function_id: `app::${stream}`, config: { stream_name: stream } });
  await settled(owner);
  await set(owner, stream, 'i', 1);
  await next(owner, 'invokefunction');
  assert.deepEqual(parsed(thief, 'registertrigger'), []);
});

test('namespaces: the provider is looked up where the trigger says, else at home, else in default', async () => {
  const [owner, provider] = await openPair();
  const type = fresh('spaces');
  provide(provider, type);
  provide(provider, type, { namespace: 'green' });
  await settled(provider);
  const fields = ({ type: _, trigger_type, config, function_id, ...rest }) => rest;
  bind(owner, 'plain', type, { namespace: 'default' });
  assert.deepEqual(fields(await next(provider, 'registertrigger', 1)), { id: 'plain' });
  bind(owner, 'addressed', type, { namespace: 'blue', trigger_namespace: 'green' });
  assert.deepEqual(fields(await next(provider, 'registertrigger', 2)), { id: 'addressed', namespace: 'blue', trigger_namespace: 'green' });
  bind(owner, 'nowhere', type, { trigger_namespace: 'red' });
  await settled(owner, provider);
  assert.equal(parsed(provider, 'registertrigger').length, 2);
  assert.deepEqual(await owner.result('engine::workers::register', { namespace: 'blue' }), { success: true });
  await next(provider, 'registertrigger', 2);
  bind(owner, 'moved', type);
  const moved = await provider.waitFor(() => parsed(provider, 'registertrigger').find(({ id }) => id === 'moved'), 'the bind of a namespaced worker');
  assert.equal(moved.namespace, 'blue');
});

test('libweir provides a type and has triggers, like any other worker', async () => {
  const owner = await openRaw();
  const local = pair.closeLater(await LocalWorker.open(weir, { namespace: 'violet' }));
  const type = fresh('local');
  const stream = fresh('local-stream');
  local.register('local::handler');
  local.send(TYPE.TRIGGER_REGISTER, [0, 's', 'stream', 'local::handler', JSON.stringify({ stream_name: stream }), '{"m":1}', null, null]);
  local.send(TYPE.TRIGGER_TYPE_REGISTER, [0, 'default', type, 'of a test', null, null]);
  bind(owner, 'b', type, { config: { a: 1 }, metadata: 2, namespace: 'blue' });
  assert.deepEqual((await local.next(TYPE.TRIGGER_BIND)).fields.slice(1), ['b', type, 'app::f', '{"a":1}', '2', 'blue', null]);
  local.send(TYPE.TRIGGER_RESULT, [0, 'b', type, 'app::f', '{"code":"mine","message":"no"}']);
  assert.deepEqual((await next(owner, 'triggerregistrationresult')).error, { code: 'mine', message: 'no' });
  await set(owner, stream, 'i', 5);
  const { fields } = await local.next(TYPE.INVOKE);
  assert.equal(fields[1], 'local::handler', "its function is in the worker's own namespace");
  assert.equal(JSON.parse(fields[2]).id, 'i');
  assert.equal(fields[3], '{"m":1}');
  bind(owner, 'c', type);
  await local.next(TYPE.TRIGGER_BIND, 2);
  owner.send({ type: 'unregistertrigger', id: 'c' });
  assert.deepEqual((await local.next(TYPE.TRIGGER_UNBIND)).fields.slice(1), ['c', type]);
});

// covers: B#9
test('a broker that dies is told everything again', async () => {
  const [owner, provider] = await openPair();
  const type = fresh('again-after-death');
  const stream = fresh('after-death');
  owner.register(`app::${stream}`, () => ({ result: null }));
  provide(provider, type);
  bind(owner, 'custom', type);
  bind(owner, 'own', 'stream', { function_id: `app::${stream}`, config: { stream_name: stream } });
  await next(provider, 'registertrigger');
  const before = weir.broker();
  process.kill(before, 'SIGKILL');
  await weir.brokerAfter(before);
  await next(provider, 'registertrigger', 2);
  await until(async () => (await owner.call('stream::set', { stream_name: stream, group_id: 'r1', item_id: 'i', data: 1 })).error === undefined, 'writes work again');
  await next(owner, 'invokefunction');
  assert.equal(owner.closed, null);
  assert.equal(provider.closed, null);
});

// covers: 2.3/2#6
test('with unique_worker_names the second of a name is told and closed', async () => {
  await withWeir({ settings: { unique_worker_names: 'true' } }, async (other, later) => {
    const [first, second] = [...(await other.openOnEach(() => RawWorker.open(other.workerUrl))).values()].flat().map(later);
    await first.result('engine::workers::register', { name: 'only' });
    await settled(first);
    second.send({ type: 'invokefunction', function_id: 'engine::workers::register', data: { name: 'only' }, action: { type: 'void' } });
    await until(() => second.closed, 'the close');
    assert.deepEqual(parsed(second, 'registrationrejected'), [{
      type: 'registrationrejected', code: 'WORKER_NAMESPACE_CONFLICT', namespace: 'default', worker_name: 'only', owner_worker_id: first.registered.worker_id,
    }]);
    assert.equal(first.closed, null);
    // Whoever comes back has its name: the connection that held it is retired first.
    const comeBack = async () => {
      const startedMs = performance.now();
      const next = later(await RawWorker.open(other.workerUrl));
      next.send({ type: 'reattach', previous_worker_id: first.registered.worker_id, reattach_token: first.registered.reattach_token });
      const answer = await Promise.race([next.call('engine::workers::register', { name: 'only' }), next.closing]);
      await until(() => first.closed, 'the first is retired');
      const isLate = performance.now() - startedMs >= REATTACH_MS;
      await Promise.race([settled(next), next.closing]);
      if (isLate) return next.closed === null && next;
      assert.deepEqual(answer, { result: { success: true } });
      assert.equal(next.closed, null);
      return next;
    };
    const back = await until(comeBack, 'the first comes back');
    const local = later(await LocalWorker.open(other, { name: 'mine' }));
    for (let previous = local, round = 0; round < 4; round += 1) {
      const startedMs = performance.now();
      const again = later(await LocalWorker.open(other, { name: 'mine', previous }));
      await until(() => previous.isClosed, 'the previous one is retired');
      const isLate = performance.now() - startedMs >= REATTACH_MS;
      await settled(back);
      if (!isLate) assert.deepEqual(again.of(TYPE.REFUSED), []);
      previous = again;
    }
    const taken = later(await LocalWorker.open(other, { name: 'only' }));
    await taken.next(TYPE.REFUSED);
    assert.equal(taken.of(TYPE.REFUSED)[0].fields[0], 'WORKER_NAMESPACE_CONFLICT');
  });
});

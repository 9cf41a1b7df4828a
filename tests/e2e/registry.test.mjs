// registry.test.mjs -- trigger types of workers, and what engine::*::list and ::info say (docs/protocol.md 2.11 - 2.15), by raw
// frames and by an unchanged iii-sdk, owner and provider on two gateways.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { after, before, test } from 'node:test';
import { RawWorker } from './lib/clients.mjs';
import { Pair } from './lib/pair.mjs';
import { codeOf, openSdkClient } from './lib/sdk.mjs';
import { Weir, until } from './lib/weir.mjs';

const pair = new Pair();
let weir;
let here;
let there;

before(async () => {
  ({ weir, here, there } = await pair.start());
});

after(() => pair.stop());

const openRaw = () => pair.openRaw();
// An owner on one gateway and a provider on the other.
const openPair = () => pair.openRawOnEach();
const messages = (raw, type) => raw.texts.map((text) => JSON.parse(text)).filter((message) => message.type === type);
const nth = (raw, type, index) => raw.waitFor(() => messages(raw, type)[index], `${type} number ${index + 1}`);
const call = (name, payload) => here.trigger({ function_id: name, payload });
// A call's answer is proof that all the worker sent before it has been handled.
const settled = (raw) => raw.call('engine::functions::list', {});

// covers: 2.11#1, 2.11#2
test('a bind waits silently for its provider, and is gone with its owner', async () => {
  const [owner, provider] = await openPair();
  const id = randomUUID();
  owner.send({ type: 'registertrigger', id, trigger_type: 'registry::a', function_id: 'f', config: { every: 5 }, metadata: [1] });
  await settled(owner);
  assert.deepEqual((await call('engine::registered-triggers::list', { trigger_type: 'registry::a' })).registered_triggers, []);
  provider.send({ type: 'registertriggertype', id: 'registry::a', description: 'for the test' });
  assert.deepEqual(await nth(provider, 'registertrigger', 0),
    { type: 'registertrigger', id, trigger_type: 'registry::a', function_id: 'f', config: { every: 5 }, metadata: [1] });
  provider.send({ type: 'triggerregistrationresult', id, trigger_type: 'registry::a', function_id: 'f' });
  await settled(provider);
  assert.deepEqual((await call('engine::registered-triggers::list', { trigger_type: 'registry::a' })).registered_triggers.map((trigger) => trigger.id), [id]);
  await owner.close();
  assert.deepEqual(await nth(provider, 'unregistertrigger', 0), { type: 'unregistertrigger', id, trigger_type: 'registry::a' });
  assert.deepEqual(messages(owner, 'triggerregistrationresult'), []);
  assert.deepEqual((await call('engine::registered-triggers::list', { trigger_type: 'registry::a' })).registered_triggers, []);
});

// covers: 2.11#5
test('a refused bind is told to its owner, and waits until the type is provided anew', async () => {
  const [owner, provider] = await openPair();
  const next = await openRaw();
  const id = randomUUID();
  const error = { code: 'trigger_registration_failed', message: 'every is missing' };
  provider.send({ type: 'registertriggertype', id: 'registry::b', description: '' });
  await settled(provider);
  owner.send({ type: 'registertrigger', id, trigger_type: 'registry::b', function_id: 'f', config: null });
  await nth(provider, 'registertrigger', 0);
  provider.send({ type: 'triggerregistrationresult', id, trigger_type: 'registry::b', function_id: 'f', error });
  assert.deepEqual(await nth(owner, 'triggerregistrationresult', 0),
    { type: 'triggerregistrationresult', id, trigger_type: 'registry::b', function_id: 'f', error });
  next.send({ type: 'registertriggertype', id: 'registry::b', description: '' });
  assert.equal((await nth(next, 'registertrigger', 0)).id, id);
  assert.deepEqual(messages(provider, 'unregistertrigger'), [], 'what was refused is not taken back');
  // A result counts from the connection that provides the type now, and from no other.
  provider.send({ type: 'triggerregistrationresult', id, trigger_type: 'registry::b', function_id: 'f', error });
  await settled(provider);
  await settled(owner);
  assert.equal(messages(owner, 'triggerregistrationresult').length, 1);
});

test('binds follow their type, to whom it is provided by and away from who left', async () => {
  const [owner, first] = await openPair();
  const second = await openRaw();
  const id = randomUUID();
  first.send({ type: 'registertriggertype', id: 'registry::c', description: '' });
  await settled(first);
  owner.send({ type: 'registertrigger', id, trigger_type: 'registry::c', function_id: 'f', config: {} });
  await nth(first, 'registertrigger', 0);
  second.send({ type: 'registertriggertype', id: 'registry::c', description: '' });
  await nth(second, 'registertrigger', 0);
  await nth(first, 'unregistertrigger', 0);
  second.send({ type: 'unregistertriggertype', id: 'registry::c' });
  await until(async () => await codeOf(call('engine::triggers::info', { id: 'registry::c' })) === 'NOT_FOUND', 'the type is gone');
  first.send({ type: 'registertriggertype', id: 'registry::c', description: '' });
  await nth(first, 'registertrigger', 1);
  // Registered again, the id is bound anew; a stranger does not unregister it, its owner does.
  owner.send({ type: 'registertrigger', id, trigger_type: 'registry::c', function_id: 'g', config: {} });
  assert.equal((await nth(first, 'registertrigger', 2)).function_id, 'g');
  assert.equal(messages(first, 'unregistertrigger').length, 2);
  second.send({ type: 'unregistertrigger', id });
  await settled(second);
  assert.deepEqual((await call('engine::registered-triggers::list', { trigger_type: 'registry::c' })).registered_triggers.map((trigger) => trigger.function_id), ['g']);
  owner.send({ type: 'unregistertrigger', id });
  await nth(first, 'unregistertrigger', 2);
});

test('an SDK worker provides a type, another one uses it across gateways', async () => {
  const bound = new Map();
  const fired = [];
  const type = here.registerTriggerType({ id: 'registry::sdk', description: 'fires when told' }, {
    registerTrigger: async (config) => {
      if (config.config?.bad) throw new Error('bad config');
      bound.set(config.id, config);
    },
    unregisterTrigger: async ({ id }) => bound.delete(id),
  });
  there.registerFunction('registry::handler', async (input) => { fired.push(input.n); return null; });
  const trigger = there.registerTrigger({ type: 'registry::sdk', function_id: 'registry::handler', config: { n: 1 } });
  await until(() => bound.size === 1, 'the provider knows the bind');
  const [{ function_id, config }] = bound.values();
  await here.trigger({ function_id, payload: config });
  assert.deepEqual(fired, [1]);
  const info = await call('engine::triggers::info', { id: 'registry::sdk' });
  assert.equal(info.description, 'fires when told');
  assert.equal(info.instance_count, 1);
  trigger.unregister();
  await until(() => bound.size === 0, 'the provider knows the end');
  type.unregister();
});

// covers: 2.15#3, 2.15#4, 2.15#5, 2.15#6, 2.15#7, 2.15#8, 2.15#9
test('the listings show an SDK worker with all it has', async () => {
  const name = `registry-${process.pid}`;
  const worker = (await openSdkClient(weir.workerUrl, { workerName: name, workerDescription: 'shown' })).worker;
  pair.closeLater({ close: () => worker.shutdown() });
  worker.registerFunction('registry::shown', async () => null, { description: 'a function', metadata: { k: 1 } });
  worker.registerTrigger({ type: 'stream', function_id: 'registry::shown', config: { stream_name: 'registry' } });
  const info = await until(async () => {
    const found = await call('engine::workers::info', { name }).catch(() => undefined);
    return found?.registered_triggers.length === 1 && found;
  }, 'the worker is shown');
  assert.equal(info.worker.id, worker.workerId);
  assert.equal(info.worker.pid, process.pid);
  assert.equal(info.worker.status, 'connected');
  assert.equal(info.worker.runtime, 'node');
  assert.equal(info.worker.ip_address, '127.0.0.1');
  assert.equal(info.worker.internal, false);
  assert.ok(Math.abs(info.worker.connected_at_ms - Date.now()) < 600000);
  const shown = { function_id: 'registry::shown', namespace: 'default', worker_name: name, description: 'a function', metadata: { k: 1 } };
  assert.deepEqual(info.functions, [shown]);
  const [registered] = info.registered_triggers;
  assert.equal(registered.config_summary, '{"stream_name":"registry"}');

  const { workers } = await call('engine::workers::list', {});
  const { pid, internal, ...listed } = info.worker;
  assert.deepEqual(workers.find((each) => each.id === worker.workerId), listed);
  const names = workers.map((each) => each.name);
  assert.ok(names.includes('iii-stream') && names.includes('engine'));

  const detail = await call('engine::functions::info', { function_id: 'registry::shown' });
  assert.deepEqual(detail.registered_triggers, [{ id: registered.id, trigger_type: 'stream', config: { stream_name: 'registry' } }]);
  const { functions } = await call('engine::functions::info', { function_ids: ['registry::shown', 'registry::none'] });
  assert.deepEqual(functions, [detail, { function_id: 'registry::none', error: 'not_found' }]);
  const whole = await call('engine::registered-triggers::info', { id: registered.id });
  assert.deepEqual(whole.function, detail);
  assert.equal(whole.trigger.id, 'stream');
  assert.deepEqual((await call('engine::registered-triggers::list', { function_id: 'registry::shown' })).registered_triggers, [registered]);
  const { triggers } = await call('engine::triggers::list', { worker: 'iii-stream' });
  assert.deepEqual(triggers.map(({ id }) => id), ['stream', 'stream:join', 'stream:leave']);
  assert.ok((await call('engine::triggers::info', { id: 'stream' })).instance_count >= 1);

  await worker.shutdown();
  await until(async () => await codeOf(call('engine::workers::info', { name })) === 'NOT_FOUND', 'the worker is gone');
  assert.equal(await codeOf(call('engine::registered-triggers::info', { id: registered.id })), 'NOT_FOUND');
});

// covers: 2.15#10, 2.15#11, 2.15#14
test('functions of the engine that are not here say so', async () => {
  for (const name of ['engine::register_trigger', 'engine::unregister_trigger', 'engine::baggage::get', 'engine::nothing']) {
    assert.equal(await codeOf(call(name, {})), 'function_not_found');
  }
  assert.equal(await codeOf(call('engine::functions::info', {})), 'INVALID_ARGUMENTS');
  assert.equal(await codeOf(call('engine::workers::list', { search: 1 })), 'deserialization_error');
});

test('functions-available and workers-available tell what has changed', async () => {
  const events = [];
  here.registerFunction('registry::watch', async (input) => { events.push(input); return null; });
  here.registerTrigger({ type: 'engine::functions-available', function_id: 'registry::watch', config: {} });
  here.registerTrigger({ type: 'engine::workers-available', function_id: 'registry::watch', config: {} });
  await until(async () => (await call('engine::registered-triggers::list', { function_id: 'registry::watch', include_internal: true })).registered_triggers.length === 2, 'both are live');
  const raw = await openRaw();
  raw.register('registry::new', () => ({ result: null }));
  raw.send({ type: 'invokefunction', function_id: 'engine::workers::register', action: { type: 'void' }, data: { name: 'x' } });
  const id = (await nth(raw, 'workerregistered', 0)).worker_id;
  const told = (event) => until(() => events.some((each) => each.event === event && each.worker_id === id), event);
  await told('worker_connected');
  await told('worker_metadata_updated');
  await until(() => events.some((each) => each.event === 'functions_changed' && each.functions.some((entry) => entry.function_id === 'registry::new')), 'the new function');
  await raw.close();
  await told('worker_disconnected');
  const latest = () => events.findLast((each) => each.event === 'functions_changed');
  await until(() => !latest().functions.some((entry) => entry.function_id === 'registry::new'), 'the function is gone');
});

test('a broker that died comes back to the same binds', async () => {
  const [owner, provider] = await openPair();
  const id = randomUUID();
  const listed = () => call('engine::registered-triggers::list', { trigger_type: 'registry::d' })
    .then(({ registered_triggers }) => registered_triggers.map((trigger) => trigger.id), () => undefined);
  provider.send({ type: 'registertriggertype', id: 'registry::d', description: '' });
  await settled(provider);
  owner.send({ type: 'registertrigger', id, trigger_type: 'registry::d', function_id: 'f', config: {} });
  await nth(provider, 'registertrigger', 0);
  const broker = weir.broker();
  process.kill(broker, 'SIGKILL');
  await until(() => !weir.isAlive(broker), 'the broker is dead');
  await nth(provider, 'registertrigger', 1);
  await until(async () => (await listed())?.join() === id, 'the bind is there again');
  owner.send({ type: 'unregistertrigger', id });
  await nth(provider, 'unregistertrigger', 0);
  assert.deepEqual(await listed(), []);
});

test('with unique_worker_names a second worker of a name is sent away', async () => {
  const strict = await Weir.start({ settings: { unique_worker_names: true }, gateways: 2 });
  try {
    const register = { type: 'invokefunction', function_id: 'engine::workers::register', action: { type: 'void' }, data: { name: 'only', pid: 1 } };
    const first = await RawWorker.open(strict.workerUrl);
    first.send(register);
    await until(async () => (await first.result('engine::workers::list', { search: 'only' })).workers.length === 1, 'the first is known');
    const { worker_id: owner } = messages(first, 'workerregistered')[0];
    const second = await RawWorker.open(strict.workerUrl);
    second.send(register);
    assert.deepEqual(await nth(second, 'registrationrejected', 0),
      { type: 'registrationrejected', code: 'WORKER_NAMESPACE_CONFLICT', namespace: 'default', worker_name: 'only', owner_worker_id: owner });
    await until(() => second.closed, 'the second is closed');
    await first.close();
    // The first is gone for its own gateway, and for the broker a little later: until then who comes is sent away, without an answer.
    await until(async () => {
      const next = await RawWorker.open(strict.workerUrl);
      next.send(register);
      const answer = await Promise.race([next.call('engine::workers::list', { search: 'only' }), next.closing]);
      await next.close();
      return answer.result?.workers.some(({ id }) => id === messages(next, 'workerregistered')[0].worker_id);
    }, 'the name is free again');
  } finally {
    await strict.stop();
  }
});

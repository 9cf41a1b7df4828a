// leave.test.mjs -- stream:leave triggers: one call for each subscription that ends, however it ends: a leave message, a closed or
// killed client, a killed gateway, a broker that was away meanwhile.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { afterEach, beforeEach, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { openSdkClient } from './lib/sdk.mjs';
import { Weir, until } from './lib/weir.mjs';

const CROWD = 50;

let weir;
let workers; // one SDK worker on each gateway, by the gateway's pid
let subscribers;
let names = 0;
const fresh = (name) => `${name}${(names += 1)}`;

beforeEach(async () => {
  weir = await Weir.start();
  subscribers = [];
  const found = await weir.openOnEach(() => openSdkClient(weir.workerUrl));
  workers = new Map([...found].map(([pid, [client]]) => [pid, client.worker]));
});

afterEach(async () => {
  await Promise.all(subscribers.map((subscriber) => subscriber.close()));
  await Promise.all([...workers.values()].map((worker) => worker.shutdown()));
  await weir.stop();
});

const openStream = async () => {
  const subscriber = await Subscriber.open(weir.streamUrl);
  subscribers.push(subscriber);
  return subscriber;
};
const openOn = (pid) => weir.openOn(pid, openStream);
const pids = () => [...workers.keys()];
const left = (subscription_id, stream_name, group_id, id = null) => ({ subscription_id, stream_name, group_id, id, context: null });
const byId = (a, b) => (a.subscription_id < b.subscription_id ? -1 : 1);

async function metric(name) {
  const text = await weir.metrics();
  return Number(new RegExp(`^weir_broker_${name} (\\d+)`, 'm').exec(text)?.[1]);
}

const presence = (count) => until(async () => (await metric('presence')) === count, `the broker knows of ${count} subscriptions`);

// A call travels behind what the worker said before, through gateway and broker: then that is in effect. What the broker has told
// another gateway because of it comes there before the answer to a later call.
const settle = (worker) => worker.trigger({ function_id: 'engine::functions::list', payload: { search: 'nothing' } });
async function settleEverywhere(worker) {
  await settle(worker);
  for (const each of workers.values()) await settle(each);
}

// A stream:leave trigger whose handler keeps what it is given.
async function watch(worker, { config = null, metadata, answer = () => null } = {}) {
  const function_id = fresh('on::leave');
  const calls = [];
  worker.registerFunction(function_id, async (data, given) => {
    calls.push({ data, metadata: given });
    return answer(data);
  });
  const trigger = worker.registerTrigger({ type: 'stream:leave', function_id, config, ...(metadata === undefined ? {} : { metadata }) });
  await settleEverywhere(worker);
  return { calls, trigger, leaves: () => calls.map(({ data }) => data) };
}

const came = (watcher, count) => until(() => watcher.calls.length >= count, `${count} leaves`);

// Handlers are called in the order of the leaves: when this last one has come, whatever was fired before it has come.
async function lastLeave(watcher, stream = 'last') {
  const subscriptionId = fresh('last');
  const subscriber = await openStream();
  await subscriber.joined(stream, 'g', { subscriptionId });
  subscriber.leave(stream, 'g', subscriptionId);
  await until(() => watcher.calls.some(({ data }) => data.subscription_id === subscriptionId), 'the last leave');
  return watcher.leaves().filter(({ stream_name }) => stream_name !== stream);
}

// Subscribers on the gateway `pid`, each with one subscription of its own name.
async function crowdOn(pid, count, stream) {
  const crowd = [];
  while (crowd.length < count) {
    const subscriber = await openOn(pid);
    subscriber.name = fresh('crowd');
    await subscriber.joined(stream, `g${crowd.length % 3}`, { subscriptionId: subscriber.name });
    crowd.push(subscriber);
  }
  return crowd;
}

function assertOnce(leaves, expected) {
  assert.deepEqual(leaves.map(({ subscription_id }) => subscription_id).sort(), [...expected].sort(), 'each of them once');
}

// covers: B#8
test('a leave message and a closed socket, on any gateway: exact payloads, once each', async () => {
  const [here, there] = pids();
  const watcher = await watch(workers.get(here));
  const [first, second] = [await openOn(here), await openOn(there)];
  for (const subscriber of [first, second]) {
    await subscriber.joined('chat', 'room "1"\n', { subscriptionId: 'whole' });
    await subscriber.joined('chat', 'room-2', { id: 'msg-9', subscriptionId: 'item' });
  }
  assert.equal(watcher.calls.length, 0, 'nobody has left');
  first.leave('other', 'names are not looked at', 'whole');
  await came(watcher, 1);
  assert.deepEqual(watcher.leaves(), [left('whole', 'chat', 'room "1"\n')]);
  first.leave('chat', 'room "1"\n', 'whole');
  first.leave('chat', 'room-2', 'unknown');
  await first.ping();
  await first.close();
  await came(watcher, 2);
  assert.deepEqual(watcher.leaves()[1], left('item', 'chat', 'room-2', 'msg-9'));
  await second.close();
  await came(watcher, 4);
  const all = await lastLeave(watcher);
  assert.deepEqual(all.slice(2).sort(byId), [left('item', 'chat', 'room-2', 'msg-9'), left('whole', 'chat', 'room "1"\n')]);
  assert.equal(all.length, 4);
  const empty = await openOn(there);
  await empty.joined('', '', { id: '', subscriptionId: '' });
  await empty.close();
  await came(watcher, 6);
  assert.deepEqual(watcher.leaves()[5], left('', '', '', ''));
  assert.equal(watcher.calls[0].metadata, undefined);
});

test('a client killed with SIGKILL leaves', async () => {
  const watcher = await watch(workers.get(pids()[0]));
  const script = `
    import { WebSocket } from 'ws';
    const socket = new WebSocket(${JSON.stringify(weir.streamUrl)});
    socket.on('open', () => socket.send(JSON.stringify({ type: 'join', data: { subscriptionId: 'doomed', streamName: 'chat', groupId: 'g' } })));
    socket.on('message', () => console.log('joined'));`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    cwd: fileURLToPath(new URL('.', import.meta.url)), stdio: ['ignore', 'pipe', 'inherit'],
  });
  try {
    const said = await Promise.race([once(child.stdout, 'data'), once(child, 'exit')]);
    assert.equal(String(said[0]), 'joined\n');
    child.kill('SIGKILL');
    await came(watcher, 1);
    assert.deepEqual(await lastLeave(watcher), [left('doomed', 'chat', 'g')]);
  } finally {
    child.kill('SIGKILL');
  }
});

test('a replaced subscription does not leave, its successor does, with its own names', async () => {
  const watcher = await watch(workers.get(pids()[0]));
  const subscriber = await openOn(pids()[1]);
  await subscriber.joined('chat', 'old', { subscriptionId: 's1' });
  await subscriber.joined('chat', 'new', { id: 'item', subscriptionId: 's1' });
  await subscriber.joined('news', 'newest', { subscriptionId: 's1' });
  assert.deepEqual(await lastLeave(watcher), []);
  await subscriber.close();
  await came(watcher, 2);
  assert.deepEqual(await lastLeave(watcher), [left('s1', 'news', 'newest')]);
});

test('who was there before the trigger leaves as well; nobody is called after it is unregistered', async () => {
  const [here, there] = pids();
  const early = [...(await crowdOn(here, 3, 'early')), ...(await crowdOn(there, 3, 'early'))];
  const watcher = await watch(workers.get(here));
  await presence(6);
  await early[0].close();
  await early[3].close();
  await came(watcher, 2);
  assertOnce(await lastLeave(watcher), [early[0].name, early[3].name]);

  const before = watcher.calls.length;
  watcher.trigger.unregister();
  await settleEverywhere(workers.get(here));
  await presence(0);
  early[1].socket.close();
  await early[1].closing; // its gateway has let go of it
  const again = await watch(workers.get(there));
  await presence(4 - 1);
  await early[4].close();
  await came(again, 1);
  assertOnce(await lastLeave(again), [early[4].name]);
  assert.equal(watcher.calls.length, before);
});

test('metadata, stream_name and condition of each trigger; what fails is counted and holds up nobody', async () => {
  const [here, there] = pids();
  const worker = workers.get(here);
  const condition = fresh('when');
  const asked = [];
  worker.registerFunction(condition, async (data, metadata) => {
    asked.push({ data, metadata });
    if (data.group_id === 'error') throw new Error('no answer');
    return { no: false, zero: 0, text: 'false', object: { value: false }, yes: true }[data.group_id];
  });
  const all = await watch(worker, { metadata: { team: 'a', n: [1] } });
  const chat = await watch(workers.get(there), { config: { stream_name: 'chat' }, metadata: 'text' });
  const chosen = await watch(worker, { config: { stream_name: 'chat', condition_function_id: condition }, metadata: { m: 1 } });
  const missing = await watch(worker, { config: { condition_function_id: fresh('nobody') } });
  const failing = await watch(worker, { answer: () => Promise.reject(new Error('a handler that fails')) });
  const groups = ['no', 'yes', 'zero', 'text', 'object', 'nothing', 'error'];
  const subscriber = await openOn(there);
  await subscriber.joined('news', 'yes', { subscriptionId: 'other stream' });
  for (const group of groups) await subscriber.joined('chat', group, { subscriptionId: group });
  subscriber.leave('news', 'yes', 'other stream');
  for (const group of groups) subscriber.leave('chat', group, group);
  await Promise.all([came(all, 8), came(chat, 7), came(failing, 8)]);

  await lastLeave(all);
  await lastLeave(chosen, 'chat');
  assert.deepEqual(all.calls[1], { data: left('no', 'chat', 'no'), metadata: { team: 'a', n: [1] } });
  assert.deepEqual(chat.leaves().slice(0, 7), groups.map((group) => left(group, 'chat', group)), 'in order');
  assert.ok(chat.calls.every(({ metadata }) => metadata === 'text'));
  assert.deepEqual(chosen.leaves().slice(0, 5).map(({ group_id }) => group_id), ['yes', 'zero', 'text', 'object', 'nothing']);
  assert.deepEqual(chosen.calls[0].metadata, { m: 1 });
  assert.deepEqual(asked[0], { data: left('no', 'chat', 'no'), metadata: undefined }, 'the same payload, no metadata');
  assert.equal(missing.calls.length, 0);
  await until(async () => (await metric('deliveries_failed_total')) >= 8 + 8 + 1, 'the failures are counted');
});

test('a raw worker is called with an invocation_id; an answer of any kind, or none, changes nothing', async () => {
  const raw = await RawWorker.open(weir.workerUrl);
  const handlers = { 'raw::silent': () => undefined, 'raw::error': () => ({ error: { code: 'x', message: 'y' } }), 'raw::fine': () => ({ result: 7 }) };
  for (const [id, handler] of Object.entries(handlers)) {
    raw.register(id, handler);
    raw.send({ type: 'registertrigger', id: `t-${id}`, trigger_type: 'stream:leave', function_id: id, config: {} });
  }
  await raw.result('engine::functions::list', { search: 'nothing' });
  for (const worker of workers.values()) await settle(worker);
  const subscriber = await openStream();
  for (const subscriptionId of ['a', 'b', 'c']) await subscriber.joined('chat', 'g', { subscriptionId });
  await subscriber.close();
  await until(() => raw.invocations.length === 9, 'three leaves for three triggers');
  for (const id of Object.keys(handlers)) {
    const mine = raw.invocations.filter(({ function_id }) => function_id === id);
    assert.deepEqual(mine.map(({ data }) => data).sort(byId), ['a', 'b', 'c'].map((name) => left(name, 'chat', 'g')));
    assert.ok(mine.every(({ invocation_id }) => typeof invocation_id === 'string'));
  }
  await raw.close();
});

test(`kill -9 of a gateway with ${CROWD} subscribers: ${CROWD} leaves, none twice, and none of the other gateway`, async () => {
  const [survivor, victim] = pids();
  const watcher = await watch(workers.get(survivor));
  const doomed = await crowdOn(victim, CROWD, 'crash');
  const staying = await crowdOn(survivor, 3, 'crash');
  const gone = doomed.splice(0, 2);
  for (const subscriber of gone) subscriber.leave('crash', 'g', subscriber.name);
  await came(watcher, 2);
  process.kill(victim, 'SIGKILL');
  await came(watcher, CROWD);
  assertOnce(await lastLeave(watcher), [...gone, ...doomed].map(({ name }) => name));
  const again = await openOn((await weir.gatewaysAfter(victim)).find((pid) => pid !== survivor));
  await again.joined('crash', 'g', { subscriptionId: 'again' });
  await presence(staying.length + 1);
  await again.close();
  await staying[0].close();
  await came(watcher, CROWD + 3);
  assertOnce(await lastLeave(watcher), [...gone, ...doomed, staying[0], { name: 'again' }].map(({ name }) => name));
});

test('kill -9 of the broker: who leaves meanwhile leaves once, who stays leaves later, once', async () => {
  const [here, there] = pids();
  // Both on one gateway, which comes back with both: what is left before a gateway is back is not told to triggers there.
  const watcher = await watch(workers.get(here));
  const other = await watch(workers.get(here));
  const everybody = [...(await crowdOn(here, 10, 'outage')), ...(await crowdOn(there, 10, 'outage'))];
  await presence(20);
  const expected = [];
  for (let round = 0; round < 3; round += 1) {
    const broker = weir.broker();
    process.kill(broker, 'SIGKILL');
    const leaving = everybody.splice(everybody.length / 2 - 2, 4);
    leaving[0].leave('outage', 'g', leaving[0].name);
    leaving[1].close();
    leaving[2].socket.terminate();
    await weir.brokerAfter(broker);
    leaving[3].leave('outage', 'g', leaving[3].name);
    expected.push(...leaving.map(({ name }) => name));
    // By both: a call on its way is lost with the broker. And each gateway has heard of it: what the broker says has come before the
    // answer to a later call, and a leave that a gateway does not know to be fired is told to the next broker again.
    const hasAll = ({ calls }) => expected.every((name) => calls.some(({ data }) => data.subscription_id === name));
    await until(() => [watcher, other].every(hasAll), 'those who left meanwhile');
    await presence(everybody.length);
    await settleEverywhere(workers.get(here));
  }
  assertOnce(await lastLeave(watcher), expected);
  const late = await watch(workers.get(there));
  const rest = everybody.map(({ name }) => name);
  for (const subscriber of everybody) {
    subscriber.close();
    expected.push(subscriber.name);
  }
  await until(() => watcher.leaves().filter(({ stream_name }) => stream_name === 'outage').length >= expected.length, 'everybody has left');
  assertOnce(await lastLeave(watcher), expected);
  assertOnce(await lastLeave(other), expected);
  assertOnce(await lastLeave(late), rest);
});

test('kill -9 of the broker, then of a gateway: everybody on it leaves, once', async () => {
  const [survivor, victim] = pids();
  const watcher = await watch(workers.get(survivor));
  const doomed = await crowdOn(victim, CROWD, 'both');
  const before = doomed.splice(0, 5);
  const broker = weir.broker();
  process.kill(broker, 'SIGKILL');
  for (const subscriber of before) subscriber.leave('both', 'g', subscriber.name);
  await weir.brokerAfter(broker);
  await came(watcher, before.length);
  await presence(doomed.length);
  process.kill(victim, 'SIGKILL');
  await came(watcher, CROWD);
  assertOnce(await lastLeave(watcher), [...before, ...doomed].map(({ name }) => name));
});

test('a fresh sync is no leave: a broker that comes back asks nobody to go', async () => {
  const [here, there] = pids();
  const watcher = await watch(workers.get(here));
  const staying = [await openOn(here), await openOn(there)];
  for (const [index, subscriber] of staying.entries()) await subscriber.joined('chat', 'g', { subscriptionId: `stay${index}` });
  for (let round = 0; round < 2; round += 1) {
    const broker = weir.broker();
    process.kill(broker, round === 0 ? 'SIGKILL' : 'SIGTERM');
    await weir.brokerAfter(broker);
    for (const subscriber of staying) await subscriber.waitFor(() => subscriber.syncs.length >= round + 2, 'the fresh sync');
    await presence(2);
  }
  assert.deepEqual(await lastLeave(watcher), []);
  await staying[0].close();
  await came(watcher, 2);
  assert.deepEqual(await lastLeave(watcher), [left('stay0', 'chat', 'g')]);
});

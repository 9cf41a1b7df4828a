// crash.test.mjs -- any process may die: gateways and the broker by SIGKILL, gateways and the broker stopped by SIGSTOP.
import assert from 'node:assert/strict';
import { afterEach, beforeEach, test } from 'node:test';
import { Stream } from '@motiadev/stream-client-node';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { Follower, byId } from './lib/follower.mjs';
import { GroupModel } from './lib/model.mjs';
import { localPortOf, openSdkWorker, codeOf } from './lib/sdk.mjs';
import { Weir, delay, standStill, until } from './lib/weir.mjs';

let weir;
beforeEach(async () => {
  weir = await Weir.start();
});
afterEach(() => weir.stop());

const openStream = () => Subscriber.open(weir.streamUrl);
const openWorker = () => RawWorker.open(weir.workerUrl);
const closeAll = (clients) => Promise.all(clients.map((client) => client.close()));

// Events follow their sync without a gap and with strictly increasing timestamps.
function assertGapless(envelopes) {
  let last = null;
  for (const envelope of envelopes) {
    if (envelope.event.type !== 'sync') {
      assert.equal(envelope.epoch, last.epoch);
      assert.equal(envelope.seq, last.seq + 1);
      assert.ok(envelope.timestamp > last.timestamp);
    }
    last = envelope;
  }
}

test('kill -9 of either gateway: the other delivers on, a new one takes the port, functions and clients come back', async () => {
  const sdk = await openSdkWorker(weir.workerUrl);
  sdk.registerFunction('app::alive', async () => 'yes');
  for (let round = 0; round < 2; round += 1) {
    const pids = await weir.gatewaysAfter();
    const holder = await until(() => weir.gatewayOf(localPortOf(sdk), weir.workerPort), 'the gateway that has the SDK worker');
    const victim = round === 0 ? holder : pids.find((pid) => pid !== holder);
    const survivor = pids.find((pid) => pid !== victim);
    const group = `g${round}`;
    const watcher = await weir.openOn(survivor, openStream);
    const doomed = await weir.openOn(victim, openStream);
    const writer = await weir.openOn(survivor, openWorker);
    for (const subscriber of [watcher, doomed]) await subscriber.joined('crash', group);
    const writes = [];
    for (let n = 0; n < 400; n += 1) {
      writes.push(writer.set('crash', group, `i${n % 10}`, { id: `i${n % 10}`, n }));
      if (n === 200) process.kill(victim, 'SIGKILL');
      if (n % 20 === 0) await delay(1);
    }
    for (const answer of await Promise.all(writes)) assert.equal(answer.error, undefined);
    await watcher.waitFor(() => watcher.events.length === 400, 'every event at the survivor');
    assertGapless(watcher.envelopes);
    await until(() => doomed.closed, 'the connection to the killed gateway ends');
    await weir.gatewaysAfter(victim);

    const again = await weir.openOn(weir.gateways().find((pid) => pid !== survivor), openStream);
    const sync = await again.joined('crash', group);
    assert.equal(sync.seq, watcher.events.at(-1).seq, 'the new gateway knows the state');
    assert.equal(sync.epoch, watcher.events.at(-1).epoch, 'and the epoch is the same');
    assert.equal(sync.event.data.length, 10);
    await writer.set('crash', group, 'last', { id: 'last' });
    await again.count(2);
    await until(async () => (await codeOf(sdk.trigger({ function_id: 'app::alive', payload: {}, timeoutMs: 5000 }))) === undefined, 'the SDK worker serves again');
    assert.equal((await writer.call('app::alive', {})).result, 'yes');
    await closeAll([watcher, writer, again]);
  }
  await sdk.shutdown();
});

test('kill -9 of a gateway ends the calls of its workers with invocation_stopped', async () => {
  const [victim, survivor] = weir.gateways();
  const executor = await weir.openOn(victim, openWorker);
  const caller = await weir.openOn(survivor, openWorker);
  executor.register('raw::hang', () => undefined);
  await until(async () => (await caller.call('engine::functions::list', { search: 'raw::hang' })).result.functions.length === 1, 'the registration is known');
  const answer = caller.call('raw::hang', {});
  await until(() => executor.invocations.length === 1, 'the executor was asked');
  process.kill(victim, 'SIGKILL');
  assert.equal((await answer).error.code, 'invocation_stopped');
  await until(async () => (await caller.call('raw::hang', {})).error.code === 'function_not_found', 'the function is gone');
  await weir.gatewaysAfter(victim);
  await closeAll([caller]);
});

test('the subscriber library finds its way back after its gateway is killed', async () => {
  const writer = await openWorker();
  const stream = new Stream(weir.streamUrl);
  await until(() => stream.ws.isOpen(), 'the library connects');
  const group = stream.subscribeGroup('motia', 'g');
  await writer.set('motia', 'g', 'a', { id: 'a' });
  await until(() => group.getState().length === 1, 'the first state');
  const victim = await until(() => weir.gatewayOf(stream.ws.ws._socket.localPort, weir.streamPort), 'the gateway that has the library');
  const other = weir.gateways().find((pid) => pid !== victim);
  const surviving = await weir.openOn(other, openWorker);
  process.kill(victim, 'SIGKILL');
  assert.equal((await surviving.set('motia', 'g', 'b', { id: 'b' })).error, undefined);
  await until(() => group.getState().length === 2, 'the state after the reconnect');
  stream.onSocketClose = () => {};
  stream.close();
  await closeAll([surviving]);
  writer.socket.terminate();
  await weir.gatewaysAfter(victim);
});

test('kill -9 of the broker: sockets stay, a fresh sync brings the new epoch and its reason, writes wait or fail clearly', async () => {
  const subscribers = [...(await weir.openOnEach(openStream)).values()].flat();
  const writers = [...(await weir.openOnEach(openWorker)).values()].flat();
  const executor = await openWorker();
  executor.register('raw::before', () => ({ result: 'kept' }));
  for (const subscriber of subscribers) await subscriber.joined('broker', 'g');
  await writers[0].set('broker', 'g', 'old', { id: 'old' });
  for (const subscriber of subscribers) await subscriber.count(2);
  const { epoch } = subscribers[0].envelopes[1];
  const pids = weir.gateways();
  const victim = weir.broker();

  process.kill(victim, 'SIGKILL');
  // Reads of the mapped store go on, or say clearly that they cannot; writes wait for the new broker, bounded.
  const during = [];
  for (let n = 0; n < 100; n += 1) during.push(writers[n % 2].set('broker', 'g', `gap${n}`, { id: `gap${n}` }));
  const answers = await Promise.all(during);
  for (const { result, error } of answers) {
    if (error === undefined) assert.deepEqual(Object.keys(result).sort(), ['new_value', 'old_value']);
    else assert.equal(error.code, 'STREAM_SET_ERROR', JSON.stringify(error));
  }
  await weir.brokerAfter(victim);
  assert.deepEqual(weir.gateways(), pids, 'the gateways live');
  for (const subscriber of subscribers) {
    await subscriber.waitFor(() => subscriber.syncs.some((sync) => sync.epoch !== epoch), 'a sync with a new epoch');
    const sync = subscriber.syncs.find((one) => one.epoch !== epoch);
    assert.equal(typeof sync.reason, 'string', JSON.stringify(sync));
    assert.ok(sync.timestamp > subscriber.envelopes[1].timestamp);
    assert.equal(subscriber.closed, null);
  }
  for (const writer of writers) {
    assert.equal(writer.closed, null);
    await until(async () => (await writer.set('broker', 'g', 'new', { id: 'new', by: writer.localPort })).error === undefined, 'writes succeed again');
    await until(async () => (await writer.call('raw::before', {})).result === 'kept', 'functions registered before are callable');
  }
  const list = (await writers[0].call('stream::list', { stream_name: 'broker', group_id: 'g' })).result;
  for (const subscriber of subscribers) {
    const model = new GroupModel();
    await subscriber.waitFor(() => subscriber.events.at(-1)?.event.data?.by === writers[1].localPort, 'the last write');
    const start = subscriber.envelopes.findIndex((envelope) => envelope.event.type === 'sync' && envelope.epoch !== epoch);
    for (const envelope of subscriber.envelopes.slice(start)) envelope.event.type === 'sync' ? model.reset(envelope) : model.apply(envelope);
    assertGapless(subscriber.envelopes.slice(start));
    assert.deepEqual(model.values(), list, 'sync and events give what the store holds');
  }
  await closeAll([...subscribers, ...writers, executor]);
});

test('the broker killed several times in a row under load: everybody ends with the same state', async () => {
  const subscribers = [...(await weir.openOnEach(openStream)).values()].flat();
  const writers = [...(await weir.openOnEach(openWorker)).values()].flat();
  // Lossless: nobody waits for those who read, and their gateway may stand still meanwhile.
  for (const subscriber of subscribers) await subscriber.joined('storm', 'g', { mode: 'lossless' });
  let isOver = false;
  const load = writers.map(async (writer, w) => {
    for (let n = 0; !isOver; n += 1) {
      const { error } = await writer.set('storm', 'g', `w${w}-${n % 20}`, { id: `w${w}-${n % 20}`, n });
      if (error) assert.equal(error.code, 'STREAM_SET_ERROR');
    }
  });
  for (let round = 0; round < 3; round += 1) {
    const victim = weir.broker();
    process.kill(victim, 'SIGKILL');
    await weir.brokerAfter(victim);
    await until(async () => (await writers[0].set('storm', 'g', 'probe', { id: 'probe', round })).error === undefined, 'it takes writes');
  }
  isOver = true;
  await Promise.all(load);
  // Read where the end was written: the other gateway may have the old store still, and goes on serving reads from it.
  assert.equal((await writers[0].set('storm', 'g', 'end', { id: 'end' })).error, undefined);
  const list = await writers[0].result('stream::list', { stream_name: 'storm', group_id: 'g' });
  for (const subscriber of subscribers) {
    await subscriber.waitFor(() => subscriber.envelopes.at(-1).id === 'end' || subscriber.envelopes.at(-1).event.data?.some?.(({ id }) => id === 'end'), 'the end');
    const model = new GroupModel();
    for (const envelope of subscriber.envelopes) envelope.event.type === 'sync' ? model.reset(envelope) : model.apply(envelope);
    assert.deepEqual(model.values(), list);
    assertGapless(subscriber.envelopes);
  }
  await closeAll([...subscribers, ...writers]);
});

test('a broker stopped under load: reads go on, writes end within their time limit, and all is well when it goes on', async () => {
  const quick = await Weir.start({ settings: { write_wait_ms: 1500 } });
  try {
    const subscriber = await Subscriber.open(quick.streamUrl);
    const writer = await RawWorker.open(quick.workerUrl);
    const reader = await RawWorker.open(quick.workerUrl);
    await subscriber.joined('halt', 'g');
    const isSet = async (item) => (await writer.set('halt', 'g', item, { id: item })).error === undefined;
    await until(() => isSet('before'), 'a write that is answered in time');
    const broker = quick.broker();
    try {
      await standStill(broker);
      const answers = await Promise.all(Array.from({ length: 200 }, (_, n) => writer.set('halt', 'g', `i${n}`, { id: `i${n}`, n })));
      for (const { error } of answers) {
        assert.equal(error?.code, 'STREAM_SET_ERROR');
        assert.match(error.message, /not answered in time/);
      }
      assert.deepEqual((await reader.call('stream::list', { stream_name: 'halt', group_id: 'g' })).result, [{ id: 'before' }]);
    } finally {
      process.kill(broker, 'SIGCONT');
    }
    await until(() => isSet('after'), 'writes are answered in time again');
    const list = (await reader.call('stream::list', { stream_name: 'halt', group_id: 'g' })).result;
    await subscriber.waitFor(() => subscriber.events.at(-1)?.id === 'after', 'the write after');
    const model = new GroupModel();
    for (const envelope of subscriber.envelopes) envelope.event.type === 'sync' ? model.reset(envelope) : model.apply(envelope);
    assert.deepEqual(model.values(), list);
    assertGapless(subscriber.envelopes);
    assert.equal(quick.broker(), broker, 'nobody was restarted');
    await closeAll([subscriber, writer, reader]);
  } finally {
    await quick.stop();
  }
});

test('a gateway stopped for two seconds while others write: its subscribers end exact', async () => {
  const [stopped, running] = weir.gateways();
  const subscriber = await weir.openOn(stopped, () => Follower.open(weir.streamUrl));
  const watcher = await weir.openOn(running, openStream);
  const writer = await weir.openOn(running, openWorker);
  for (const each of [subscriber, watcher]) await each.joined('stop', 'g');
  let n = 0;
  try {
    await standStill(stopped);
    for (const end = Date.now() + 2000; Date.now() < end; ) {
      await Promise.all(Array.from({ length: 50 }, () => writer.set('stop', 'g', `i${n % 100}`, { id: `i${n % 100}`, n: n++ })));
      await watcher.waitFor(() => watcher.events.length === n, 'the running gateway delivers meanwhile');
    }
  } finally {
    process.kill(stopped, 'SIGCONT');
  }
  await writer.set('stop', 'g', 'end', { id: 'end' });
  const list = (await writer.call('stream::list', { stream_name: 'stop', group_id: 'g' })).result;
  await watcher.waitFor(() => watcher.events.length === n + 1, 'the end at the running gateway');
  const last = watcher.events.at(-1).seq;
  await subscriber.waitFor(() => subscriber.seq === last && subscriber.since === null, 'the end');
  assert.equal(subscriber.problem, null);
  assert.deepEqual(subscriber.values(), list.sort(byId));
  assert.equal(subscriber.closed, null);
  assertGapless(watcher.envelopes);
  await closeAll([subscriber, watcher, writer]);
});

test('a gateway that stands still while the server stops is waited for, and its clients are told', async () => {
  const [stopped] = weir.gateways();
  const clients = [await weir.openOn(stopped, openStream), await weir.openOn(stopped, openWorker)];
  let stopping;
  try {
    await standStill(stopped);
    stopping = weir.stop();
    await delay(6000);
  } finally {
    process.kill(stopped, 'SIGCONT');
  }
  await stopping;
  assert.doesNotMatch(weir.stderr, /event=killed/);
  for (const client of clients) assert.equal((await until(() => client.closed, 'the close')).code, 1001);
});

test('a stopped broker: reads and joins are served, writes wait and then succeed in order', async () => {
  const reader = await openWorker();
  const writer = await openWorker();
  // One on each gateway: before its first join a gateway asks the broker whether somebody is to be asked about joins.
  const subscribers = [...(await weir.openOnEach(openStream)).values()].flat();
  await writer.set('pause', 'g', 'i', -1);
  for (const subscriber of subscribers) await subscriber.joined('pause', 'g');
  const broker = weir.broker();
  const writes = [];
  try {
    await standStill(broker);
    for (let n = 0; n < 50; n += 1) writes.push(writer.set('pause', 'g', 'i', n));
    assert.equal(await reader.result('stream::get', { stream_name: 'pause', group_id: 'g', item_id: 'i' }), -1);
    assert.deepEqual(await reader.result('stream::list', { stream_name: 'pause', group_id: 'g' }), [-1]);
    const late = await openStream();
    assert.deepEqual((await late.joined('pause', 'g')).event.data, [-1]);
    await late.close();
    await writer.ping();
  } finally {
    process.kill(broker, 'SIGCONT');
  }
  (await Promise.all(writes)).forEach(({ result, error }, n) => assert.deepEqual({ result, error }, { result: { old_value: n - 1, new_value: n }, error: undefined }));
  for (const subscriber of subscribers) {
    await subscriber.count(51);
    assertGapless(subscriber.envelopes);
  }
  await closeAll([reader, writer, ...subscribers]);
});

test('writes that wait longer than write_wait_ms for a broker that is gone fail clearly', async () => {
  const short = await Weir.start({ settings: { write_wait_ms: 200 } });
  try {
    const writer = await RawWorker.open(short.workerUrl);
    await until(async () => (await writer.set('wait', 'g', 'i', 0)).error === undefined, 'a write that is answered in time');
    const supervisor = short.process.pid;
    try {
      // A supervisor that cannot start a new broker yet.
      await standStill(supervisor);
      const broker = short.broker();
      process.kill(broker, 'SIGKILL');
      await until(() => !short.isAlive(broker), 'the broker is gone');
      for (const { error } of await Promise.all([1, 2, 3].map((n) => writer.set('wait', 'g', 'i', n)))) {
        assert.equal(error?.code, 'STREAM_SET_ERROR');
        assert.equal(typeof error.message, 'string');
      }
      await writer.ping();
    } finally {
      process.kill(supervisor, 'SIGCONT');
    }
    await until(async () => (await writer.set('wait', 'g', 'i', 4)).error === undefined, 'writes succeed again');
    await closeAll([writer]);
  } finally {
    await short.stop();
  }
});

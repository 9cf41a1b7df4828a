// gate.test.mjs -- stream:join triggers: who may join what, asked across gateways, with workers and brokers that die meanwhile.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { test } from 'node:test';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { openSdkWorker } from './lib/sdk.mjs';
import { LIMIT_MS, delay, standStill, until, withWeir } from './lib/weir.mjs';

const DENY = { result: { unauthorized: true } };
const ALLOW = { result: {} };
const NO_ANSWER = undefined;
// A gate whose worker has gone is waited for so long (docs/architecture.md).
const GRACE_MS = 2000;

// Functions are calls too: probes must not be taken for what a test counts.
const asked = (worker, functionId) => worker.invocations.filter((message) => message.function_id === functionId && message.data.group_id !== 'probe');

function bind(worker, functionId, handler, { id = `trigger-${functionId}`, config = {}, ...fields } = {}) {
  worker.register(functionId, handler, fields.namespace === undefined ? {} : { namespace: fields.namespace });
  worker.send({ type: 'registertrigger', id, trigger_type: 'stream:join', function_id: functionId, config, ...fields });
}

// A call goes through gateway and broker behind what its worker has registered, so that its answer says that this is known there.
const known = (worker) => worker.call('engine::functions::list', {});

// Until every gateway asks `functionId` about joins of `streamName`. A join follows when the one before was answered without that:
// those that wait for a gate have a bound, and beyond it they are refused and counted.
async function bound(weir, worker, functionId, streamName = 'probe') {
  for (const pid of weir.gateways()) {
    const client = await weir.openOn(pid, () => Subscriber.open(weir.streamUrl));
    const mark = randomUUID();
    const isAsked = () => worker.invocations.some(({ function_id, data }) => function_id === functionId && data.subscription_id === mark);
    await until(async () => {
      const before = client.envelopes.length;
      client.join(streamName, 'probe', { subscriptionId: mark });
      await until(() => isAsked() || client.envelopes.length > before, `${functionId} is asked, or the join answered without`);
      return isAsked();
    }, `a gateway asks ${functionId}`);
    await client.close();
  }
}

const openBoth = async (weir) => [...(await weir.openOnEach(() => Subscriber.open(weir.streamUrl))).values()].flat();
const denials = (subscriber) => subscriber.envelopes.filter(({ event }) => event.type === 'unauthorized');

async function expectDenied(subscriber, streamName, groupId, options) {
  const before = subscriber.envelopes.length;
  subscriber.join(streamName, groupId, options);
  await subscriber.waitFor(() => subscriber.envelopes.length > before, 'an answer to the join');
  assert.deepEqual(subscriber.envelopes[before].event, { type: 'unauthorized' });
  return subscriber.envelopes[before];
}

// A figure of each gateway.
async function figures(weir, name) {
  const text = await weir.metrics();
  return [...text.matchAll(new RegExp(`^weir_gateway_${name}(?:_total)?\\{[^}]*\\} (\\d+)$`, 'gm'))].map((match) => Number(match[1]));
}

const metric = async (weir, name) => (await figures(weir, name)).reduce((sum, value) => sum + value, 0);

// The event of a join's answer: `sync` or `unauthorized`. One is answered before the next is sent, so that the next answer is its own.
async function answerTo(subscriber, streamName, groupId) {
  const before = subscriber.envelopes.length;
  subscriber.join(streamName, groupId, { subscriptionId: 'answer' });
  await subscriber.waitFor(() => subscriber.envelopes.length > before, 'an answer to the join');
  return subscriber.envelopes[before].event.type;
}

// covers: B#8
test('a handler gets the documented payload, on whichever gateway it is, and its verdict holds', async () => {
  await withWeir({ settings: { auth_function: 'app::auth' } }, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    worker.register('app::auth', () => ({ result: { context: { user: 'u1', roles: [1, null] } } }));
    await known(worker); // subscribers are refused before
    bind(worker, 'app::gate', ({ data }) => (data.stream_name === 'secret' ? DENY : ALLOW), { metadata: { from: 'test' } });
    await bound(weir, worker, 'app::gate');
    for (const subscriber of await openBoth(weir)) {
      later(subscriber);
      const before = asked(worker, 'app::gate').length;
      const envelope = await expectDenied(subscriber, 'secret', 'g"1', { id: 'i', subscriptionId: 's1' });
      const { timestamp, seq, epoch, ...named } = envelope;
      assert.deepEqual(named, { type: 'stream', streamName: 'secret', groupId: 'g"1', id: 'i', event: { type: 'unauthorized' } });
      assert.ok(Math.abs(timestamp - Date.now()) < 60000);
      const whole = await expectDenied(subscriber, 'secret', 'g', { subscriptionId: 's2' });
      assert.equal(whole.id, null);
      await subscriber.joined('open', 'g', { subscriptionId: 's3' });
      const [first, second, third] = asked(worker, 'app::gate').slice(before);
      assert.deepEqual(first.data, { subscription_id: 's1', stream_name: 'secret', group_id: 'g"1', id: 'i', context: { user: 'u1', roles: [1, null] } });
      assert.deepEqual(second.data, { subscription_id: 's2', stream_name: 'secret', group_id: 'g', id: null, context: { user: 'u1', roles: [1, null] } });
      assert.equal(third.data.stream_name, 'open');
      assert.deepEqual(first.metadata, { from: 'test' });
      assert.equal(typeof first.invocation_id, 'string');
      // The denied ones have no subscription: only the granted one sees events.
      await worker.set('secret', 'g', 'i', 1);
      await worker.set('open', 'g', randomUUID(), 2);
      await subscriber.waitFor(() => subscriber.events.some(({ event }) => event.type === 'create'), 'the event');
      await subscriber.ping();
      assert.ok(subscriber.events.every(({ streamName, event }) => streamName === 'open' || event.type === 'unauthorized'));
    }
    await until(async () => (await metric(weir, 'joins_denied')) >= 4, 'denials are counted');
  });
});

test('iii-sdk workers as gates; without context it is null; unregistering opens', async () => {
  await withWeir({}, async (weir, later) => {
    const worker = later(await openSdkWorker(weir.workerUrl));
    const inputs = [];
    worker.registerFunction('app::gate', async (input) => {
      inputs.push(input);
      return { unauthorized: input.group_id !== 'mine' };
    });
    const trigger = worker.registerTrigger({ type: 'stream:join', function_id: 'app::gate', config: {} });
    const both = await openBoth(weir);
    for (const subscriber of both) {
      later(subscriber);
      await until(async () => (await answerTo(subscriber, 's', 'theirs')) === 'unauthorized', 'the gate is known');
      await subscriber.joined('s', 'mine', { subscriptionId: 'mine' });
      assert.ok(inputs.some((input) => input.subscription_id === 'mine' && input.context === null && input.id === null));
    }
    trigger.unregister();
    for (const subscriber of both) {
      await until(async () => (await answerTo(subscriber, 's', 'theirs')) === 'sync', 'nobody is asked any more');
    }
  });
});

const RESULTS = {
  true: [{ result: { unauthorized: true } }, 'denied', 'denied'],
  false: [{ result: { unauthorized: false } }, 'granted', 'granted'],
  empty: [{ result: {} }, 'granted', 'granted'],
  null: [{ result: null }, 'granted', 'granted'],
  nothing: [{}, 'granted', 'granted'],
  text: [{ result: { unauthorized: 'true' } }, 'granted', 'denied'],
  one: [{ result: { unauthorized: 1 } }, 'granted', 'denied'],
  throws: [{ error: { code: 'invocation_failed', message: 'no' } }, 'granted', 'denied'],
};
const LATE = [NO_ANSWER, 'granted', 'denied'];

for (const [column, joinGate] of ['open', 'closed'].entries()) {
  test(`join_gate: ${joinGate}: an answer that does not come in time`, async () => {
    await withWeir({ settings: { join_gate: joinGate, gate_timeout_ms: 1500 } }, async (weir, later) => {
      const worker = later(await RawWorker.open(weir.workerUrl));
      bind(worker, 'app::gate', () => LATE[0]);
      await bound(weir, worker, 'app::gate');
      const subscriber = later(await Subscriber.open(weir.streamUrl));
      subscriber.join('s', 'late', { subscriptionId: 'late' });
      const [{ groupId, event }] = await subscriber.count(1);
      assert.deepEqual([groupId, event.type], ['late', LATE[column + 1] === 'granted' ? 'sync' : 'unauthorized']);
    });
  });

  test(`join_gate: ${joinGate}: every result, error, and a function that is not there`, async () => {
    await withWeir({ settings: { join_gate: joinGate } }, async (weir, later) => {
      const worker = later(await RawWorker.open(weir.workerUrl));
      bind(worker, 'app::gate', ({ data }) => (RESULTS[data.group_id] ?? [ALLOW])[0]);
      await bound(weir, worker, 'app::gate');
      const subscriber = later(await Subscriber.open(weir.streamUrl));
      for (const [name, verdicts] of Object.entries(RESULTS)) {
        const before = subscriber.envelopes.length;
        subscriber.join('s', name, { subscriptionId: name });
        await subscriber.waitFor(() => subscriber.envelopes.length > before, `an answer to ${name}`);
        const { groupId, event } = subscriber.envelopes[before];
        assert.deepEqual([groupId, event.type], [name, verdicts[column + 1] === 'granted' ? 'sync' : 'unauthorized']);
      }
      // A trigger whose function nobody has. Where the one behind it is known, it is known as well.
      worker.send({ type: 'registertrigger', id: 'orphan', trigger_type: 'stream:join', function_id: 'app::nobody', config: { stream_name: 'orphaned' } });
      bind(worker, 'app::after', () => ALLOW, { config: { stream_name: 'orphaned' } });
      await bound(weir, worker, 'app::after', 'orphaned');
      assert.equal(await answerTo(subscriber, 'orphaned', 'g'), joinGate === 'open' ? 'sync' : 'unauthorized');
    });
  });
}

test('conditions and stream filters decide who is asked', async () => {
  await withWeir({}, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    const conditions = { no: { result: false }, zero: { result: 0 }, null: { result: null }, text: { result: 'false' }, fails: { error: { code: 'x', message: 'y' } } };
    worker.register('app::condition', ({ data }) => conditions[data.group_id] ?? { result: true });
    bind(worker, 'app::gate', ({ data }) => (data.group_id === 'probe' ? ALLOW : DENY), {
      config: { stream_name: 'filtered', condition_function_id: 'app::condition' }, metadata: { m: 1 },
    });
    await bound(weir, worker, 'app::gate', 'filtered');
    const subscriber = later(await Subscriber.open(weir.streamUrl));
    await subscriber.joined('other', 'g', { subscriptionId: 'other' });
    await subscriber.joined('filtered', 'no', { subscriptionId: 'no' });
    assert.equal(asked(worker, 'app::gate').length, 0, 'neither was put to the handler');
    assert.equal(asked(worker, 'app::condition').length, 1);
    assert.equal(asked(worker, 'app::condition')[0].metadata, undefined);
    for (const group of ['zero', 'null', 'text', 'yes']) await expectDenied(subscriber, 'filtered', group, { subscriptionId: group });
    assert.deepEqual(asked(worker, 'app::gate').map(({ data }) => data), asked(worker, 'app::condition').slice(1).map(({ data }) => data), 'the same payload');
    assert.equal(asked(worker, 'app::gate').length, 4);
    // An error of the condition: the gate is closed, and the handler is not asked.
    await expectDenied(subscriber, 'filtered', 'fails', { subscriptionId: 'fails' });
    assert.equal(asked(worker, 'app::gate').length, 4);
  });
});

test('several gates are asked at the same time, all of them, and one denial is enough', async () => {
  await withWeir({}, async (weir, later) => {
    const workers = [];
    for (const [client] of (await weir.openOnEach(() => RawWorker.open(weir.workerUrl))).values()) workers.push(later(client));
    const held = [];
    for (const [index, worker] of workers.entries()) {
      bind(worker, `app::gate${index}`, (message) => {
        if (message.data.group_id === 'probe') return ALLOW;
        held.push({ index, answer: (fields) => worker.send({ type: 'invocationresult', invocation_id: message.invocation_id, function_id: message.function_id, ...fields }) });
        return NO_ANSWER;
      });
      await bound(weir, worker, `app::gate${index}`);
    }
    for (const subscriber of await openBoth(weir)) {
      later(subscriber);
      for (const denying of [[], [0], [1], [0, 1]]) {
        held.length = 0;
        const before = subscriber.envelopes.length;
        subscriber.join('s', 'g', { subscriptionId: `d${denying}` });
        await until(() => held.length === 2, 'both are asked before any has answered');
        for (const { index, answer } of held) answer(denying.includes(index) ? DENY : ALLOW);
        await subscriber.waitFor(() => subscriber.envelopes.length > before, 'the verdict');
        assert.equal(subscriber.envelopes[before].event.type, denying.length > 0 ? 'unauthorized' : 'sync');
      }
    }
  });
});

test('while a join waits: pings, other joins, leave, a join of the same id, and the end of the socket', async () => {
  await withWeir({}, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    const held = new Map();
    bind(worker, 'app::gate', (message) => {
      if (!message.data.group_id.startsWith('hold')) return ALLOW;
      held.set(message.data.group_id, (fields) => worker.send({ type: 'invocationresult', invocation_id: message.invocation_id, function_id: message.function_id, ...fields }));
      return NO_ANSWER;
    });
    await bound(weir, worker, 'app::gate');
    const answer = async (group, fields) => {
      held.get(group)(fields);
      await worker.ping();
    };
    for (const subscriber of await openBoth(weir)) {
      later(subscriber);
      held.clear();
      subscriber.join('s', 'hold-a', { subscriptionId: 'a' });
      await until(() => held.has('hold-a'), 'a waits');
      await subscriber.ping();
      await subscriber.joined('s', 'quick', { subscriptionId: 'quick' });
      // A leave takes the waiting join back: no sync and no denial ever comes.
      subscriber.leave('s', 'hold-a', 'a');
      await subscriber.ping();
      await answer('hold-a', ALLOW);
      // A later join of the same id takes its place, and the earlier verdict counts for nothing.
      subscriber.join('s', 'hold-b', { subscriptionId: 'b' });
      await until(() => held.has('hold-b'), 'b waits');
      await subscriber.joined('s', 'instead', { subscriptionId: 'b' });
      await answer('hold-b', DENY);
      // An earlier subscription of that id stays until the join is granted.
      subscriber.join('s', 'hold-c', { subscriptionId: 'b' });
      await until(() => held.has('hold-c'), 'c waits');
      await worker.set('s', 'instead', 'i', 1);
      await subscriber.waitFor(() => subscriber.events.length === 1, 'the event of the earlier one');
      await answer('hold-c', DENY);
      await subscriber.waitFor(() => denials(subscriber).length === 1, 'the denial');
      assert.deepEqual(subscriber.envelopes.map(({ groupId, event }) => [groupId, event.type]), [
        ['quick', 'sync'], ['instead', 'sync'], ['instead', 'create'], ['hold-c', 'unauthorized'],
      ]);
      await worker.call('stream::delete', { stream_name: 's', group_id: 'instead', item_id: 'i' });
      // The socket goes while joins wait.
      for (let n = 0; n < 20; n += 1) subscriber.join('s', `hold-${n}`, { subscriptionId: `n${n}` });
      await until(() => held.has('hold-19'), 'all wait');
      subscriber.socket.terminate();
      await subscriber.closing;
      for (let n = 0; n < 20; n += 1) await answer(`hold-${n}`, ALLOW);
    }
    await until(async () => (await metric(weir, 'subscriptions')) === 0, 'nothing is left');
  });
});

test('a path that is denied gets its envelope, then Close 4403', async () => {
  await withWeir({}, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    bind(worker, 'app::gate', ({ data }) => (data.group_id === 'no way' ? DENY : ALLOW));
    await bound(weir, worker, 'app::gate');
    const denied = later(await Subscriber.open(`${weir.streamUrl}/stream/s/no%20way`));
    await until(() => denied.closed, 'the Close');
    assert.equal(denied.closed.code, 4403);
    assert.deepEqual(denied.envelopes.map(({ streamName, groupId, id, event }) => ({ streamName, groupId, id, event })), [
      { streamName: 's', groupId: 'no way', id: null, event: { type: 'unauthorized' } },
    ]);
    const granted = later(await Subscriber.open(`${weir.streamUrl}/stream/s/g/`));
    await granted.waitFor(() => granted.syncs.length === 1, 'the sync');
    await expectDenied(granted, 's', 'no way', { subscriptionId: 'x' });
    await granted.ping();
  });
});

test('joins that wait count as subscriptions of their socket', async () => {
  await withWeir({ settings: { subscriptions_max: 5 } }, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    bind(worker, 'app::gate', ({ data }) => (data.group_id.startsWith('hold') ? NO_ANSWER : ALLOW));
    await bound(weir, worker, 'app::gate');
    const subscriber = later(await Subscriber.open(weir.streamUrl));
    await subscriber.joined('s', 'one', { subscriptionId: 'one' });
    for (let n = 0; n < 4; n += 1) subscriber.join('s', `hold-${n}`, { subscriptionId: `${n}` });
    await expectDenied(subscriber, 's', 'hold-more', { subscriptionId: 'more' });
    subscriber.join('s', 'hold-again', { subscriptionId: '3' });
    await subscriber.joined('s', 'other', { subscriptionId: 'one' });
    assert.equal(denials(subscriber).length, 1);
    await until(async () => (await metric(weir, 'joins_refused')) === 1, 'it is counted');
  });
});

test('the gate worker dies during 1,000 joins: not one is accepted', async () => {
  const sockets = 20;
  const each = 50;
  await withWeir({ settings: { gate_timeout_ms: 60000 } }, async (weir, later) => {
    const worker = await RawWorker.open(weir.workerUrl);
    bind(worker, 'app::gate', ({ data }) => (data.group_id === 'probe' ? ALLOW : NO_ANSWER));
    await bound(weir, worker, 'app::gate');
    const subscribers = (await weir.openOnEach(() => Subscriber.open(weir.streamUrl), sockets / 2)).values();
    const all = [...subscribers].flat().map(later);
    for (const [index, subscriber] of all.entries()) {
      for (let n = 0; n < each; n += 1) subscriber.join('s', `g${index}-${n}`, { subscriptionId: `${n}` });
    }
    await until(() => asked(worker, 'app::gate').length === sockets * each, 'all joins wait');
    worker.socket.terminate();
    for (const subscriber of all) {
      await subscriber.waitFor(() => subscriber.envelopes.length === each, 'every join is answered');
      assert.equal(denials(subscriber).length, each);
    }
    await until(async () => (await metric(weir, 'subscriptions')) === 0, 'there is no subscription');
  });
});

test('the broker dies while joins wait: they are asked again once the gate is back, and none passes unasked', async () => {
  await withWeir({}, async (weir, later) => {
    const workers = [];
    for (const [client] of (await weir.openOnEach(() => RawWorker.open(weir.workerUrl))).values()) workers.push(later(client));
    let isHolding = true;
    const [worker] = workers;
    bind(worker, 'app::gate', ({ data }) => {
      if (isHolding && data.group_id !== 'probe') return NO_ANSWER;
      return data.group_id.startsWith('no') ? DENY : ALLOW;
    });
    await bound(weir, worker, 'app::gate');
    const both = await openBoth(weir);
    both.forEach(later);
    for (const subscriber of both) {
      subscriber.join('s', 'no-1', { subscriptionId: 'no-1' });
      subscriber.join('s', 'yes-1', { subscriptionId: 'yes-1' });
    }
    await until(() => asked(worker, 'app::gate').length === 4, 'all wait');
    isHolding = false;
    const broker = weir.broker();
    process.kill(broker, 'SIGKILL');
    let isBack = false;
    const back = weir.brokerAfter(broker).then(() => (isBack = true));
    // Joins of every moment of the restart.
    let n = 1;
    for (const end = Date.now() + 1500; n < 300 && (Date.now() < end || !isBack); await delay(20)) {
      n += 1;
      for (const subscriber of both) {
        subscriber.join('s', `no-${n}`, { subscriptionId: `no-${n}` });
        subscriber.join('s', `yes-${n}`, { subscriptionId: `yes-${n}` });
      }
    }
    await back;
    for (const subscriber of both) {
      const groupsOf = (envelopes) => new Set(envelopes.map(({ groupId }) => groupId));
      const answered = await subscriber.waitFor(() => [groupsOf([...subscriber.syncs, ...denials(subscriber)])].find(({ size }) => size === 2 * n), 'every join is answered');
      assert.equal(answered.size, denials(subscriber).length + groupsOf(subscriber.syncs).size, 'once');
      assert.ok(subscriber.syncs.every(({ groupId }) => groupId.startsWith('yes-')));
      if (denials(subscriber).every(({ groupId }) => groupId.startsWith('no-'))) continue;
      // A gateway that stands still for longer than others wait has its gates taken for gone, and they say so, where it is read later.
      await until(() => /event=gate_failed function="app::gate" reason="its worker has gone"/.test(weir.stderr), 'the reason of a denial that is not the gate\'s');
    }
  });
});

test('a gateway that starts anew knows the gates before its first join', async () => {
  await withWeir({}, async (weir, later) => {
    const [[pid, [worker]], [other]] = [...(await weir.openOnEach(() => RawWorker.open(weir.workerUrl)))];
    later(worker);
    bind(worker, 'app::gate', ({ data }) => (data.group_id === 'probe' ? ALLOW : DENY));
    await bound(weir, worker, 'app::gate');
    process.kill(other, 'SIGKILL');
    await until(() => !weir.isAlive(other), 'the gateway is gone');
    let answers = 0;
    // Connect as early as the new one takes connections.
    await until(async () => {
      const subscriber = await Subscriber.open(weir.streamUrl).catch(() => null);
      if (subscriber === null) return false;
      const isNew = ![undefined, pid, other].includes(weir.gatewayOf(subscriber.localPort, subscriber.remotePort));
      try {
        await expectDenied(subscriber, 's', 'g');
        answers += isNew ? 1 : 0;
      } catch (error) {
        if (isNew || subscriber.closed === null) throw error;
      }
      await subscriber.close();
      return answers >= 5;
    }, 'joins on the new gateway');
    await until(async () => (await metric(weir, 'subscriptions')) === 0, 'there is no subscription');
  });
});

// ---- gates whose worker has gone ----

const gateProgram = new URL('./lib/gate_worker.mjs', import.meta.url).pathname;

// A gate's worker that can be killed; it denies group `no`.
async function openGateProcess(weir, ...args) {
  const child = spawn(process.execPath, [gateProgram, weir.workerUrl, ...args], { stdio: ['pipe', 'pipe', 'inherit'] });
  const exited = once(child, 'exit');
  let output = '';
  child.stdout.on('data', (chunk) => (output += chunk));
  await until(() => output.includes('registered\n'), 'the worker is registered');
  return {
    async kill() {
      child.kill('SIGKILL');
      await exited;
    },
    async unregister() {
      child.stdin.write('\n');
      await until(() => output.includes('unregistered\n'), 'the trigger is unregistered');
    },
    async close() {
      if (child.exitCode === null && child.signalCode === null) await this.kill();
    },
  };
}

// Until a join is answered so by every gateway, looked at on fresh sockets.
async function untilAnswered(weir, wanted, streamName, groupId) {
  for (const subscriber of await openBoth(weir)) {
    await until(async () => (await answerTo(subscriber, streamName, groupId)) === wanted, `${groupId}: ${wanted}`);
    await subscriber.close();
  }
}

async function expectEverywhere(weir, wanted, streamName, groupId) {
  for (const subscriber of await openBoth(weir)) {
    assert.equal(await answerTo(subscriber, streamName, groupId), wanted);
    await subscriber.close();
  }
}

async function brokerMetric(weir, name) {
  const text = await weir.metrics();
  return Number(new RegExp(`^weir_broker_${name}(?:\\{[^}]*\\})? (\\d+)$`, 'm').exec(text)?.[1]);
}

async function replaceGateway(weir) {
  const [victim] = weir.gateways();
  process.kill(victim, 'SIGKILL');
  await weir.gatewaysAfter(victim);
}

const awayLines = (weir) => [...weir.stderr.matchAll(/event=gate_away function="([^"]*)" stream="([^"]*)"/g)].map(([, functionId, stream]) => [functionId, stream]);

test('a gate whose worker is killed refuses, on gateways old and new, until it is back; unregistered, it is open', async () => {
  await withWeir({}, async (weir, later) => {
    const gate = later(await openGateProcess(weir, 'guarded'));
    await untilAnswered(weir, 'unauthorized', 'guarded', 'no');
    await expectEverywhere(weir, 'sync', 'guarded', 'yes');
    await gate.kill();
    await expectEverywhere(weir, 'unauthorized', 'guarded', 'yes');
    await expectEverywhere(weir, 'sync', 'other', 'yes');
    await until(() => awayLines(weir).length > 0, 'the line');
    assert.deepEqual(awayLines(weir), [['app::gate', 'guarded']]);
    await until(async () => (await brokerMetric(weir, 'gates_away')) === 1, 'the gauge');
    await replaceGateway(weir);
    await expectEverywhere(weir, 'unauthorized', 'guarded', 'yes');
    await expectEverywhere(weir, 'sync', 'other', 'yes');

    // Another process brings it back.
    const second = later(await openGateProcess(weir, 'guarded'));
    await untilAnswered(weir, 'sync', 'guarded', 'yes');
    await expectEverywhere(weir, 'unauthorized', 'guarded', 'no');
    await until(async () => (await brokerMetric(weir, 'gates_away')) === 0, 'the gauge');
    // Of two with the same gate one may go.
    const third = later(await openGateProcess(weir, 'guarded'));
    await until(async () => (await brokerMetric(weir, 'triggers')) === 2, 'both are there');
    await second.kill();
    await untilAnswered(weir, 'sync', 'guarded', 'yes');
    await expectEverywhere(weir, 'unauthorized', 'guarded', 'no');
    await third.unregister();
    await untilAnswered(weir, 'sync', 'guarded', 'no');
    await until(async () => (await brokerMetric(weir, 'gates_away')) === 0, 'the gauge');
    assert.equal(awayLines(weir).length, 1);
  });
});

// Of what was away only gateways know when a broker dies: one that has just started waits for those that were there.
test('a gateway that starts while the one that knows of an away gate stands still lets nobody in', async () => {
  await withWeir({}, async (weir, later) => {
    const gate = later(await openGateProcess(weir));
    await untilAnswered(weir, 'unauthorized', 's', 'no');
    await gate.kill();
    await expectEverywhere(weir, 'unauthorized', 's', 'yes');
    const [knowing, victim] = weir.gateways();
    const broker = weir.broker();
    const opening = [];
    await standStill(knowing);
    try {
      process.kill(victim, 'SIGKILL');
      process.kill(broker, 'SIGKILL');
      await weir.brokerAfter(broker);
      await weir.gatewaysAfter(victim);
      // The kernel gives the one that stands still its share of them, and all until the other one listens.
      const opened = [];
      const subscriber = await until(() => {
        // One that fails is no matter: others follow.
        opening.push(Subscriber.open(weir.streamUrl).then((client) => opened.push(client) && client, () => null));
        return opened[0];
      }, 'a connection to the new gateway');
      subscriber.join('s', 'yes', { subscriptionId: 'waits' });
      await subscriber.ping();
      await until(() => /event=gates_untold pid=\d/.test(weir.stderr), 'the log says who is waited for');
      assert.deepEqual(subscriber.envelopes, []);
      process.kill(knowing, 'SIGCONT');
      await subscriber.count(1);
      assert.equal(subscriber.envelopes[0].event.type, 'unauthorized');
    } finally {
      process.kill(knowing, 'SIGCONT');
      for (const client of await Promise.all(opening)) await client?.close();
    }
    await expectEverywhere(weir, 'unauthorized', 's', 'yes');
  });
});

test('a gate that is away outlives the broker, and gateways that come later refuse as well', async () => {
  await withWeir({}, async (weir, later) => {
    const gate = later(await openGateProcess(weir));
    await untilAnswered(weir, 'unauthorized', 's', 'no');
    await gate.kill();
    await expectEverywhere(weir, 'unauthorized', 's', 'yes');
    const both = await openBoth(weir);
    both.forEach(later);
    const broker = weir.broker();
    process.kill(broker, 'SIGKILL');
    // Joins of every moment of the restart.
    let sent = 0;
    for (const end = Date.now() + 3500; Date.now() < end; await delay(20)) {
      sent += 1;
      for (const subscriber of both) subscriber.join('s', 'yes', { subscriptionId: randomUUID() });
    }
    await weir.brokerAfter(broker);
    // Not the figure of the old one: both gateways have attached for the second time.
    const areBack = async () => (await figures(weir, 'link_attached')).filter((times) => times >= 2).length === 2;
    await until(async () => (await areBack()) && (await brokerMetric(weir, 'gates_away')) === 1, 'the new broker has been told');
    for (const subscriber of both) {
      await subscriber.waitFor(() => subscriber.envelopes.length === sent, 'every join is answered');
      assert.equal(denials(subscriber).length, sent);
      assert.equal(await answerTo(subscriber, 's', 'yes'), 'unauthorized');
    }
    await replaceGateway(weir);
    await expectEverywhere(weir, 'unauthorized', 's', 'yes');
    // The gate and the broker go together.
    const second = later(await openGateProcess(weir));
    await untilAnswered(weir, 'sync', 's', 'yes');
    process.kill(weir.broker(), 'SIGKILL');
    await second.kill();
    await expectEverywhere(weir, 'unauthorized', 's', 'yes');
    await expectEverywhere(weir, 'unauthorized', 's', 'yes');
    const third = later(await openGateProcess(weir));
    await untilAnswered(weir, 'sync', 's', 'yes');
    await third.unregister();
    await untilAnswered(weir, 'sync', 's', 'no');
  });
});

test('1,000 joins while the gate worker is killed: none of those after its death is accepted until it is back', async () => {
  const sockets = 20;
  const each = 50;
  await withWeir({}, async (weir, later) => {
    const gate = later(await openGateProcess(weir));
    await untilAnswered(weir, 'unauthorized', 's', 'no');
    const all = [...(await weir.openOnEach(() => Subscriber.open(weir.streamUrl), sockets / 2)).values()].flat().map(later);
    const joinAll = (from, to) => {
      for (let n = from; n < to; n += 1) {
        for (const subscriber of all) subscriber.join('s', n % 2 === 0 ? `yes-${n}` : 'no', { subscriptionId: `${n}` });
      }
    };
    joinAll(0, each / 2);
    await gate.kill();
    joinAll(each / 2, each);
    for (const subscriber of all) {
      await subscriber.waitFor(() => subscriber.envelopes.length === each, 'every join is answered');
      assert.ok(subscriber.syncs.every(({ groupId }) => groupId !== 'no' && Number(groupId.slice(4)) < each / 2), 'accepted after its death');
    }
    later(await openGateProcess(weir));
    await untilAnswered(weir, 'sync', 's', 'yes');
    await expectEverywhere(weir, 'unauthorized', 's', 'no');
  });
});

test('a gate worker that is restarted at once is not noticed by joins', async () => {
  await withWeir({}, async (weir, later) => {
    const probes = [...(await weir.openOnEach(() => RawWorker.open(weir.workerUrl))).values()].flat();
    probes.forEach(later);
    const both = await openBoth(weir);
    both.forEach(later);
    const handler = ({ data }) => (data.group_id === 'no' ? DENY : ALLOW);
    let worker = await RawWorker.open(weir.workerUrl);
    bind(worker, 'app::gate', handler);
    await bound(weir, worker, 'app::gate');
    // A gate is waited for two seconds only: rounds that took longer, because somebody stood still, show nothing.
    const end = performance.now() + 2 * LIMIT_MS;
    for (let round = 1, shown = 0; shown < 3; round += 1) {
      assert.ok(performance.now() < end, 'no round was over before the gate was given up');
      const next = await RawWorker.open(weir.workerUrl); // already, for the same reason
      const wentMs = performance.now();
      worker.socket.terminate();
      await until(() => awayLines(weir).length === round, 'it is away');
      // The broker's answer comes behind what it has said of the gate.
      for (const probe of probes) await probe.callRaw('nobody', {});
      const answers = both.flatMap((subscriber) => ['yes', 'no'].map((group) => [subscriber, group, `${group}-${round}`]));
      for (const [subscriber, group, id] of answers) subscriber.join('s', group, { subscriptionId: id });
      for (const subscriber of both) await subscriber.ping();
      const early = both.map(({ envelopes }) => envelopes.length - 2 * (round - 1));
      worker = next;
      bind(worker, 'app::gate', handler);
      for (const subscriber of both) await subscriber.waitFor(() => subscriber.envelopes.length === 2 * round, 'both are answered');
      const verdicts = both.map(({ envelopes }) => envelopes.slice(-2).map(({ groupId, event }) => `${groupId}: ${event.type}`).sort());
      for (const verdict of verdicts) assert.equal(verdict[0], 'no: unauthorized');
      if (performance.now() - wentMs >= GRACE_MS) {
        await bound(weir, worker, 'app::gate');
        continue;
      }
      shown += 1;
      assert.deepEqual(early, [0, 0], 'they wait');
      for (const verdict of verdicts) assert.equal(verdict[1], 'yes: sync');
    }
    later(worker);
  });
});

test('with join_gate: open a gate whose worker is killed is as if it had not been', async () => {
  await withWeir({ settings: { join_gate: 'open' } }, async (weir, later) => {
    const gate = later(await openGateProcess(weir));
    await untilAnswered(weir, 'unauthorized', 's', 'no');
    await gate.kill();
    await expectEverywhere(weir, 'sync', 's', 'no');
    process.kill(weir.broker(), 'SIGKILL');
    await expectEverywhere(weir, 'sync', 's', 'no');
    await until(async () => (await brokerMetric(weir, 'gates_away')) === 0, 'the gauge');
    assert.deepEqual(awayLines(weir), []);
  });
});

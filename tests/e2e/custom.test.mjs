// custom.test.mjs -- streams whose items a worker keeps: the published createStream on one gateway, callers and subscribers on any.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { createStream } from 'iii-sdk/helpers';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { openSdkClient } from './lib/sdk.mjs';
import { Weir, delay, until, withWeir } from './lib/weir.mjs';

let weir;
let adapter; // the SDK worker that keeps the streams, on one gateway
let here; // a raw worker on the adapter's gateway
let there; // and one on the other
const open = [];

before(async () => {
  weir = await Weir.start();
  const found = await weir.openOnEach(() => RawWorker.open(weir.workerUrl));
  [[here], [there]] = [...found.values()];
  const [gateway] = found.keys();
  const client = await weir.openOn(gateway, () => openSdkClient(weir.workerUrl));
  adapter = client.worker;
  open.push(here, there, client);
});
after(async () => {
  await Promise.all(open.map((client) => client.close()));
  await weir?.stop();
});

// A stream kept in memory; `inputs` is what its functions were given.
class MemoryStream {
  groups = new Map();
  inputs = [];
  #group(id) {
    if (!this.groups.has(id)) this.groups.set(id, new Map());
    return this.groups.get(id);
  }
  async get(input) {
    this.inputs.push(['get', input]);
    return this.#group(input.group_id).get(input.item_id) ?? null;
  }
  async set(input) {
    this.inputs.push(['set', input]);
    const group = this.#group(input.group_id);
    const old_value = group.get(input.item_id) ?? null;
    await delay(input.data?.slow ?? 0);
    group.set(input.item_id, input.data);
    return { old_value, new_value: input.data };
  }
  async delete(input) {
    this.inputs.push(['delete', input]);
    const group = this.#group(input.group_id);
    const old_value = group.get(input.item_id) ?? null;
    group.delete(input.item_id);
    return { old_value };
  }
  async list(input) {
    this.inputs.push(['list', input]);
    return [...this.#group(input.group_id).values()];
  }
  async listGroups(input) {
    this.inputs.push(['list_groups', input]);
    return [...this.groups.keys()];
  }
}

const OPS = ['get', 'set', 'delete', 'list', 'list_groups'];
// The broker knows all five functions, and both gateways know of the stream: each passes on the list behind what it is told of
// streams, and one that passes it on says nothing of the other.
async function isServed(name, callers = [here, there]) {
  for (const caller of callers) {
    await until(async () => {
      const { result } = await caller.call('engine::functions::list', {});
      const ids = new Set(result.functions.map(({ function_id }) => function_id));
      return OPS.every((op) => ids.has(`stream::${op}(${name})`));
    }, `the functions of ${name}`);
  }
}

// What subscribers of a stream are to be shown anew has been sent: a gateway that passes on the list has been told of the stream, asks
// for the values at the end of that turn, and passes on what we ask behind that.
async function isShown(name) {
  for (const caller of [here, there]) {
    await caller.call('engine::functions::list', {});
    await caller.ping();
    await caller.call('stream::list', at(name, 'g'));
  }
}

async function makeStream(name) {
  const stream = new MemoryStream();
  createStream(adapter, name, stream);
  await isServed(name);
  return stream;
}

const at = (stream_name, group_id, item_id, rest = {}) => ({ stream_name, group_id, item_id, ...rest });
const eventOf = ({ id, event }) => ({ id, event });
// A look at the sockets may miss one.
const gatewayOf = (client) => until(() => weir.gatewayOf(client.localPort, client.remotePort), 'the gateway that holds a connection');
const subscribe = async () => {
  const subscriber = await Subscriber.open(weir.streamUrl);
  open.push(subscriber);
  return subscriber;
};

// covers: 5#1, 5#2, 5#3, 5#4, 5#5, B#7
test('all five operations reach the worker with exactly the documented inputs, from both gateways', async () => {
  const stream = await makeStream('chat');
  for (const caller of [here, there]) {
    stream.inputs.length = 0;
    stream.groups.clear();
    assert.deepEqual(await caller.set('chat', 'g', 'i', { a: 1 }), { result: { old_value: null, new_value: { a: 1 } } });
    assert.deepEqual(await caller.set('chat', 'g', 'i', [2]), { result: { old_value: { a: 1 }, new_value: [2] } });
    assert.deepEqual(await caller.call('stream::get', at('chat', 'g', 'i')), { result: [2] });
    assert.deepEqual(await caller.call('stream::get', at('chat', 'g', 'nobody')), {}, 'null is no result key');
    assert.deepEqual(await caller.call('stream::list', { stream_name: 'chat', group_id: 'g', more: 1 }), { result: [[2]] });
    assert.deepEqual(await caller.call('stream::list_groups', { stream_name: 'chat' }), { result: ['g'] });
    assert.deepEqual(await caller.call('stream::delete', at('chat', 'g', 'i')), { result: { old_value: [2] } });
    assert.deepEqual(await caller.call('stream::delete', at('chat', 'g', 'i')), { result: { old_value: null } });
    assert.deepEqual(stream.inputs, [
      ['set', at('chat', 'g', 'i', { data: { a: 1 } })], ['set', at('chat', 'g', 'i', { data: [2] })], ['get', at('chat', 'g', 'i')],
      ['get', at('chat', 'g', 'nobody')], ['list', { stream_name: 'chat', group_id: 'g' }], ['list_groups', { stream_name: 'chat' }],
      ['delete', at('chat', 'g', 'i')], ['delete', at('chat', 'g', 'i')],
    ]);
  }
  const { result } = await there.call('stream::list_all', {});
  assert.ok(!result.stream.some(({ id }) => id === 'chat'), 'list_all knows nothing of it');
});

test('a worker that registers and reads at once meets its own functions', async () => {
  for (const caller of [here, there]) {
    const name = `own-${caller === here}`;
    caller.register(`stream::get(${name})`, () => ({ result: 'mine' }));
    assert.deepEqual(await caller.call('stream::get', at(name, 'g', 'i')), { result: 'mine' });
  }
});

test('events follow what the worker says, in one order for everybody', async () => {
  await makeStream('events');
  const subscribers = [...(await weir.openOnEach(() => Subscriber.open(weir.streamUrl))).values()].flat();
  open.push(...subscribers);
  for (const subscriber of subscribers) assert.deepEqual((await subscriber.joined('events', 'g')).event.data, []);
  await here.set('events', 'g', 'i', { n: 1 });
  await there.set('events', 'g', 'i', { n: 2 });
  await here.call('stream::delete', at('events', 'g', 'i'));
  await here.call('stream::delete', at('events', 'g', 'i')); // nothing there: no event
  await there.call('stream::send', { stream_name: 'events', group_id: 'g', type: 'typing', data: 1 });
  for (const subscriber of subscribers) {
    await subscriber.count(5);
    assert.deepEqual(subscriber.events.map(eventOf), [
      { id: 'i', event: { type: 'create', data: { n: 1 } } }, { id: 'i', event: { type: 'update', data: { n: 2 } } },
      { id: 'i', event: { type: 'delete', data: { n: 2 } } }, { id: null, event: { type: 'event', event: { type: 'typing', data: 1 } } },
    ]);
    subscriber.envelopes.forEach(({ seq, timestamp }, index, all) => {
      assert.equal(seq, all[0].seq + index);
      assert.ok(index === 0 || timestamp > all[index - 1].timestamp);
    });
  }
});

test('pipelined writes of one group happen one after the other, reads behind them see them', async () => {
  await makeStream('lane');
  const subscriber = await subscribe();
  await subscriber.joined('lane', 'g');
  const answers = [];
  for (let n = 0; n < 30; n += 1) {
    answers.push(there.set('lane', 'g', 'i', { n, slow: n % 7 === 0 ? 10 : 0 }).then(({ result }) => assert.equal(result.old_value?.n ?? null, n === 0 ? null : n - 1)));
    answers.push(there.call('stream::get', at('lane', 'g', 'i')).then(({ result }) => assert.ok(result.n >= n, `${result.n} >= ${n}`)));
    if (n % 10 === 5) answers.push(there.call('stream::send', { stream_name: 'lane', group_id: 'g', type: 'mark', data: n }));
  }
  await Promise.all(answers);
  await subscriber.count(34);
  assert.deepEqual(subscriber.events.map(({ event }) => event.data?.n ?? `mark ${event.event.data}`),
    Array.from({ length: 30 }, (_, n) => (n % 10 === 5 ? [n, `mark ${n}`] : [n])).flat());
});

// covers: 5#1, 5#6
test('an update goes through get and set, one after the other', async () => {
  const stream = await makeStream('counter');
  const subscriber = await subscribe();
  await subscriber.joined('counter', 'g');
  const ops = [{ type: 'increment', path: 'n', by: 1 }];
  const answers = await Promise.all(Array.from({ length: 200 }, (_, n) => (n % 2 ? here : there).call('stream::update', at('counter', 'g', 'i', { ops }))));
  assert.deepEqual(new Set(answers.map(({ result }) => result.new_value.n)), new Set(Array.from({ length: 200 }, (_, n) => n + 1)));
  assert.deepEqual(stream.groups.get('g').get('i'), { n: 200 });
  const mixed = await here.call('stream::update', at('counter', 'g', 'i', { ops: [...ops, { type: 'append', path: 'n', value: 'x' }] }));
  assert.deepEqual([mixed.result.old_value, mixed.result.new_value, mixed.result.errors[0].code], [{ n: 200 }, { n: 201 }, 'append.type_mismatch']);
  const inputs = stream.inputs.length;
  assert.equal((await here.call('stream::update', at('counter', 'g', 'i', { ops: [{ type: 'x' }] }))).error.code, 'deserialization_error');
  assert.equal(stream.inputs.length, inputs, 'nobody was asked');
  await subscriber.count(202);
  assert.deepEqual(subscriber.events.map(({ event }) => event.type), ['create', ...Array(200).fill('update')]);
});

// covers: 5#6
test('a stream::update of the worker\'s own is used, with its operations printed anew', async () => {
  const inputs = [];
  let result = { old_value: null, new_value: { ok: 1 }, errors: [] };
  here.register('stream::update(byhand)', ({ data }) => (inputs.push(data), { result }));
  const ops = [{ path: 'a', type: 'set', extra: 1 }, { type: 'merge', path: null, value: { b: 1 } }, { type: 'append', path: ['x', 'y'], value: null },
    { type: 'increment', path: '', by: 2 }, { type: 'remove', path: 'z' }];
  const call = () => there.call('stream::update', at('byhand', 'g', 'i', { ops }));
  await until(async () => (await call()).result?.new_value?.ok === 1, 'the function is known');
  assert.deepEqual(inputs[0], at('byhand', 'g', 'i', { ops: [{ type: 'set', path: 'a', value: null }, { type: 'merge', value: { b: 1 } },
    { type: 'append', path: ['x', 'y'], value: null }, { type: 'increment', path: '', by: 2 }, { type: 'remove', path: 'z' }] }));
  assert.deepEqual(await call(), { result: { old_value: null, new_value: { ok: 1 } } }, 'empty errors are left out');
  result = { old_value: 7, new_value: null, errors: [{ op_index: 0 }] };
  assert.deepEqual(await call(), { result });
  result = { old_value: 7 };
  assert.equal((await call()).error.code, 'JSON_ERROR');
  result = { new_value: 1, errors: 'many' };
  assert.equal((await call()).error.code, 'JSON_ERROR');
  result = null;
  assert.equal((await call()).error.code, 'STREAM_UPDATE_ERROR');
});

// covers: 2.9#4, 2.9#5, 3.1#8, 5#1, 5#2, 5#3, 5#4, 5#5
test('failures: the error of a read is passed on, that of a write becomes its own, a wrong shape is JSON_ERROR', async () => {
  let answer;
  for (const op of OPS) here.register(`stream::${op}(faulty)`, () => answer);
  await isServed('faulty');
  const subscriber = await subscribe();
  answer = { result: [] };
  await subscriber.joined('faulty', 'g');
  const calls = {
    set: () => there.set('faulty', 'g', 'i', 1),
    delete: () => there.call('stream::delete', at('faulty', 'g', 'i')),
    get: () => there.call('stream::get', at('faulty', 'g', 'i')),
    list: () => there.call('stream::list', at('faulty', 'g')),
    list_groups: () => there.call('stream::list_groups', { stream_name: 'faulty' }),
  };
  const codes = { set: 'STREAM_SET_ERROR', delete: 'STREAM_DELETE_ERROR' };
  const error = { code: 'MINE', message: 'höher', stacktrace: 'at here', more: [1] };
  for (const op of OPS) {
    answer = { error };
    const failed = (await calls[op]()).error;
    if (!codes[op]) assert.deepEqual(failed, error);
    else assert.equal(failed.code, codes[op]);
    if (codes[op]) assert.match(failed.message, /MINE: höher/);
  }
  for (const op of ['set', 'delete']) {
    for (const nothing of [{}, { result: null }]) {
      answer = nothing;
      assert.equal((await calls[op]()).error.code, codes[op]);
    }
    for (const result of [7, 'text', []]) {
      answer = { result };
      assert.equal((await calls[op]()).error.code, 'JSON_ERROR', `${op} ${JSON.stringify(result)}`);
    }
  }
  answer = { result: { old_value: 1 } };
  assert.equal((await calls.set()).error.code, 'JSON_ERROR', 'new_value is required');
  answer = {};
  assert.deepEqual([await calls.get(), await calls.list()], [{}, {}]);
  answer = { result: 'odd' };
  assert.deepEqual([await calls.get(), await calls.list(), await calls.list_groups()], [answer, answer, answer], 'passed through');
  await there.call('stream::send', { stream_name: 'faulty', group_id: 'g', type: 'end', data: null });
  await subscriber.count(2);
  assert.deepEqual(subscriber.envelopes.map(({ event }) => event.type), ['sync', 'event'], 'no event of any failure');
});

test('a function that never answers is given up after custom_timeout_ms', async () => {
  await withWeir({ settings: { custom_timeout_ms: 2000 } }, async (other, later) => {
    const [keeper, caller] = [...(await other.openOnEach(() => RawWorker.open(other.workerUrl))).values()].flat().map(later);
    const subscriber = later(await Subscriber.open(other.streamUrl));
    for (const op of OPS) keeper.register(`stream::${op}(silent)`, () => undefined);
    await isServed('silent', [keeper, caller]);
    subscriber.join('silent', 'g');
    await keeper.waitFor(() => keeper.invocations.some(({ function_id }) => function_id === 'stream::list(silent)'), 'the read of the join');
    const [get, set, list] = await Promise.all([
      caller.call('stream::get', at('silent', 'g', 'i')), caller.set('silent', 'g', 'i', 1), caller.call('stream::list', at('silent', 'g')),
    ]);
    assert.deepEqual([get.error.code, set.error.code, list.error.code], ['STREAM_GET_ERROR', 'STREAM_SET_ERROR', 'STREAM_GET_GROUP_ERROR']);
    assert.match(set.error.message, /custom_timeout_ms/);
    await caller.result('stream::send', { stream_name: 'silent', group_id: 'g', type: 'end', data: null });
    const [{ event, seq }] = await subscriber.count(1);
    assert.deepEqual([event.type, seq], ['event', 1], 'no sync of a list that is never read, and no event of any failure');
  });
});

// covers: 1.2#2
test('the sync of a join shows what the worker has, and the next event is the next one', async () => {
  await makeStream('sync');
  for (let n = 0; n < 3; n += 1) await here.set('sync', 'g', `i${n}`, { n });
  const subscribers = [...(await weir.openOnEach(() => Subscriber.open(weir.streamUrl))).values()].flat();
  open.push(...subscribers);
  for (const subscriber of subscribers) {
    const sync = await subscriber.joined('sync', 'g');
    assert.deepEqual([sync.id, sync.event.data], [null, [{ n: 0 }, { n: 1 }, { n: 2 }]]);
    const item = await subscriber.joined('sync', 'g', { id: 'i1', subscriptionId: 's2' });
    assert.deepEqual([item.id, item.event.data], ['i1', { n: 1 }]);
    const missing = await subscriber.joined('sync', 'g', { id: 'nobody', subscriptionId: 's3' });
    assert.deepEqual([missing.id, missing.event.data], ['nobody', null]);
    assert.ok(item.timestamp >= sync.timestamp);
  }
  await there.set('sync', 'g', 'i3', { n: 3 });
  for (const subscriber of subscribers) {
    await subscriber.count(4);
    const { seq, event } = subscriber.events[0];
    assert.deepEqual([seq, event], [subscriber.syncs[0].seq + 1, { type: 'create', data: { n: 3 } }]);
  }
});

test('joins while writers go on: no event is lost or repeated, the sync is not older than its seq', async () => {
  // Lossless: nobody waits for those who read.
  const mode = 'lossless';
  await makeStream('busy');
  const witness = await subscribe();
  await witness.joined('busy', 'g', { mode });
  let stop = false;
  const writing = [here, there].map(async (worker, index) => {
    for (let n = 0; !stop; n += 1) await worker.set('busy', 'g', `w${index}`, { id: `w${index}`, n });
    return null;
  });
  const subscribers = [];
  for (let n = 0; n < 12; n += 1) {
    const subscriber = await subscribe();
    subscriber.join('busy', 'g', { mode });
    subscriber.join('busy', 'g', { mode, subscriptionId: 's2' });
    subscribers.push(subscriber);
    await delay(15);
  }
  for (const subscriber of subscribers) await subscriber.waitFor(() => subscriber.syncs.length === 2 && subscriber.events.length > 20, 'syncs and events');
  stop = true;
  await Promise.all(writing);
  await here.set('busy', 'g', 'last', { id: 'last' });
  const isLast = ({ id }) => id === 'last';
  for (const subscriber of [witness, ...subscribers]) await subscriber.waitFor(() => subscriber.events.some(isLast), 'the last event');
  const stateAt = (seq) => {
    const items = new Map();
    for (const envelope of witness.events.filter((event) => event.seq <= seq)) items.set(envelope.id, envelope.event.data.n);
    return items;
  };
  for (const subscriber of subscribers) {
    const first = subscriber.envelopes[0];
    assert.equal(first.event.type, 'sync');
    subscriber.events.forEach(({ seq }, index) => assert.equal(seq, first.seq + index + 1, 'without gap'));
    for (const sync of subscriber.syncs) {
      const known = new Map(sync.event.data.map(({ id, n }) => [id, n]));
      for (const [id, n] of stateAt(sync.seq)) assert.ok(known.get(id) >= n, `${id}: ${known.get(id)} >= ${n} at ${sync.seq}`);
    }
  }
});

test('a join whose value cannot be read gets no sync, but the events; a slow one does not hold up leaving', async () => {
  let answer = { error: { code: 'NO', message: 'no' } };
  const waiting = [];
  for (const op of OPS) here.register(`stream::${op}(nosync)`, ({ data, invocation_id, function_id }) => {
    if (op === 'set') return { result: { new_value: data.data } };
    if (answer === undefined) waiting.push({ invocation_id, function_id });
    return answer;
  });
  await isServed('nosync');
  const failing = await subscribe();
  failing.join('nosync', 'g');
  await failing.ping();
  await until(() => here.invocations.some(({ function_id }) => function_id === 'stream::list(nosync)'), 'the read');
  await there.set('nosync', 'g', 'i', 1);
  await failing.count(1);
  assert.equal(failing.envelopes[0].event.type, 'create');

  answer = {};
  const nothing = await subscribe();
  assert.equal((await nothing.joined('nosync', 'g')).event.data, null, 'null when the list returned nothing');

  answer = undefined;
  const [leaver, closer, stayer] = [await subscribe(), await subscribe(), await subscribe()];
  stayer.join('nosync', 'g');
  await here.waitFor(() => waiting.length > 0, 'its read'); // nobody else's: from here on its link is held
  for (const subscriber of [leaver, closer]) {
    subscriber.join('nosync', 'g');
    await subscriber.ping();
    await subscriber.ping(); // a turn later
  }
  leaver.leave('nosync', 'g');
  await leaver.ping();
  await closer.close();
  await there.set('nosync', 'g', 'i', 2); // while the reads are open
  await there.set('nosync', 'g', 'i', 3);
  await failing.count(3);
  assert.equal(stayer.envelopes.length, 0, 'events wait for the sync');
  answer = { result: [2] }; // of a read that comes yet
  for (const { invocation_id, function_id } of waiting) here.send({ type: 'invocationresult', invocation_id, function_id, result: [2] });
  await stayer.count(3);
  assert.deepEqual(stayer.envelopes.map(({ event }) => event.data), [[2], 2, 3]);
  assert.deepEqual(stayer.envelopes.map(({ seq }) => seq - stayer.envelopes[0].seq), [0, 1, 2]);
  await leaver.ping();
  assert.equal(leaver.envelopes.length, 0);
});

test('while the worker is away calls fail and nothing gets into the store; when it is back they are served', async () => {
  const stream = new MemoryStream();
  const keep = async () => {
    const client = await openSdkClient(weir.workerUrl);
    createStream(client.worker, 'away', stream);
    await isServed('away');
    return client;
  };
  const first = await keep();
  await here.set('away', 'g', 'i', 1);
  await first.close();
  const codes = ['STREAM_SET_ERROR', 'STREAM_GET_ERROR', 'STREAM_DELETE_ERROR', 'STREAM_GET_GROUP_ERROR', 'STREAM_LIST_GROUPS_ERROR', 'STREAM_UPDATE_ERROR'];
  await until(async () => (await there.call('stream::get', at('away', 'g', 'i'))).error?.code === 'STREAM_GET_ERROR', 'the worker is gone');
  const subscriber = await subscribe();
  subscriber.join('away', 'g');
  await subscriber.ping();
  for (const caller of [here, there]) {
    const answers = [await caller.set('away', 'g', 'i', 2), await caller.call('stream::get', at('away', 'g', 'i')), await caller.call('stream::delete', at('away', 'g', 'i')),
      await caller.call('stream::list', at('away', 'g')), await caller.call('stream::list_groups', { stream_name: 'away' }), await caller.call('stream::update', at('away', 'g', 'i', { ops: [] }))];
    assert.deepEqual(answers.map(({ error }) => error?.code), codes);
    for (const { error } of answers) assert.match(error.message, /away/);
  }
  assert.ok(!(await there.call('stream::list_all', {})).result.stream.some(({ id }) => id === 'away'));
  // The join may have been taken up since: its first event is one that was sent after that.
  await until(async () => {
    await there.call('stream::send', { stream_name: 'away', group_id: 'g', type: 'end', data: null });
    return subscriber.envelopes.length > 0;
  }, 'an event');
  assert.ok(subscriber.envelopes.every(({ event }) => event.type === 'event'), 'no sync, and no event of what has failed');
  const second = await keep();
  assert.deepEqual(await there.call('stream::get', at('away', 'g', 'i')), { result: 1 });
  assert.deepEqual((await there.set('away', 'g', 'i', 3)).result, { old_value: 1, new_value: 3 });
  await second.close();
});

test('subscribers get a fresh sync when the worker of their stream comes, and when it comes back', async () => {
  const stream = new MemoryStream();
  stream.groups.set('g', new Map([['i', 'kept']]));
  const subscriber = await subscribe();
  assert.deepEqual((await subscriber.joined('coming', 'g')).event.data, [], 'from the store');
  for (const round of [1, 2]) {
    const before = subscriber.syncs.length;
    const client = await openSdkClient(weir.workerUrl);
    createStream(client.worker, 'coming', stream);
    await subscriber.waitFor(() => subscriber.syncs.slice(before).some(({ event, reason }) => event.data?.[0] === 'kept' && reason === 'restarted'), `the sync of round ${round}`);
    await isServed('coming');
    await isShown('coming'); // no sync comes that the event would be a part of
    await there.set('coming', 'g', 'i', 'kept');
    await subscriber.waitFor(() => subscriber.events.length === round, 'an event');
    await client.close();
    await until(async () => (await there.call('stream::get', at('coming', 'g', 'i'))).error, 'the worker is gone');
  }
  const seqs = subscriber.events.map(({ seq }) => seq);
  assert.equal(seqs[1], seqs[0] + 1, 'nothing lost on the way');
});

test('custom_fallback: the store serves while the worker is away, as the iii engine does', async () => {
  const other = await Weir.start({ settings: { custom_fallback: true } });
  try {
    const caller = await RawWorker.open(other.workerUrl);
    const keeper = await RawWorker.open(other.workerUrl);
    keeper.register('stream::get(x)', () => ({ result: 'theirs' }));
    await until(async () => (await caller.call('stream::get', at('x', 'g', 'i'))).result === 'theirs', 'the function is known');
    await caller.set('x', 'g', 'i', 'ours'); // set is not replaced
    await keeper.close();
    await until(async () => (await caller.call('stream::get', at('x', 'g', 'i'))).result === 'ours', 'the store serves');
    await caller.close();
  } finally {
    await other.stop();
  }
});

test('a gateway that starts later is told of the streams', async () => {
  await makeStream('later');
  await here.set('later', 'g', 'i', 'kept');
  const [home, victim] = [await gatewayOf(here), await gatewayOf(there)];
  process.kill(victim, 'SIGKILL');
  await weir.gatewaysAfter(victim);
  const found = await weir.openOnEach(() => RawWorker.open(weir.workerUrl));
  const [a] = found.get(home);
  [there] = [...found.values()].flat().filter((worker) => worker !== a);
  open.push(a, there);
  for (const caller of [a, there]) assert.deepEqual(await caller.call('stream::get', at('later', 'g', 'i')), { result: 'kept' });
});

test('counters tell the calls and their failures', async () => {
  const page = await until(async () => {
    const text = await weir.metrics();
    const number = (name) => Number(new RegExp(`^\\S*${name}\\S* (\\d+)`, 'm').exec(text)?.[1] ?? 0);
    return number('custom_calls') > 100 && number('custom_failed') > 3 && text;
  }, 'custom_calls and custom_failed');
  assert.ok(page);
});

test('after a restart of the broker subscribers see the worker\'s values again', async () => {
  await makeStream('restart');
  await here.set('restart', 'g', 'i', 'kept');
  const subscribers = [...(await weir.openOnEach(() => Subscriber.open(weir.streamUrl))).values()].flat();
  open.push(...subscribers);
  for (const subscriber of subscribers) await subscriber.joined('restart', 'g');
  const { epoch } = subscribers[0].syncs[0];
  process.kill(weir.broker(), 'SIGKILL');
  for (const subscriber of subscribers)
    await subscriber.waitFor(() => subscriber.envelopes.some((sync) => sync.epoch !== epoch && sync.event.data?.[0] === 'kept'), 'the sync');
  await until(async () => (await there.set('restart', 'g', 'i', 'more')).result?.old_value === 'kept', 'the stream is written');
  for (const subscriber of subscribers) await subscriber.waitFor(() => subscriber.envelopes.some(({ event }) => event.data === 'more' || event.data?.[0] === 'more'), 'the event, or a sync that came after it');
});

// load.test.mjs -- 200 subscribers, 50 of them slow, payloads from 100 B to 64 KiB, pings under load: the test of the rule that
// lets frames be sent beside libwebsockets. A frame cut by a full socket must continue with its own bytes, whatever comes between.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Client, RawWorker, Subscriber } from './lib/clients.mjs';
import { GroupModel } from './lib/model.mjs';
import { RawSocket, frame, PING, PONG, TEXT } from './lib/frames.mjs';
import { Weir, delay, isSanitized, seededRandom, until } from './lib/weir.mjs';

const CLIENTS = 200;
const SLOW = 50;
const EVENTS = isSanitized ? 250 : 500;
const BYTES_MIN = 100;
const BYTES_MAX = 64 * 1024;
const ALPHABET = ['a', 'Z', '0', ' ', '\\', '"', '\n', '\u0000', 'é', '漢', '😀', '/', '\u2028'];

let weir;
before(async () => {
  weir = await Weir.start();
});
after(() => weir?.stop());

function payloadOf(random, n) {
  const bytes = Math.floor(BYTES_MIN * (BYTES_MAX / BYTES_MIN) ** random());
  const mark = ALPHABET[random.below(ALPHABET.length)];
  const unit = Buffer.byteLength(JSON.stringify(mark)) - 2;
  return { id: `item-${n}`, n, text: mark.repeat(Math.max(1, Math.floor(bytes / unit))) };
}

// Compares each frame with the reference on arrival: keeping 200 copies of everything would be the test's own memory limit.
class Checker extends Client {
  count = 0;
  next = 0;
  reference = null;

  take(data) {
    const isSync = this.count === 0;
    this.count += 1;
    if (isSync) return this.wake();
    const index = this.next++;
    const known = this.reference[index];
    if (known === undefined) this.reference[index] = data;
    else if (!known.equals(data) && this.problem === undefined) this.problem = `frame ${index} differs: ${data.subarray(0, 200)} … instead of ${known.subarray(0, 200)} …`;
    return this.wake();
  }
}

test(`${CLIENTS} subscribers, ${SLOW} slow: every frame byte-exact and in order, pings answered`, async () => {
  const random = seededRandom('load');
  const reference = [];
  const clients = [];
  for (let index = 0; index < CLIENTS; index += 1) {
    const client = await Checker.open(weir.streamUrl);
    client.reference = reference;
    client.isSlow = index % (CLIENTS / SLOW) === 0;
    client.pings = 0;
    client.send({ type: 'join', data: { subscriptionId: 's', streamName: 'load', groupId: 'g' } });
    clients.push(client);
  }
  for (const client of clients) await client.waitFor(() => client.count === 1, 'the sync');
  const slow = clients.filter(({ isSlow }) => isSlow);
  const writers = [...(await weir.openOnEach(() => RawWorker.open(weir.workerUrl))).values()].flat();

  for (const client of slow) client.socket._socket.pause();
  const written = new Map();
  let isOver = false;
  const pinging = (async () => {
    for (let turn = 0; !isOver; turn += 1) {
      const client = clients[turn % CLIENTS];
      // A server may answer only the newest of several pings that wait (RFC 6455 section 5.5.3): one at a time gets each answered.
      if (client.isSlow || client.pongs.length === client.pings) {
        client.socket.ping(`p${turn}`);
        client.pings += 1;
      }
      await delay(2);
    }
  })();
  for (let n = 0; n < EVENTS; n += 1) {
    const payload = payloadOf(random, n);
    written.set(payload.id, payload);
    const answer = await writers[n % 2].set('load', 'g', payload.id, payload);
    assert.equal(answer.error, undefined);
    // Slow readers take a sip now and then, so that frames are cut at many places.
    if (n % 8 === 0) {
      const client = slow[random.below(SLOW)];
      client.socket._socket.resume();
      setTimeout(() => isOver || client.socket._socket.pause(), 3);
    }
  }
  const fast = clients.filter(({ isSlow }) => !isSlow);
  for (const client of fast) await client.waitFor(() => client.next === EVENTS, 'every event at a fast reader', 60000);
  isOver = true;
  await pinging;
  for (const client of slow) client.socket._socket.resume();
  for (const client of clients) {
    await client.waitFor(() => client.next === EVENTS, 'every event at a slow reader', 60000);
    assert.equal(client.problem, undefined);
    assert.equal(client.closed, null);
    if (!client.isSlow) await until(() => client.pongs.length === client.pings, 'a pong for every ping');
    await client.ping();
  }
  reference.forEach((data, index) => {
    const envelope = JSON.parse(data);
    assert.deepEqual(envelope.event.data, written.get(envelope.id), `event ${index}`);
    if (index > 0) assert.equal(envelope.seq, JSON.parse(reference[index - 1]).seq + 1);
  });
  await Promise.all([...clients, ...writers].map((client) => client.close()));
});

test('a reader so slow that the ring laps it ends with the exact state, and is told', async () => {
  const small = await Weir.start({ settings: { ring_bytes: '1MiB', idle_timeout_ms: 0 } });
  try {
    const random = seededRandom('lapped');
    const writer = await RawWorker.open(small.workerUrl);
    const slow = [...(await small.openOnEach(() => Subscriber.open(small.streamUrl), 3)).values()].flat();
    const fast = await Subscriber.open(small.streamUrl);
    for (const each of [...slow, fast]) await each.joined('lapped', 'g');
    for (const each of slow) each.socket._socket.pause();
    for (let n = 0; n < 800; n += 1) {
      const id = `item-${random.below(12)}`;
      if (random() < 0.05) await writer.call('stream::delete', { stream_name: 'lapped', group_id: 'g', item_id: id });
      else assert.equal((await writer.set('lapped', 'g', id, { id, n, text: 'x'.repeat(random.below(32768)) })).error, undefined);
    }
    await writer.set('lapped', 'g', 'end', { id: 'end' });
    const list = await writer.result('stream::list', { stream_name: 'lapped', group_id: 'g' });
    for (const each of slow) each.socket._socket.resume();
    for (const [index, each] of [...slow, fast].entries()) {
      const atEnd = () => each.closed || each.envelopes.at(-1).id === 'end' || each.envelopes.at(-1).event.data?.some?.(({ id }) => id === 'end');
      await each.waitFor(atEnd, `the end at ${index}`, 60000);
      if (each.closed) {
        assert.equal(each.closed.code, 1013, 'a subscriber that cannot be served is told so');
        continue;
      }
      const model = new GroupModel();
      let last = 0;
      for (const envelope of each.envelopes) {
        const { event } = envelope;
        assert.ok(envelope.seq > last || event.type === 'sync', 'never backwards');
        if (event.type === 'sync' && last !== 0) assert.equal(typeof envelope.reason, 'string', 'a fresh sync says why');
        last = envelope.seq;
        event.type === 'sync' ? model.reset(envelope) : model.apply(envelope);
      }
      const byId = (values) => [...values].sort((left, right) => (left.id < right.id ? -1 : 1));
      assert.deepEqual(byId(model.values()), byId(list));
    }
    await Promise.all([...slow, fast, writer].map((client) => client.close()));
  } finally {
    await small.stop();
  }
});

test('big values, to the limit: byte-exact in event, sync and answers', async () => {
  const writer = await RawWorker.open(weir.workerUrl);
  const both = [...(await weir.openOnEach(() => Subscriber.open(weir.streamUrl))).values()].flat();
  for (const subscriber of both) await subscriber.joined('big', 'g');
  for (const [n, bytes] of [65535, 65536, 1 << 20, 4 << 20, 15 * 1024 * 1024 - 2].entries()) {
    const value = 'v'.repeat(bytes);
    const { result } = await writer.set('big', 'g', 'i', value);
    assert.ok(result.new_value === value);
    for (const subscriber of both) {
      await subscriber.waitFor(() => subscriber.events.length === n + 1, `event of ${bytes} bytes`, 60000);
      assert.ok(subscriber.events[n].event.data === value);
    }
  }
  const late = await Subscriber.open(weir.streamUrl);
  const sync = await late.joined('big', 'g');
  assert.equal(sync.event.data[0].length, 15 * 1024 * 1024 - 2);
  const refused = await writer.set('big', 'g', 'i', 'v'.repeat(15 * 1024 * 1024 - 1));
  assert.equal(typeof refused.error?.code, 'string', 'one byte more is refused');
  assert.equal((await writer.set('big', 'g', 'i', 1)).error, undefined, 'and the connection goes on');
  await Promise.all([...both, late, writer].map((client) => client.close()));
});

test('control frames between cut frames: a socket read byte-wise sees whole frames only', async () => {
  const writer = await RawWorker.open(weir.workerUrl);
  const raw = await RawSocket.open(weir.streamPort, '/', { highWaterMark: 4096 });
  raw.send({ type: 'join', data: { subscriptionId: 's', streamName: 'cut', groupId: 'g' } });
  await until(() => raw.texts.length > 0, 'the sync');
  raw.socket.pause();
  const expected = [];
  let pings = 0;
  for (let n = 0; n < 200; n += 1) {
    const value = `${n}:`.padEnd(30000 + n, String.fromCharCode(97 + (n % 26)));
    expected.push(value);
    await writer.set('cut', 'g', `i${n}`, value);
    if (n % 10 === 0) raw.write(frame(`ping ${pings++}`, { opcode: PING }));
  }
  let isSipping = true;
  const sips = setInterval(() => {
    raw.socket.resume();
    setImmediate(() => isSipping && raw.socket.pause());
  }, 1);
  const end = Date.now() + 60000;
  while (raw.texts.length < 201 && Date.now() < end && !raw.isClosed) await delay(20);
  clearInterval(sips);
  isSipping = false;
  raw.socket.resume();
  assert.deepEqual(raw.texts.slice(1).map((text) => JSON.parse(text).event.data.slice(0, 40)), expected.map((value) => value.slice(0, 40)));
  raw.texts.slice(1).forEach((text, index) => assert.ok(JSON.parse(text).event.data === expected[index]));
  raw.write(frame('last', { opcode: PING }));
  const pongs = () => raw.frames.filter(({ opcode }) => opcode === PONG).map(({ payload }) => payload.toString());
  await until(() => pongs().includes('last'), 'the last pong');
  const numbers = pongs().slice(0, -1).map((text) => Number(/^ping (\d+)$/.exec(text)[1]));
  assert.ok(numbers.length >= 1 && numbers.every((number, index) => number < pings && (index === 0 || number > numbers[index - 1])), `pongs ${numbers}`);
  for (const { opcode, fin, reserved, isMasked } of raw.frames) {
    assert.deepEqual({ fin, reserved, isMasked }, { fin: true, reserved: 0, isMasked: false });
    assert.ok(opcode === TEXT || opcode === PONG || opcode === PING);
  }
  raw.destroy();
  await writer.close();
});

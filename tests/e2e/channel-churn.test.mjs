// channel-churn.test.mjs -- byte channels under bad treatment: ends that come, go and are killed at random while data flows,
// and more bulk data at once than any process would hold.
import assert from 'node:assert/strict';
import net from 'node:net';
import { after, before, test } from 'node:test';
import { WebSocket } from 'ws';
import { LIMIT_MS, Weir, delay, isSanitized, seededRandom, standStill, until } from './lib/weir.mjs';
import { reset } from './lib/frames.mjs';
import { openSdkWorker } from './lib/sdk.mjs';

let weir;
let worker;
before(async () => {
  weir = await Weir.start();
  worker = await openSdkWorker(weir.workerUrl);
  worker.registerFunction('churn::echo', async (data) => data);
});
after(async () => {
  await worker?.shutdown();
  await weir?.stop();
});

const create = (payload = {}) => worker.trigger({ function_id: 'engine::channels::create', payload });
const pathOf = ({ channel_id, access_key, direction }) => `/ws/channels/${channel_id}?key=${access_key}&dir=${direction}`;

async function figure(name) {
  const text = await weir.metrics();
  const values = text.split('\n').filter((line) => new RegExp(`^weir_[a-z]+_${name}(_total)?[{ ]`).test(line));
  assert.ok(values.length > 0, `${name} is counted`);
  return values.reduce((sum, line) => sum + Number(line.split(' ').pop()), 0);
}

const linksLost = () => weir.stderr.split('event=broker_away').length - 1;

function attach(reference) {
  const socket = new WebSocket(weir.workerUrl + pathOf(reference));
  const end = { socket, received: [], outcome: undefined, closed: undefined };
  socket.on('message', (data, isBinary) => end.received.push({ data, isBinary }));
  socket.on('open', () => (end.outcome = 'open'));
  socket.on('unexpected-response', (request, response) => {
    end.outcome = response.statusCode;
    request.destroy();
  });
  socket.on('error', () => {});
  socket.on('close', (code) => {
    end.closed = code;
    end.outcome ??= 'closed';
  });
  return end;
}

async function attached(reference) {
  const end = attach(reference);
  await until(() => end.outcome !== undefined, 'the handshake is decided');
  return end;
}

// A gateway that is not yet with the new broker lets nobody in.
const attachedAtLast = (reference) => until(async () => [await attached(reference)].find(({ outcome }) => outcome === 'open'), 'the end is open');
// A call may be lost with a process.
const isAnswered = (payload) => worker.trigger({ function_id: 'churn::echo', payload, timeoutMs: 5000 }).catch(() => null);

// An upgrade whose client is gone before it can have been decided, sometimes with bytes behind the head.
async function knock(reference, random) {
  const socket = net.connect(weir.workerPort, '127.0.0.1');
  socket.on('error', () => {});
  const head = `GET ${pathOf(reference)} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n`
    + 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n';
  socket.write(random.below(2) ? head : Buffer.concat([Buffer.from(head), Buffer.from([0x82, 0x81, 1, 2, 3, 4, 5])]));
  await delay(random.below(4));
  if (random.below(2)) socket.destroy();
  else reset(socket);
}

// The number of the message, then so many bytes of it; a message may be empty.
function message(number, bytes) {
  const data = Buffer.alloc(bytes, number);
  if (bytes >= 4) data.writeUInt32LE(number);
  return data;
}

function checkPrefix(received, sizes, what) {
  assert.ok(received.length <= sizes.length, `${what}: no more than was sent`);
  received.forEach(({ data }, number) => assert.ok(data.equals(message(number, sizes[number])), `${what}: message ${number} of ${sizes[number]} bytes`));
}

async function live(random, what) {
  const { writer, reader } = await create({ buffer_size: 1 + random.below(20) });
  const sizes = Array.from({ length: random.below(30) }, () => [0, random.below(200), random.below(70000), random.below(300000)][random.below(4)]);
  const knocked = [undefined, undefined, undefined, undefined, undefined, undefined, writer, reader][random.below(8)];
  if (knocked) await knock(knocked, random);
  const wantsReaderFirst = random.below(2) === 0;
  const early = wantsReaderFirst ? await attached(reader) : undefined;
  const out = await attached(writer);
  if (knocked && (knocked === writer || out.outcome !== 'open')) {
    // The knock may have been let in first: then it was the writer, or the channel has gone with its reader.
    out.socket.terminate();
    early?.socket.terminate();
    return 'refused';
  }
  const fate = random.below(6);
  const cut = random.below(sizes.length + 1);
  let into = early;
  for (let number = 0; number < sizes.length && out.closed === undefined; number += 1) {
    out.socket.send(message(number, sizes[number]));
    if (number !== cut) continue;
    into ??= await attached(reader);
    if (fate === 0) out.socket.terminate();
    if (fate === 1) into.socket.terminate();
    if (fate === 2) into.socket._socket?.pause();
    if (fate === 3) await delay(random.below(10));
    if (fate === 4) (await attached(random.below(2) ? writer : reader)).socket.terminate();
  }
  into ??= await attached(reader);
  const wasOpen = into.outcome === 'open' && out.closed === undefined;
  out.socket.close(1000);
  if (fate === 2) {
    await delay(random.below(50));
    into.socket._socket?.resume();
  }
  await until(() => into.closed !== undefined || into.outcome !== 'open', `${what}: the reader's end (fate ${fate})`);
  checkPrefix(into.received, sizes, what);
  if (wasOpen && fate !== 0 && fate !== 1 && into.closed === 1000)
    assert.equal(into.received.length, sizes.length, `${what}: everything arrived (fate ${fate})`);
  out.socket.terminate();
  return into.closed === 1000 && into.received.length === sizes.length ? 'whole' : 'cut';
}

test('hundreds of channels are opened, cut and killed while data flows; nothing is mixed up or left', async () => {
  const random = seededRandom('channel churn');
  const outcomes = { whole: 0, cut: 0, refused: 0 };
  let number = 0;
  const lane = async () => {
    while (number < (isSanitized ? 300 : 500)) {
      number += 1;
      outcomes[await live(random, `channel ${number}`)] += 1;
    }
  };
  await Promise.all(Array.from({ length: 25 }, lane));
  assert.ok(outcomes.whole > 50 && outcomes.cut > 20, JSON.stringify(outcomes));
  await until(async () => (await figure('channel_ends')) === 0, 'no socket is left');
  assert.equal(await figure('channels_dropped'), 0);
  assert.equal(linksLost(), 0, weir.stderr);
});

test('kill -9 of a gateway and of the broker in the midst of it', async () => {
  const random = seededRandom('channel churn with deaths');
  const again = () => until(() => worker.trigger({ function_id: 'engine::channels::create', payload: {}, timeoutMs: 5000 }).catch(() => null), 'a channel is made');
  for (const isGateway of [true, false]) {
    const ends = [];
    for (let n = 0; n < 20; n += 1) {
      const { writer, reader } = await again();
      ends.push(attach(writer), attach(reader));
    }
    for (const end of ends) await until(() => end.outcome !== undefined, 'the handshake is decided');
    ends.forEach((end, n) => n % 2 === 0 && end.outcome === 'open' && [1, 2, 3].forEach(() => end.socket.send(Buffer.alloc(100000))));
    const knocks = Promise.all(ends.map(() => create().then(({ reader }) => knock(reader, random), () => {})));
    const victim = isGateway ? weir.gateways()[random.below(2)] : weir.broker();
    const before = weir.attachments();
    process.kill(victim, 'SIGKILL');
    await knocks;
    for (const end of ends) end.socket.terminate();
    await (isGateway ? weir.gatewaysAfter(victim) : weir.brokerAfter(victim));
    await until(() => isAnswered(1), 'calls work again');
    // The worker's gateway is; the other may not know yet that the broker is another, and has not said that it lost the one before.
    await until(() => weir.attachments() >= before + (isGateway ? 1 : weir.gatewayCount), 'every gateway is with the broker');
  }
  const { writer, reader } = await again();
  const [out, into] = [await attachedAtLast(writer), await attachedAtLast(reader)];
  out.socket.send('after all');
  await until(() => into.received.length === 1, 'the message');
});

// Credit is for messages, whatever their size: what a stopped process does not take waits at the writers, not in ours.
test('bulk data does not cost anybody the connection to the broker, whoever stands still', async () => {
  const bytes = isSanitized ? 8 << 20 : 12 << 20;
  const each = 5;
  const lost = linksLost();
  const pairs = [];
  for (let n = 0; n < (isSanitized ? 6 : 8); n += 1) {
    const { writer, reader } = await create({ buffer_size: 1024 });
    const pair = { out: await attached(writer), into: await attached(reader) };
    assert.deepEqual([pair.out.outcome, pair.into.outcome], ['open', 'open']);
    pairs.push(pair);
  }
  const data = Buffer.alloc(bytes, 7);
  for (const stopped of [weir.broker(), ...weir.gateways()]) {
    for (const { out, into } of pairs) {
      into.received = [];
      for (let n = 0; n < each; n += 1) out.socket.send(data);
    }
    await delay(30);
    try {
      await standStill(stopped);
      await delay(700);
    } finally {
      process.kill(stopped, 'SIGCONT');
    }
    await until(() => pairs.every(({ into }) => into.received.length === each), 'everything arrives', 5 * LIMIT_MS).catch((error) => {
      error.message += `\nmessages that came: ${pairs.map(({ into }) => into.received.length)}; closed: ${pairs.map(({ out, into }) => `${out.closed} ${into.closed}`)}`;
      throw error;
    });
    assert.ok(pairs.every(({ into }) => into.received.every((one) => one.data.length === bytes)));
    assert.equal(await worker.trigger({ function_id: 'churn::echo', payload: 5 }), 5);
  }
  assert.equal(linksLost(), lost, weir.stderr);
  for (const { out, into } of pairs) assert.deepEqual([out.closed, into.closed], [undefined, undefined]);
  for (const { out, into } of pairs) [out, into].forEach((end) => end.socket.terminate());
});

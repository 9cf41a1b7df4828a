// channels.test.mjs -- byte channels: what one socket writes, another reads, whichever gateways hold them.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, before, test } from 'node:test';
import { createChannel } from 'iii-sdk/helpers';
import { WebSocket } from 'ws';
import { Weir, seededRandom, until } from './lib/weir.mjs';
import { openSdkWorker } from './lib/sdk.mjs';

const HELD_BYTES = 4 << 20;
const HELD_UP_BY = 256 << 20;

let weir;
let worker;
before(async () => {
  weir = await Weir.start();
  worker = await openSdkWorker(weir.workerUrl);
});
after(async () => {
  await worker?.shutdown();
  await weir?.stop();
});

const create = (payload = {}) => worker.trigger({ function_id: 'engine::channels::create', payload });
const urlOf = ({ channel_id, access_key, direction }) => `${weir.workerUrl}/ws/channels/${channel_id}?key=${access_key}&dir=${direction}`;

// A socket that remembers what it gets; `outcome` is 'open' or the HTTP status.
function attach(url) {
  const socket = new WebSocket(url);
  const end = { socket, received: [], outcome: undefined, closed: undefined };
  socket.on('message', (data, isBinary) => end.received.push(isBinary ? data : data.toString()));
  socket.on('open', () => {
    end.outcome = 'open';
    end.localPort = socket._socket.localPort;
    end.remotePort = socket._socket.remotePort;
  });
  socket.on('unexpected-response', (request, response) => {
    end.outcome = response.statusCode;
    request.destroy();
  });
  socket.on('error', () => {});
  socket.on('close', (code) => (end.closed = code));
  end.close = () => socket.terminate();
  return end;
}


async function attached(url) {
  const end = attach(url);
  await until(() => end.outcome !== undefined, 'the handshake is decided');
  return end;
}

// covers: 0#3, 2.15#12
test('text and binary messages arrive in order on every pair of gateways, then the Close', async () => {
  const pairs = new Set();
  for (let attempt = 0; pairs.size < 4 && attempt < 400; attempt += 1) {
    const { writer, reader } = await create();
    const out = await attached(urlOf(writer));
    const into = await attached(urlOf(reader));
    assert.deepEqual([out.outcome, into.outcome], ['open', 'open']);
    const held = [...weir.byGateway([out, into])];
    pairs.add([out, into].map((end) => held.find(([, ends]) => ends.includes(end))[0]).join(' '));
    out.socket.send('text ä');
    out.socket.send(Buffer.from([0, 1, 255]));
    out.socket.send('');
    for (let n = 0; n < 500; n += 1) out.socket.send(String(n));
    out.socket.close(1000, 'done');
    await until(() => into.closed !== undefined, 'the reader is closed');
    assert.equal(into.closed, 1000);
    assert.deepEqual(into.received.slice(0, 3), ['text ä', Buffer.from([0, 1, 255]), '']);
    assert.deepEqual(into.received.slice(3), Array.from({ length: 500 }, (_, n) => String(n)));
  }
  assert.equal(pairs.size, 4, 'writers and readers were on every pair of gateways');
});

test('a writer may be done before its reader comes', async () => {
  const { writer, reader } = await create();
  const out = await attached(urlOf(writer));
  out.socket.send('early');
  out.socket.close();
  await until(() => out.closed !== undefined, 'the writer is closed');
  const into = await attached(urlOf(reader));
  await until(() => into.closed !== undefined, 'the reader is closed');
  assert.deepEqual(into.received, ['early']);
});

test('unknown ids, wrong keys and wrong directions are 404; a second socket at an end is closed', async () => {
  const { writer, reader } = await create();
  const bad = [
    `${weir.workerUrl}/ws/channels/nope?key=${writer.access_key}&dir=write`,
    `${weir.workerUrl}/ws/channels/${writer.channel_id}?key=${reader.access_key}&dir=write`,
    `${weir.workerUrl}/ws/channels/${writer.channel_id}?key=${writer.access_key}&dir=read`,
    `${weir.workerUrl}/ws/channels/${writer.channel_id}?key=&dir=write`,
    `${weir.workerUrl}/ws/channels/${writer.channel_id}?dir=write`,
    `${weir.workerUrl}/ws/channels/${writer.channel_id}?key=${writer.access_key}&dir=both`,
    `${weir.workerUrl}/ws/channels/${writer.channel_id}`,
  ];
  for (const url of bad) assert.equal((await attached(url)).outcome, 404, url);
  for (const reference of [writer, reader]) {
    const first = await attached(urlOf(reference));
    const second = await attached(urlOf(reference));
    await until(() => second.closed !== undefined, 'the second is closed');
    assert.equal(second.closed, 1008);
    assert.equal(first.closed, undefined);
  }
});

test('buffer_size is a whole number from 1 to 1024; more counts as 1024', async () => {
  for (const buffer_size of [0, -1, 1.5, '64', null, 64, 5000]) {
    const promise = create({ buffer_size });
    if ([null, 64, 5000].includes(buffer_size)) assert.equal((await promise).writer.direction, 'write');
    else await assert.rejects(promise, { code: 'deserialization_error' });
  }
});

test('a reader that stops holds up its writer, not the server, and loses nothing', async () => {
  const random = seededRandom('channels');
  const { writer, reader } = await create({ buffer_size: 16 });
  const out = await attached(urlOf(writer));
  const into = await attached(urlOf(reader));
  into.socket._socket.pause();
  const sent = createHash('sha256');
  let total = 0;
  let bytes = 0;
  const send = () => {
    const chunk = Buffer.alloc(1 + random.below(128 * 1024), total);
    sent.update(chunk);
    out.socket.send(chunk);
    total += 1;
    bytes += chunk.length;
  };
  // The kernel takes much for sockets nobody reads (tcp_rmem). Others are served meanwhile, and a while of that makes no difference
  // to the writer any more.
  let left = 0;
  await until(async () => {
    const before = left;
    while (out.socket.bufferedAmount < HELD_BYTES) {
      assert.ok(bytes < HELD_UP_BY, 'the writer is not held up');
      send();
    }
    for (let n = 0; n < 5; n += 1) await worker.trigger({ function_id: 'stream::set', payload: { stream_name: 'c', group_id: 'g', item_id: 'i', data: n } });
    left = out.socket.bufferedAmount;
    return left > 0 && left === before;
  }, 'the writer is held up');
  into.socket._socket.resume();
  out.socket.close();
  await until(() => into.closed !== undefined, 'everything is read');
  assert.equal(into.received.length, total);
  assert.equal(createHash('sha256').update(Buffer.concat(into.received)).digest('hex'), sent.digest('hex'));
});

test('when the reader goes, its writer is closed; when the maker goes, both are', async () => {
  const { writer, reader } = await create();
  const [out, into] = [await attached(urlOf(writer)), await attached(urlOf(reader))];
  into.close();
  await until(() => out.closed !== undefined, 'the writer is closed');

  const maker = await openSdkWorker(weir.workerUrl);
  const made = await maker.trigger({ function_id: 'engine::channels::create', payload: {} });
  const ends = [await attached(urlOf(made.writer)), await attached(urlOf(made.reader))];
  await maker.shutdown();
  for (const end of ends) await until(() => end.closed !== undefined, 'both ends are closed');
  assert.equal((await attached(urlOf(made.writer))).outcome, 404);
});

test('kill -9 of the broker ends every channel; new ones work', async () => {
  const { writer, reader } = await create();
  const ends = [await attached(urlOf(writer)), await attached(urlOf(reader))];
  const before = weir.attachments();
  process.kill(weir.broker(), 'SIGKILL');
  for (const end of ends) await until(() => end.closed !== undefined, 'the end is closed');
  assert.deepEqual(ends.map((end) => end.closed), [1012, 1012]);
  const made = await until(() => create().catch(() => null), 'a channel is made again');
  // A gateway that is not yet with the new broker lets nobody in.
  const attachedAtLast = (reference) => until(async () => [await attached(urlOf(reference))].find(({ outcome }) => outcome === 'open'), 'the end is open');
  const [out, into] = [await attachedAtLast(made.writer), await attachedAtLast(made.reader)];
  out.socket.send('again');
  await until(() => into.received.length === 1, 'the message');
  // Both ends may be on one gateway, and what comes next may reach the other.
  await until(() => weir.attachments() >= before + weir.gatewayCount, 'every gateway is with the new broker');
});

test("the SDK's channel writer and reader work unchanged", async () => {
  const channel = await createChannel(worker);
  const chunks = [];
  channel.reader.stream.on('data', (chunk) => chunks.push(Buffer.from(chunk)));
  let isEnded = false;
  channel.reader.stream.on('end', () => (isEnded = true));
  channel.writer.stream.write(Buffer.alloc(300000, 7));
  channel.writer.stream.end(Buffer.from('last'));
  await until(() => isEnded, 'the end of the channel');
  const all = Buffer.concat(chunks);
  assert.equal(all.length, 300004);
  assert.equal(all.subarray(300000).toString(), 'last');
});

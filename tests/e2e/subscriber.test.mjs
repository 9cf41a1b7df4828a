// subscriber.test.mjs -- the stream port: plain WebSocket clients, /stream/{s}/{g}, and the unchanged
// @motiadev/stream-client-node.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Stream } from '@motiadev/stream-client-node';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { RawSocket } from './lib/frames.mjs';
import { Weir, until } from './lib/weir.mjs';

let weir;
let writer;

before(async () => {
  weir = await Weir.start();
  writer = await RawWorker.open(weir.workerUrl);
});

after(async () => {
  await writer?.close();
  await weir?.stop();
});

const open = () => Subscriber.open(weir.streamUrl);
const openBoth = async (count = 1) => [...(await weir.openOnEach(open, count)).values()].flat();
const closeAll = (clients) => Promise.all(clients.map((client) => client.close()));

// covers: B#10, 3.1#1, 3.1#2, 3.1#4, 3.1#6
test('an envelope has exactly the documented keys, on both gateways the same bytes', async () => {
  const both = await openBoth();
  for (const subscriber of both) await subscriber.joined('keys', 'g');
  await writer.set('keys', 'g', 'i', { id: 'i', text: 'hé' });
  await writer.call('stream::send', { stream_name: 'keys', group_id: 'g', type: 'typing', data: { u: 1 } });
  await writer.call('stream::delete', { stream_name: 'keys', group_id: 'g', item_id: 'i' });
  for (const subscriber of both) await subscriber.count(4);
  const [first, second] = both;
  assert.deepEqual(first.texts.slice(1), second.texts.slice(1));
  for (const envelope of first.envelopes) {
    const known = Object.keys(envelope).filter((key) => key !== 'reason').sort();
    assert.deepEqual(known, ['epoch', 'event', 'groupId', 'id', 'seq', 'streamName', 'timestamp', 'type']);
    assert.equal(envelope.type, 'stream');
    assert.ok(Number.isInteger(envelope.timestamp) && Math.abs(envelope.timestamp - Date.now()) < 60000);
  }
  assert.deepEqual(first.envelopes.map(({ id, event }) => ({ id, event })), [
    { id: null, event: { type: 'sync', data: [] } },
    { id: 'i', event: { type: 'create', data: { id: 'i', text: 'hé' } } },
    { id: null, event: { type: 'event', event: { type: 'typing', data: { u: 1 } } } },
    { id: 'i', event: { type: 'delete', data: { id: 'i', text: 'hé' } } },
  ]);
  const { seq } = first.envelopes[0];
  assert.deepEqual(first.envelopes.map((envelope) => envelope.seq), [seq, seq + 1, seq + 2, seq + 3]);
  await closeAll(both);
});

// covers: 1.2#4, 1.2#5, 3.1#1, 3.1#2, 3.1#4, 3.1#5
test('create, update and delete follow what was there, null values and repeats included', async () => {
  const [subscriber] = await openBoth();
  await subscriber.joined('kinds', 'g');
  await writer.set('kinds', 'g', 'i', null);
  await writer.set('kinds', 'g', 'i', null);
  await writer.set('kinds', 'g', 'i', 1);
  await writer.call('stream::delete', { stream_name: 'kinds', group_id: 'g', item_id: 'i' });
  await writer.call('stream::delete', { stream_name: 'kinds', group_id: 'g', item_id: 'i' });
  await writer.call('stream::set', { stream_name: 'kinds', group_id: 'g', data: 1 });
  await writer.set('kinds', 'g', 'j', 2);
  await subscriber.count(6);
  assert.deepEqual(subscriber.envelopes.map(({ id, event }) => [event.type, id, event.data]), [
    ['sync', null, []], ['create', 'i', null], ['update', 'i', null], ['update', 'i', 1], ['delete', 'i', 1], ['create', 'j', 2],
  ]);
  await subscriber.close();
});

// covers: A.2
test('sync holds the group as list has it', async () => {
  for (const id of ['b', 'a', 'c']) await writer.set('sync', 'g', id, { id });
  await writer.set('sync', 'g', 'a', { id: 'a', again: true });
  for (const subscriber of await openBoth()) {
    const sync = await subscriber.joined('sync', 'g');
    assert.deepEqual(sync.event.data, [{ id: 'b' }, { id: 'a', again: true }, { id: 'c' }]);
    assert.equal(sync.id, null);
    await subscriber.close();
  }
});

test('a sync is stamped after what it includes and before what follows', async () => {
  const [subscriber] = await openBoth();
  await subscriber.joined('stamp', 'g');
  for (let n = 0; n < 50; n += 1) {
    await writer.set('stamp', 'g', 'i', n);
    await subscriber.joined('stamp', 'g', { subscriptionId: `s${n}`, id: n % 2 ? 'i' : undefined });
  }
  const stamps = subscriber.envelopes.map(({ timestamp }) => timestamp);
  stamps.forEach((stamp, index) => index > 0 && assert.ok(stamp > stamps[index - 1], `envelope ${index} of ${stamps.slice(0, index + 1)}`));
  await subscriber.close();
});

// covers: 1.2#2
test('an item subscription syncs its value, sees that item only, and no send without id', async () => {
  const [subscriber] = await openBoth();
  assert.deepEqual((await subscriber.joined('item', 'g', { id: 'i' })).event, { type: 'sync', data: null });
  assert.equal(subscriber.envelopes[0].id, 'i');
  await writer.set('item', 'g', 'j', 1);
  await writer.set('item', 'g', 'i', 2);
  await writer.call('stream::send', { stream_name: 'item', group_id: 'g', type: 't', data: 3 });
  await writer.call('stream::send', { stream_name: 'item', group_id: 'g', id: 'i', type: 't', data: 4 });
  await subscriber.count(3);
  await subscriber.ping();
  assert.deepEqual(subscriber.envelopes.map(({ event }) => event), [
    { type: 'sync', data: null }, { type: 'create', data: 2 }, { type: 'event', event: { type: 't', data: 4 } },
  ]);
  assert.equal((await subscriber.joined('item', 'g', { id: 'i', subscriptionId: 's2' })).event.data, 2);
  await subscriber.close();
});

// covers: A.2, B#10
test('leave ends delivery, and only of that subscription', async () => {
  const [subscriber] = await openBoth();
  await subscriber.joined('leave', 'g', { subscriptionId: 'one' });
  await subscriber.joined('leave', 'h', { subscriptionId: 'two' });
  subscriber.leave('leave', 'g', 'one');
  subscriber.leave('leave', 'g', 'unknown');
  await subscriber.ping();
  await writer.set('leave', 'g', 'i', 1);
  await writer.set('leave', 'h', 'i', 2);
  await subscriber.count(3);
  await subscriber.ping();
  assert.deepEqual(subscriber.events.map(({ groupId }) => groupId), ['h']);
  await subscriber.close();
});

test('joining with a used subscription id replaces that subscription', async () => {
  const [subscriber] = await openBoth();
  await subscriber.joined('replace', 'g');
  await subscriber.joined('replace', 'h');
  await writer.set('replace', 'g', 'i', 1);
  await writer.set('replace', 'h', 'i', 2);
  await subscriber.count(3);
  await subscriber.ping();
  assert.deepEqual(subscriber.events.map(({ groupId }) => groupId), ['h']);
  await subscriber.close();
});

test('one copy per socket, although group and item subscriptions both match', async () => {
  const both = await openBoth();
  for (const subscriber of both) {
    await subscriber.joined('copies', 'g', { subscriptionId: 'group' });
    await subscriber.joined('copies', 'g', { subscriptionId: 'item', id: 'i' });
    await subscriber.joined('copies', 'g', { subscriptionId: 'again' });
  }
  await writer.set('copies', 'g', 'i', 1);
  await writer.set('copies', 'g', 'j', 2);
  for (const subscriber of both) {
    await subscriber.count(5);
    await subscriber.ping();
    assert.deepEqual(subscriber.events.map(({ id }) => id), ['i', 'j']);
    subscriber.leave('copies', 'g', 'group');
    subscriber.leave('copies', 'g', 'again');
    await subscriber.ping();
  }
  await writer.set('copies', 'g', 'j', 3);
  await writer.set('copies', 'g', 'i', 4);
  for (const subscriber of both) {
    await subscriber.count(6);
    await subscriber.ping();
    assert.deepEqual(subscriber.events.slice(2).map(({ id, event }) => [id, event.data]), [['i', 4]]);
  }
  await closeAll(both);
});

test('a second subscription of the same group gets its own sync and leaves no gap in the first', async () => {
  const [subscriber] = await openBoth();
  await subscriber.joined('second', 'g', { subscriptionId: 'one' });
  const answers = [];
  for (let n = 0; n < 200; n += 1) {
    answers.push(writer.set('second', 'g', `i${n}`, n));
    if (n === 50 || n === 120) subscriber.join('second', 'g', { subscriptionId: `at ${n}` });
  }
  await subscriber.waitFor(() => subscriber.events.length === 200 && subscriber.syncs.length === 3, 'all events and syncs');
  for (const { error } of await Promise.all(answers)) assert.equal(error, undefined);
  const seqs = subscriber.events.map(({ seq }) => seq);
  assert.deepEqual(seqs, seqs.map((_, index) => seqs[0] + index));
  let seen = [];
  let last;
  for (const { event, seq } of subscriber.envelopes) {
    if (event.type === 'sync' && last !== undefined) {
      assert.equal(seq, last, 'the sync stands at its place in the order');
      assert.deepEqual(event.data, seen);
    } else if (event.type !== 'sync') seen.push(event.data);
    last = seq;
  }
  await subscriber.close();
});

test('a join in a binary frame is accepted, bad messages are ignored', async () => {
  const [subscriber] = await openBoth();
  for (const bad of ['', '  \n', '{', '[]', '5', 'null', '{"type":"nope"}', '{"type":"join"}', '{"type":"join","data":{"streamName":"b"}}',
    '{"type":"join","data":{"streamName":"b","groupId":7,"subscriptionId":"x"}}', '{"type":"JOIN","data":{"streamName":"b","groupId":"g","subscriptionId":"x"}}',
    '{"type":"join","data":{"streamName":"b","groupId":"g","subscriptionId":"x","id":5}}', '{"type":"leave"}']) subscriber.send(bad);
  await subscriber.ping();
  assert.deepEqual(subscriber.texts, []);
  subscriber.send(Buffer.from(JSON.stringify({ type: 'join', data: { subscriptionId: 'b', streamName: 'binary', groupId: 'g', id: null, extra: [] } })));
  await subscriber.count(1);
  assert.equal(subscriber.envelopes[0].event.type, 'sync');
  await subscriber.close();
});

// covers: 0#5
test('/stream/{s}/{g} subscribes by path, with and without slash, percent-decoded, and takes further joins', async () => {
  const names = [['path', 'g'], ['pa th/:%', 'g/é:😀'], ['nul\u0000name', '\u0000'], ['+', 'a+b']];
  for (const [stream, group] of names) {
    const path = `/stream/${encodeURIComponent(stream)}/${encodeURIComponent(group)}`;
    for (const suffix of ['', '/', '?x=1']) {
      const subscriber = await Subscriber.open(weir.streamUrl + path + suffix);
      await subscriber.count(1);
      assert.deepEqual([subscriber.envelopes[0].streamName, subscriber.envelopes[0].groupId], [stream, group]);
      assert.equal(subscriber.envelopes[0].event.type, 'sync');
      await writer.set(stream, group, 'i', suffix);
      await subscriber.count(2);
      assert.equal(subscriber.envelopes[1].event.data, suffix);
      await subscriber.joined('path', 'other');
      await subscriber.close();
    }
  }
  for (const path of ['/stream/only', '/stream/a/b/c', '/nope', '/stream/%zz/g', '/stream/%ff/g']) {
    await assert.rejects(RawSocket.open(weir.streamPort, path), /HTTP\/1\.1 (404|400) /, path);
  }
  for (const path of ['/stream', '/stream/']) (await RawSocket.open(weir.streamPort, path)).destroy();
});

test('names are any string: colons, slashes, percent, NUL, control characters, four-byte UTF-8, empty', async () => {
  const names = ['', ':', '/', '%', '%2F', '\u0000', 'a\u0000b', '\u001f\n\t"\\', '😀', 'é', 'e\u0301', ' ', 'x'.repeat(4096), '\u2028', '__proto__'];
  const both = await openBoth();
  let wanted = 0;
  for (const name of names) {
    for (const [stream, group, item] of [[name, 'g', 'i'], ['names', name, 'i'], ['names', 'g', name]]) {
      for (const subscriber of both) await subscriber.joined(stream, group, { subscriptionId: `s${wanted}` });
      await writer.set(stream, group, item, { name });
      assert.deepEqual((await writer.call('stream::get', { stream_name: stream, group_id: group, item_id: item })).result, { name });
      wanted += 1;
      for (const subscriber of both) {
        await subscriber.waitFor(() => subscriber.events.length === wanted, `event ${JSON.stringify([stream, group, item])}`);
        const envelope = subscriber.events[wanted - 1];
        assert.deepEqual([envelope.streamName, envelope.groupId, envelope.id, envelope.event.data], [stream, group, item, { name }]);
      }
    }
  }
  assert.equal((await writer.set('x'.repeat(4097), 'g', 'i', 1)).error?.code, 'deserialization_error', 'longer names are refused');
  await closeAll(both);
});

test('the page port answers plain HTTP: page, health, 404, and no path outside', async () => {
  const base = `http://127.0.0.1:${weir.streamPort}`;
  const page = await fetch(base);
  assert.equal(page.status, 200);
  assert.match(page.headers.get('content-type'), /^text\/html/);
  assert.match(page.headers.get('content-security-policy'), /default-src 'self'/);
  assert.match(await page.text(), /<title>weir<\/title>/);
  assert.equal((await fetch(`${base}/healthz`)).status, 200);
  for (const path of ['/nope', '/..%2f..%2fetc/passwd', '/app.js/']) assert.equal((await fetch(base + path)).status, 404, path);
  assert.equal((await fetch(base, { method: 'HEAD' })).status, 200);
});

test('the subprotocol Authorization is answered, the token never', async () => {
  const subscriber = await Subscriber.open(weir.streamUrl, { protocols: ['Authorization', 'token'] });
  assert.equal(subscriber.socket.protocol, 'Authorization');
  await subscriber.close();
  const raw = await RawSocket.open(weir.streamPort, '/', { headers: { 'Sec-WebSocket-Protocol': 'other' } });
  assert.doesNotMatch(raw.head, /sec-websocket-protocol/i);
  assert.doesNotMatch(raw.head, /sec-websocket-extensions/i);
  raw.destroy();
});

test('a subprotocol of the configured list is answered, any other is not', async () => {
  const own = await Weir.start({ gateways: 1, settings: { subprotocols: 'chat.v1 , chat.v2' } });
  try {
    for (const [offered, answered] of [
      [['other', 'chat.v2', 'chat.v1'], 'chat.v2'],
      [['chat.v1', 'Authorization', 'token'], 'Authorization'],
    ]) {
      const subscriber = await Subscriber.open(own.streamUrl, { protocols: offered });
      assert.equal(subscriber.socket.protocol, answered);
      await subscriber.close();
    }
    for (const offered of ['chat', 'chat.v', 'chat.v1.x', ' , ,']) {
      const raw = await RawSocket.open(own.streamPort, '/', { headers: { 'Sec-WebSocket-Protocol': offered } });
      assert.doesNotMatch(raw.head, /sec-websocket-protocol/i);
      raw.destroy();
    }
  } finally {
    await own.stop();
  }
});

test('@motiadev/stream-client-node sees group, item and custom events at once, on whichever gateway', async () => {
  await writer.set('motia', 'g', 'a', { id: 'a', n: 0 });
  const clients = [];
  const open2 = async () => {
    const stream = new Stream(weir.streamUrl);
    await until(() => stream.ws.isOpen(), 'the library connects');
    // close() of the library reconnects after two seconds; a test must be able to end it.
    const close = () => {
      stream.onSocketClose = () => {};
      stream.close();
    };
    return { stream, localPort: stream.ws.ws._socket.localPort, remotePort: stream.ws.ws._socket.remotePort, close };
  };
  for (const [client] of (await weir.openOnEach(open2)).values()) clients.push(client);
  const views = clients.map(({ stream }) => {
    const group = stream.subscribeGroup('motia', 'g');
    const item = stream.subscribeItem('motia', 'g', 'b');
    const typed = [];
    group.onEvent('typing', (data) => typed.push(data));
    return { group, item, typed };
  });
  for (const { group } of views) await until(() => group.getState().length === 1, 'the sync');
  // Many changes of one item within one millisecond: the library drops what is not strictly newer.
  await Promise.all(Array.from({ length: 300 }, (_, n) => writer.set('motia', 'g', 'b', { id: 'b', n })));
  await writer.call('stream::send', { stream_name: 'motia', group_id: 'g', type: 'typing', data: { who: 1 } });
  for (const { group, item, typed } of views) {
    await until(() => typed.length === 1, 'the custom event');
    assert.deepEqual(typed, [{ who: 1 }]);
    assert.deepEqual(group.getState(), [{ id: 'a', n: 0 }, { id: 'b', n: 299 }]);
    await until(() => item.getState()?.n === 299, 'the item, which has a join of its own');
    assert.deepEqual(item.getState(), { id: 'b', n: 299 });
  }
  await writer.call('stream::delete', { stream_name: 'motia', group_id: 'g', item_id: 'b' });
  for (const { group, item } of views) await until(() => item.getState() === null && group.getState().length === 1, 'the delete');
  views[0].group.close();
  await writer.set('motia', 'g', 'c', { id: 'c' });
  await until(() => views[1].group.getState().length === 2, 'the other library still listens');
  for (const client of clients) client.close();
});

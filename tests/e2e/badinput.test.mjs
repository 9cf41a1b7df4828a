// badinput.test.mjs -- what no library sends: the server answers as the protocol says, closes where RFC 6455 wants it, and goes on
// serving everybody else. Run it on sanitized binaries as well.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { BINARY, CLOSE, PING, PONG, RawSocket, TEXT, frame, handshake } from './lib/frames.mjs';
import { Weir, delay, seededRandom, until, withWeir } from './lib/weir.mjs';

let weir;
let ports;
before(async () => {
  weir = await Weir.start();
  weir.started = processesOf(weir);
  ports = [weir.streamPort, weir.workerPort];
});
after(() => weir?.stop());

const processesOf = (server) => ({ gateways: server.gateways(), broker: server.broker() });

// The server still serves: a write reaches a subscriber, by the same processes as at the start.
async function assertServing(server = weir) {
  const worker = await RawWorker.open(server.workerUrl);
  const subscriber = await Subscriber.open(server.streamUrl);
  await subscriber.joined('alive', 'g');
  assert.equal((await worker.set('alive', 'g', 'i', 1)).error, undefined);
  await subscriber.count(2);
  await Promise.all([worker.close(), subscriber.close()]);
  assert.deepEqual(processesOf(server), server.started, 'no process was replaced');
}

const invoke = (id, data) => `{"type":"invokefunction","invocation_id":"${id}","function_id":"stream::set","data":${data}}`;
const setOf = (value, item = 'i') => `{"stream_name":"bad","group_id":"g","item_id":"${item}","data":${value}}`;

// The answer to `text`, or undefined: what is answered at all is answered before the pong of a later ping.
async function answerOrNothing(worker, id, text) {
  let answer;
  worker.callText(id, text).then(({ message }) => (answer = message), () => {});
  await worker.ping();
  return answer;
}

test('undecodable worker messages are dropped, the connection stays', async () => {
  const worker = await RawWorker.open(weir.workerUrl);
  const messages = ['', ' ', '{', '}', '[]', 'null', '"text"', '5', '{}', '{"type":5}', '{"type":"nope"}', '{"type":"Ping"}', '{"type":"ping","type":"ping"}',
    '{"type":"invokefunction"}', '{"type":"registerfunction"}', '{"type":"registerfunction","id":7}', '{"type":"registertrigger","id":"x"}',
    '{"type":"workerregistered","worker_id":"x"}', '{"type":"registrationrejected"}', '{"type":"invocationresult"}',
    '{"type":"invocationresult","invocation_id":"unknown","function_id":"f","result":1}', '{"type":"unregisterfunction","id":"nobody"}', '{"type":"reattach","previous_worker_id":"x"}',
    '{"type":"reattach"}', '{"type":"pong"}', '\u0000', '{"type":"ping"} trailing', "{'type':'ping'}", '{"type":"ping",}', '\ufeff{"type":"ping"}', '{"type":"registerservice","id":"s"}'];
  for (const message of messages) worker.send(message);
  worker.send(Buffer.from('OTLP{"resourceSpans":[]}'));
  worker.send(Buffer.from('MTRC\xff\xfe', 'latin1'));
  await worker.ping();
  assert.equal((await worker.set('bad', 'g', 'after', 1)).error, undefined);
  assert.deepEqual(worker.texts.filter((text) => !text.includes('workerregistered')), [], 'nothing is answered');
  await worker.close();
  await assertServing();
});

test('a bad call with a usable invocation_id is answered invalid_message', async () => {
  const worker = await RawWorker.open(weir.workerUrl);
  const bad = {
    'no-function': '{"type":"invokefunction","invocation_id":"no-function","data":{}}',
    'function-number': '{"type":"invokefunction","invocation_id":"function-number","function_id":5,"data":{}}',
    'twice': '{"type":"invokefunction","invocation_id":"twice","function_id":"stream::list_all","function_id":"stream::list_all","data":{}}',
    'action': '{"type":"invokefunction","invocation_id":"action","function_id":"stream::list_all","data":{},"action":{"type":"later"}}',
    'overflow': invoke('overflow', setOf('1e400')),
    'surrogate': invoke('surrogate', setOf('"\\ud800"')),
    'surrogate-low': invoke('surrogate-low', setOf('"\\udc00\\ud800"')),
    'control': invoke('control', setOf('"\u0001"')),
    'leading-zero': invoke('leading-zero', setOf('01')),
    'nan': invoke('nan', setOf('NaN')),
  };
  const wrong = [];
  for (const [id, text] of Object.entries(bad)) {
    const answer = await answerOrNothing(worker, id, text);
    if (answer?.error?.code !== 'invalid_message' || typeof answer.error.message !== 'string') wrong.push({ text, answer });
  }
  assert.deepEqual(wrong, []);
  assert.deepEqual((await worker.call('stream::list', { stream_name: 'bad', group_id: 'g' })).result.filter((value) => value !== 1), []);
  await worker.close();
});

test('nesting: 126 levels of data pass, deeper than the limit is refused with an answer', async () => {
  const worker = await RawWorker.open(weir.workerUrl);
  const subscriber = await Subscriber.open(weir.streamUrl);
  await subscriber.joined('bad', 'deep');
  // data of the call: the object of set's input is one level, the value holds the others.
  const nested = (levels) => '['.repeat(levels - 1) + ']'.repeat(levels - 1);
  const textOf = (levels, id) => invoke(id, `{"stream_name":"bad","group_id":"deep","item_id":"${id}","data":${nested(levels)}}`);
  const call = (levels, id) => worker.callText(id, textOf(levels, id));
  assert.equal((await call(126, 'deep-126')).message.error, undefined);
  await subscriber.count(2);
  assert.equal(JSON.stringify(subscriber.envelopes[1].event.data), nested(126));
  for (const levels of [128, 129, 1000]) assert.equal((await call(levels, `deep-${levels}`)).message.error?.code, 'invalid_message', `${levels} levels`);
  for (const levels of [5000, 100000, 3000000]) {
    // So deep that the call's id need not be looked for: dropped, or refused, and the connection stays.
    const answer = await answerOrNothing(worker, `deep-${levels}`, textOf(levels, `deep-${levels}`));
    if (answer !== undefined) assert.equal(answer.error?.code, 'invalid_message');
  }
  const { message } = await call(127, 'deep-127');
  if (message.error === undefined) {
    await subscriber.count(3);
    assert.equal(JSON.stringify(subscriber.envelopes[2].event.data), nested(127));
  } else assert.equal(message.error.code, 'invalid_message');
  await subscriber.ping();
  subscriber.send(`{"type":"join","data":${'['.repeat(200000)}`);
  await subscriber.ping();
  await Promise.all([worker.close(), subscriber.close()]);
});

test('duplicate keys inside a value: the last one wins for every reader', async () => {
  const worker = await RawWorker.open(weir.workerUrl);
  const { message } = await worker.callText('dup', invoke('dup', setOf('{"a":1,"a":2}', 'dup')));
  assert.deepEqual(message.result, { old_value: null, new_value: { a: 2 } });
  assert.deepEqual((await worker.call('stream::get', { stream_name: 'bad', group_id: 'g', item_id: 'dup' })).result, { a: 2 });
  await worker.close();
});

test('invalid UTF-8 in a text frame ends that connection only', async () => {
  for (const port of ports) {
    const raw = await RawSocket.open(port, '/');
    raw.write(frame(Buffer.from([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x7d])));
    raw.write(frame('probe', { opcode: PING }));
    await until(() => raw.isClosed || raw.closeCode !== undefined || raw.frames.some(({ opcode }) => opcode === PONG), 'closed or ignored');
    if (raw.closeCode !== undefined) assert.equal(raw.closeCode, 1007);
    raw.destroy();
  }
  await assertServing();
});

test('frames that break RFC 6455 fail the connection', async () => {
  const breaks = {
    'an unmasked frame': frame('{"type":"ping"}', { masked: false }),
    'reserved bits': frame('{"type":"ping"}', { reserved: 4 }),
    'an unknown opcode': frame('x', { opcode: 3 }),
    'an unknown control opcode': frame('x', { opcode: 11 }),
    'a long control frame': frame('p'.repeat(126), { opcode: PING }),
    'a fragmented control frame': frame('p', { opcode: PING, fin: false }),
    'a continuation of nothing': frame('x', { opcode: 0 }),
    'a new message within a message': Buffer.concat([frame('a', { fin: false }), frame('b')]),
    'a length with the top bit set': Buffer.from([0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
  };
  for (const port of ports) {
    for (const [name, bytes] of Object.entries(breaks)) {
      const raw = await RawSocket.open(port, '/');
      raw.write(bytes);
      await raw.ended(`the connection ends after ${name} on port ${port === weir.streamPort ? 'stream' : 'worker'}`);
      raw.destroy();
    }
  }
  await assertServing();
});

test('fragments make one message, control frames may stand between them', async () => {
  const raw = await RawSocket.open(weir.workerPort, '/');
  const text = invoke('pieces', setOf('"pieces"', 'pieces'));
  raw.write(frame(text.slice(0, 10), { fin: false }));
  raw.write(frame('between', { opcode: PING }));
  raw.write(frame(text.slice(10, 11), { opcode: 0, fin: false }));
  raw.write(frame('', { opcode: 0, fin: false }));
  raw.write(frame(text.slice(11), { opcode: 0 }));
  await until(() => raw.texts.some((answer) => answer.includes('"pieces"') && answer.includes('invocationresult')), 'the answer');
  assert.equal(raw.frames.find(({ opcode }) => opcode === PONG).payload.toString(), 'between');
  raw.write(frame(Buffer.from(invoke('binary', setOf('2', 'binary'))), { opcode: BINARY }));
  await until(() => raw.texts.some((answer) => answer.includes('"invocation_id":"binary"')), 'a binary frame is as good');
  for (const byte of frame(invoke('bytes', setOf('3', 'bytes')))) {
    raw.write(Buffer.from([byte]));
    if (Math.random() < 0.05) await delay(0);
  }
  await until(() => raw.texts.some((answer) => answer.includes('"invocation_id":"bytes"')), 'byte by byte');
  raw.destroy();
});

test('a close frame is answered with its code', async () => {
  for (const port of ports) {
    const raw = await RawSocket.open(port, '/');
    raw.write(frame(Buffer.from([0x03, 0xe8]), { opcode: CLOSE }));
    await raw.ended();
    assert.equal(raw.closeCode, 1000);
    const empty = await RawSocket.open(port, '/');
    empty.write(frame('', { opcode: CLOSE }));
    await empty.ended();
  }
});

test('a frame of more than 16 MiB and a message of more than 64 MiB end the connection', async () => {
  const block = Buffer.alloc(1 << 20, 0x20);
  for (const port of ports) {
    const large = await RawSocket.open(port, '/');
    const over = 16 * 1024 * 1024 + 1;
    large.write(frame('', { declared: over, key: Buffer.alloc(4) }));
    for (let sent = 0; sent < over && !large.isClosed; sent += block.length) {
      large.write(block);
      await delay(0);
    }
    await large.ended('the connection ends after an oversize frame');
    if (large.closeCode !== undefined) assert.equal(large.closeCode, 1009);
    large.destroy();

    const long = await RawSocket.open(port, '/');
    const piece = Buffer.alloc(8 << 20, 0x20);
    for (let n = 0; n < 10 && !long.isClosed; n += 1) {
      long.write(frame(piece, { opcode: n === 0 ? TEXT : 0, fin: false }));
      await until(() => long.isClosed || long.socket.writableLength === 0, 'the piece is written');
    }
    await long.ended('the connection ends after an oversize message');
    if (long.closeCode !== undefined) assert.equal(long.closeCode, 1009);
    long.destroy();
  }
  await assertServing();
});

// For those who do not get on with their handshake; long enough for those who only stand still for a moment.
async function withHasty(use) {
  await withWeir({ settings: { handshake_timeout_ms: 10000 } }, async (hasty) => {
    hasty.started = processesOf(hasty);
    await use(hasty, [hasty.streamPort, hasty.workerPort]);
    await assertServing(hasty);
  });
}

test('half-open handshakes are closed after handshake_timeout_ms, others are not disturbed', async () => {
  await withHasty(async (hasty, hastyPorts) => {
    const held = [];
    for (const port of hastyPorts) {
      const whole = handshake('/');
      for (const part of ['', 'G', 'GET / HTTP/1.1\r\n', whole.slice(0, whole.length - 2)]) {
        const raw = await RawSocket.connect(port);
        raw.write(part);
        held.push(raw);
      }
    }
    const patient = await Subscriber.open(hasty.streamUrl);
    for (const raw of held) await raw.ended('a half-open handshake is closed');
    await patient.ping();
    await patient.close();
  });
});

test('handshakes that are none: refused without an upgrade', async () => {
  const requests = [
    'GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 12\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n',
    'GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n',
    'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello',
    'BREW / HTTP/1.1\r\nHost: x\r\n\r\n',
    `GET /${'x'.repeat(100000)} HTTP/1.1\r\nHost: x\r\n\r\n`,
    `GET / HTTP/1.1\r\nHost: x\r\nX-Long: ${'y'.repeat(200000)}\r\n\r\n`,
    `GET / HTTP/1.1\r\n${'A: b\r\n'.repeat(5000)}\r\n`,
    'GET /stream/%00 HTTP/1.1\r\n\r\n', '\r\n\r\n\r\n', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', '\u0016\u0003\u0001\u0002\u0000\u0001\u0000\u0001\u00fc\u0003\u0003',
  ];
  await withHasty((hasty, hastyPorts) => Promise.all(hastyPorts.flatMap((port) => requests.map(async (request) => {
    const raw = await RawSocket.connect(port);
    raw.write(Buffer.from(request, 'latin1'));
    await raw.ended(`an end to ${JSON.stringify(request.slice(0, 60))}`);
    assert.doesNotMatch(raw.head ?? '', / 101 /);
    raw.destroy();
  }))));
});

test('random bytes, before and after the handshake, hurt nobody', async () => {
  const random = seededRandom('garbage');
  const bytes = (count) => Buffer.from(Array.from({ length: count }, () => random.below(256)));
  for (const port of ports) {
    for (let round = 0; round < 40; round += 1) {
      const raw = round % 2 === 0 ? await RawSocket.connect(port) : await RawSocket.open(port, '/');
      raw.write(bytes(1 + random.below(5000)));
      if (round % 3 === 0) await delay(1);
      raw.destroy();
    }
    // Valid frames with damaged JSON: one byte of a good message changed.
    const raw = await RawSocket.open(port, '/');
    const good = port === weir.workerPort ? invoke('fuzz', setOf('{"a":[1,2.5e3,"\\u00e9",null]}', 'fuzz'))
      : '{"type":"join","data":{"subscriptionId":"s","streamName":"bad","groupId":"g","id":null}}';
    for (let round = 0; round < 1500; round += 1) {
      const damaged = Buffer.from(good);
      for (let hits = 1 + random.below(3); hits > 0; hits -= 1) damaged[random.below(damaged.length)] = 32 + random.below(95);
      raw.write(frame(damaged.subarray(0, round % 5 === 0 ? random.below(damaged.length) : damaged.length)));
    }
    raw.write(frame('end', { opcode: PING }));
    await until(() => raw.frames.some(({ opcode }) => opcode === PONG), 'the pong after damaged messages');
    raw.destroy();
  }
  await assertServing();
});

test('sockets that vanish in the middle of things leave nothing behind', async () => {
  const worker = await RawWorker.open(weir.workerUrl);
  for (let round = 0; round < 60; round += 1) {
    const raw = await RawSocket.open(weir.streamPort, round % 2 ? '/stream/bad/gone' : '/');
    raw.send({ type: 'join', data: { subscriptionId: 's', streamName: 'bad', groupId: 'gone' } });
    const caller = await RawSocket.open(weir.workerPort, '/');
    caller.send({ type: 'registerfunction', id: `gone::${round}` });
    // What a reset overtakes is never read: every second one is known before.
    caller.write(frame('registered', { opcode: PING }));
    if (round % 2 === 0) await until(() => caller.frames.some(({ opcode }) => opcode === PONG), 'the pong behind the registration');
    caller.write(invoke(`g${round}`, setOf('"cut')).slice(0, 30));
    void worker.set('bad', 'gone', `i${round}`, 'x'.repeat(round * 100));
    if (round % 3 === 0) raw.reset();
    else raw.destroy();
    caller.reset();
  }
  await until(async () => {
    const { result } = await worker.call('engine::functions::list', { prefix: 'gone::' });
    return result.functions.length === 0;
  }, 'functions of gone workers are removed');
  await worker.close();
  await assertServing();
});

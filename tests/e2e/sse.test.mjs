// sse.test.mjs -- GET /sse/{stream}/{group}: the same events as a WebSocket gets, with the position as `id`; who may have them is
// decided before the answer's head.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { chromium } from 'playwright-core';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { counted } from './lib/follower.mjs';
import { openSdkWorker, codeOf } from './lib/sdk.mjs';
import { EventStream } from './lib/sse.mjs';
import { temporaryDirectory, until, withWeir } from './lib/weir.mjs';

const set = (worker, item, data, group = 'g') =>
  worker.result('stream::set', { stream_name: 's', group_id: group, item_id: item, data });

// A worker of iii-sdk with `handlers`, once calls reach it.
async function workerWith(weir, handlers) {
  const worker = await openSdkWorker(weir.workerUrl);
  for (const [id, handler] of Object.entries(handlers)) worker.registerFunction(id, handler);
  worker.registerFunction('app::up', async () => true);
  await until(async () => (await codeOf(worker.trigger({ function_id: 'app::up', payload: {} }))) === undefined, 'the worker is there');
  return worker;
}

// covers: 6.10#5
test('the head, a retry hint, the sync, and then every event as the WebSocket gets it, each with its position', async () => {
  await withWeir({}, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    await set(worker, 'm1', { id: 'm1', text: 'line\nbreak \u2028' });
    const stream = later(await EventStream.open(weir.streamPort, '/sse/s/g'));
    const socket = later(await Subscriber.open(weir.streamUrl));
    assert.equal(stream.status, 200);
    assert.equal(stream.header('content-type'), 'text/event-stream');
    assert.equal(stream.header('cache-control'), 'no-cache, no-transform');
    assert.equal(stream.header('connection'), 'close');
    assert.equal(stream.header('content-length'), undefined);
    assert.equal(stream.header('access-control-allow-origin'), undefined);
    await stream.count(1);
    await socket.joined('s', 'g');
    assert.equal(stream.retries.length, 1);
    assert.ok(stream.retries[0] >= 500 && stream.retries[0] <= 60000, `${stream.retries}`);
    for (let i = 0; i < 50; i += 1) await set(worker, `m${i % 7}`, { i });
    await worker.result('stream::delete', { stream_name: 's', group_id: 'g', item_id: 'm1' });
    await worker.result('stream::send', { stream_name: 's', group_id: 'g', type: 'note', data: 'x'.repeat(70000) });
    await socket.count(53);
    assert.deepEqual((await stream.count(53)).slice(1), socket.envelopes.slice(1));
    assert.deepEqual(stream.envelopes[0].event, socket.envelopes[0].event);
    stream.dispatched.forEach(({ id, data }) => {
      const { epoch, seq } = JSON.parse(data);
      assert.equal(id, `${epoch}-${seq}`);
    });
    await counted(weir, 'event_streams', 1);
    await stream.close();
    await counted(weir, 'event_streams', 0); // the gauge goes back
  });
});

test('an item, and names that are percent-encoded', async () => {
  await withWeir({}, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    const put = (item, data) => worker.result('stream::set', { stream_name: 'a/b', group_id: 'g h', item_id: item, data });
    await put('i/1', 1);
    const stream = later(await EventStream.open(weir.streamPort, '/sse/a%2Fb/g%20h/?id=i%2F1&unknown=1'));
    assert.deepEqual((await stream.count(1))[0].event, { type: 'sync', data: 1 });
    await put('other', 2);
    await put('i/1', 3);
    await stream.count(2);
    assert.deepEqual(stream.envelopes[1].event, { type: 'update', data: 3 });
    assert.equal(stream.envelopes[1].id, 'i/1');
  });
});

test('Last-Event-ID goes on where the last event was, and wins over the query', async () => {
  await withWeir({}, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    for (let i = 0; i < 5; i += 1) await set(worker, 'm', i);
    const first = await EventStream.open(weir.streamPort, '/sse/s/g');
    await first.count(1);
    await set(worker, 'm', 5);
    await first.count(2);
    const id = first.lastId;
    const [epoch, seq] = id.split('-').map(Number);
    await first.close();
    for (let i = 6; i < 9; i += 1) await set(worker, 'm', i);
    for (const [target, headers, since] of [
      ['/sse/s/g', { 'Last-Event-ID': id }, seq],
      [`/sse/s/g?epoch=${epoch}&since=${seq + 2}`, { 'last-event-id': id }, seq],
      [`/sse/s/g?epoch=${epoch}&since=${seq + 2}`, {}, seq + 2],
      [`/sse/s/g?epoch=${epoch}&since=${seq + 3}&mode=lossless`, { 'Last-Event-ID': '' }, seq + 3],
    ]) {
      const stream = later(await EventStream.open(weir.streamPort, target, { headers }));
      const envelopes = await stream.count(1 + (seq + 3 - since));
      assert.deepEqual(envelopes[0].event, { type: 'resumed' });
      assert.deepEqual([envelopes[0].epoch, envelopes[0].seq], [epoch, since]);
      assert.equal(stream.dispatched[0].id, `${epoch}-${since}`);
      assert.deepEqual(envelopes.slice(1).map((envelope) => envelope.seq), Array.from({ length: seq + 3 - since }, (_, i) => since + 1 + i));
    }
    const lost = later(await EventStream.open(weir.streamPort, '/sse/s/g', { headers: { 'Last-Event-ID': `${epoch + 1}-1` } }));
    const [sync] = await lost.count(1);
    assert.deepEqual([sync.event.type, sync.reason], ['sync', 'expired']);
    await counted(weir, 'resumes', 4);
    await counted(weir, 'resumes_expired', 1);
  });
});

// covers: 6.10#1, 6.10#3
test('what cannot be served is refused with a sentence', async () => {
  await withWeir({ settings: { origins: 'https://good.example' } }, async (weir) => {
    const origin = { Origin: 'https://good.example' };
    for (const [target, status, sentence, headers = origin] of [
      ['/sse/s/g?epoch=1', 400, /epoch and since/],
      ['/sse/s/g?since=1', 400, /epoch and since/],
      ['/sse/s/g?epoch=1&since=-1', 400, /epoch and since/],
      ['/sse/s/g?epoch=1&since=18446744073709551616', 400, /epoch and since/],
      ['/sse/s/g?epoch=&since=', 400, /epoch and since/],
      ['/sse/s/g?mode=fast', 400, /mode is latest, lossless or disconnect/],
      ['/sse/s/g?mode=%zz', 400, /percent/],
      ['/sse/s/g', 400, /Last-Event-ID/, { ...origin, 'Last-Event-ID': '12' }],
      ['/sse/s', 404, /./],
      ['/sse/s/g/h', 404, /./],
      ['/sse/%ff/g', 400, /./],
      ['/sse/s/g', 403, /origin/, { Origin: 'https://bad.example' }],
      ['/sse/s/g', 403, /origin/, {}],
    ]) {
      const stream = await EventStream.open(weir.streamPort, target, { headers });
      await stream.end();
      assert.equal(stream.status, status, target);
      assert.match(stream.body, sentence);
      assert.equal(stream.header('content-length'), String(Buffer.byteLength(stream.body)));
      assert.equal(stream.header('connection'), 'close');
      await stream.close();
    }
    for (const [method, status] of [['POST', 405], ['OPTIONS', 405]]) {
      const stream = await EventStream.open(weir.streamPort, '/sse/s/g', { method, headers: { ...origin, 'Content-Length': 0 } });
      assert.equal(stream.status, status);
      await stream.close();
    }
  });
});

test('a page of an allowed origin may read it, with cookies only if it was named', async () => {
  await withWeir({ settings: { origins: 'https://a.example, https://b.example' } }, async (weir, later) => {
    const named = later(await EventStream.open(weir.streamPort, '/sse/s/g', { headers: { Origin: 'https://b.example' } }));
    assert.equal(named.header('access-control-allow-origin'), 'https://b.example');
    assert.equal(named.header('access-control-allow-credentials'), 'true');
    assert.equal(named.header('vary'), 'Origin');
  });
  await withWeir({}, async (weir, later) => {
    const any = later(await EventStream.open(weir.streamPort, '/sse/s/g', { headers: { Origin: 'https://x.example' } }));
    assert.equal(any.header('access-control-allow-origin'), 'https://x.example');
    assert.equal(any.header('access-control-allow-credentials'), undefined);
    const long = await EventStream.open(weir.streamPort, '/sse/s/g', { headers: { Origin: `https://${'x'.repeat(4000)}` } });
    assert.equal(long.status, 403);
    await long.close();
  });
});

test('HEAD is answered with the head alone, HTTP/1.0 and a pipelined rest do no harm', async () => {
  await withWeir({}, async (weir, later) => {
    const head = await EventStream.open(weir.streamPort, '/sse/s/g', { method: 'HEAD' });
    await head.end();
    assert.equal(head.status, 200);
    assert.equal(head.header('content-type'), 'text/event-stream');
    assert.equal(head.body, '');
    assert.deepEqual(head.blocks, []);
    await head.close();
    const wrong = await EventStream.open(weir.streamPort, '/sse/s/g?mode=x', { method: 'HEAD' });
    await wrong.end();
    assert.deepEqual([wrong.status, wrong.body], [400, '']);
    await wrong.close();
    await counted(weir, 'stream_connections', 0); // HEAD leaves nothing
    const old = later(await EventStream.open(weir.streamPort, '/sse/s/g', { version: '1.0' }));
    await old.count(1);
    const request = 'GET /sse/s/g HTTP/1.1\r\nHost: h\r\n\r\nGET /healthz HTTP/1.1\r\nHost: h\r\n\r\n';
    const chatty = later(await EventStream.open(weir.streamPort, '/sse/s/g', { request }));
    await chatty.count(1);
    for (let i = 0; i < 20; i += 1) chatty.socket.write('\x81\x00'.repeat(30000));
    const worker = later(await RawWorker.open(weir.workerUrl));
    await set(worker, 'm', 1);
    await old.count(2);
    await chatty.count(2);
    assert.equal(chatty.closed, false);
    chatty.socket.end(); // a half-close ends it
    await until(() => chatty.closed, 'the end of it');
    await counted(weir, 'event_streams', 1); // and the server knows
  });
});

// covers: 6.10#2, 6.10#4
test('authorization is asked before the head: function, tokens, header and query', async () => {
  const directory = temporaryDirectory();
  const file = path.join(directory, 'weir.yaml');
  fs.writeFileSync(file, 'weir: { auth_function: "app::auth", auth_tokens: { secret: { user: t } } }\n');
  try {
    await withWeir({ args: ['--config', file] }, async (weir, later) => {
      const open = async (target, headers) => later(await EventStream.open(weir.streamPort, target, { headers }));
      const away = await open('/sse/s/g');
      assert.deepEqual([away.status, away.header('retry-after')], [503, '1']);
      later(await workerWith(weir, {
        'app::auth': async (input) => (input.query_params.user?.[0] === 'ok' ? { context: { path: input.path } } : { unauthorized: true }),
      }));
      const refused = await open('/sse/s/g?user=no', { Origin: 'https://x.example' });
      await refused.end();
      assert.equal(refused.status, 401);
      assert.equal(refused.header('www-authenticate'), 'Bearer');
      assert.equal(refused.header('access-control-allow-origin'), 'https://x.example');
      assert.match(refused.body, /authorization/);
      for (const [target, headers] of [['/sse/s/g?user=ok', {}], ['/sse/s/g?token=secret', {}], ['/sse/s/g', { Authorization: 'Bearer secret' }]]) {
        const stream = await open(target, { ...headers, Origin: 'https://x.example' });
        assert.equal(stream.status, 200, target);
        assert.equal(stream.header('access-control-allow-origin'), 'https://x.example');
        await stream.count(1);
      }
      const head = later(await EventStream.open(weir.streamPort, '/sse/s/g?user=ok', { method: 'HEAD' }));
      await head.end();
      assert.equal(head.status, 200);
    });
  } finally {
    fs.rmSync(directory, { recursive: true, force: true });
  }
});

// covers: 6.10#3
test('gates are asked before the head, with the auth context; who leaves meanwhile is forgotten', async () => {
  await withWeir({ settings: { auth_function: 'app::auth' } }, async (weir, later) => {
    const asked = [];
    let answer;
    const worker = later(await workerWith(weir, {
      'app::auth': async (input) => ({ context: { who: input.query_params.who?.[0] } }),
      'app::gate': async (join) => {
        asked.push(join);
        return answer(join);
      },
    }));
    answer = (join) => ({ unauthorized: join.context.who !== 'friend' });
    worker.registerTrigger({ type: 'stream:join', function_id: 'app::gate', config: {} });
    for (const [probe] of (await weir.openOnEach(() => Subscriber.open(weir.streamUrl))).values()) {
      later(probe);
      await until(async () => {
        const before = probe.envelopes.length;
        probe.join('s', 'probe');
        await probe.count(before + 1);
        return probe.envelopes.at(-1).event.type === 'unauthorized';
      }, 'the gateway knows the gate');
    }
    const probed = await EventStream.open(weir.streamPort, '/sse/s/probe');
    assert.equal(probed.status, 403);
    await probed.close();
    asked.length = 0;
    const friend = later(await EventStream.open(weir.streamPort, '/sse/s/g?who=friend&id=m'));
    assert.equal(friend.status, 200);
    await friend.count(1);
    assert.equal(asked.length, 1);
    assert.deepEqual([asked[0].stream_name, asked[0].group_id, asked[0].id, asked[0].context], ['s', 'g', 'm', { who: 'friend' }]);
    const foe = later(await EventStream.open(weir.streamPort, '/sse/s/g?who=foe&epoch=1&since=1'));
    await foe.end();
    assert.equal(foe.status, 403);
    assert.match(foe.body, /denied/);
    // It goes while its gate is asked.
    let release;
    const held = new Promise((resolve) => (release = resolve));
    answer = () => held;
    const gone = await EventStream.open(weir.streamPort, '/sse/s/g?who=friend', { reads: false });
    await until(() => asked.length === 3, 'the gate is asked');
    await gone.close();
    release({});
    // Behind that answer, at each gateway, comes the one to somebody who stays: then it would be counted.
    answer = () => ({});
    for (const [stays] of (await weir.openOnEach(() => EventStream.open(weir.streamPort, '/sse/s/g?who=friend'))).values()) await later(stays).count(1);
    await counted(weir, 'event_streams', 3);
  });
});

test('a comment keeps it alive, silence of the peer is no reason to end it', async () => {
  await withWeir({ settings: { ping_interval_ms: 100, idle_timeout_ms: 400 } }, async (weir, later) => {
    const stream = later(await EventStream.open(weir.streamPort, '/sse/s/g'));
    await until(() => stream.blocks.filter(({ comments }) => comments.length > 0).length >= 10, 'ten comments');
    assert.equal(stream.closed, false);
  });
});

test('a reader that stops is caught up or told when it reads again, and ended when it takes nothing', async () => {
  await withWeir({ settings: { ring_bytes: '1MiB', idle_timeout_ms: 0 } }, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    await set(worker, 'm', 0);
    const slow = later(await EventStream.open(weir.streamPort, '/sse/s/g'));
    await slow.count(1);
    slow.socket.pause();
    const padding = 'x'.repeat(16000);
    for (let i = 1; i <= 1500; i += 1) await set(worker, 'm', { i, padding });
    slow.socket.resume();
    await until(() => slow.envelopes.at(-1).event.data?.i === 1500 || [].concat(slow.envelopes.at(-1).event.data)[0]?.i === 1500, 'the newest state');
    let at = null; // every event follows the one before it, unless the stream said that something is left out
    for (const { event, seq, conflated } of slow.envelopes) {
      if (at !== null && event.type !== 'sync' && conflated === undefined) assert.equal(seq, at + 1);
      at = seq;
    }
    assert.ok(slow.envelopes.length < 1500);
  });
  // For the writer, who has the same limit, not too short.
  await withWeir({ settings: { idle_timeout_ms: 10000, ping_interval_ms: 1000 } }, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    await set(worker, 'm', 0);
    const dead = later(await EventStream.open(weir.streamPort, '/sse/s/g'));
    await dead.count(1);
    await counted(weir, 'event_streams', 1); // seen by whom we ask: the end of it is looked for below
    dead.socket.pause();
    const padding = 'x'.repeat(100000);
    for (let i = 1; i <= 200; i += 1) await set(worker, 'm', { i, padding });
    await counted(weir, 'event_streams', 0, 120000); // the server gives it up
  });
});

test('over TLS the same', async () => {
  const directory = temporaryDirectory();
  const [key, certificate] = ['key.pem', 'certificate.pem'].map((name) => path.join(directory, name));
  try {
    execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2', '-subj',
      '/CN=localhost', '-keyout', key, '-out', certificate], { stdio: 'ignore' });
    await withWeir({ settings: { tls_certificate: certificate, tls_key: key, ping_interval_ms: 100 } }, async (weir, later) => {
      const worker = later(await RawWorker.open(weir.workerUrl));
      await set(worker, 'm', 0);
      const stream = later(await EventStream.open(weir.streamPort, '/sse/s/g', { isTls: true }));
      await stream.count(1);
      for (let i = 1; i <= 20; i += 1) await set(worker, 'm', 'x'.repeat(i * 5000));
      assert.deepEqual((await stream.count(21)).map(({ seq }) => seq), Array.from({ length: 21 }, (_, index) => index + 1));
      await until(() => stream.blocks.some(({ comments }) => comments.length > 0), 'a comment');
      const again = later(await EventStream.open(weir.streamPort, '/sse/s/g', { isTls: true, headers: { 'Last-Event-ID': stream.lastId } }));
      assert.equal((await again.count(1))[0].event.type, 'resumed');
      const refused = later(await EventStream.open(weir.streamPort, '/sse/s/g?mode=x', { isTls: true }));
      await refused.end();
      assert.equal(refused.status, 400);
    });
  } finally {
    fs.rmSync(directory, { recursive: true, force: true });
  }
});

test('a server that stops says so and when to come back', async () => {
  let stream;
  await withWeir({}, async (weir) => {
    stream = await EventStream.open(weir.streamPort, '/sse/s/g');
    await stream.count(1);
  });
  await stream.end();
  const last = stream.dispatched.at(-1);
  assert.equal(last.event, 'close');
  assert.ok([1001, 1012].includes(JSON.parse(last.data).code));
  await stream.close();
});

test('Chromium: an EventSource reads, and goes on after the connection was cut', async () => {
  await withWeir({ gateways: 1, settings: { retry_ms: 50 } }, async (weir, later) => {
    const worker = later(await RawWorker.open(weir.workerUrl));
    await set(worker, 'm', 0);
    const browser = later(await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox'], timeout: 120000 }));
    const page = await browser.newPage();
    page.setDefaultTimeout(120000);
    await page.goto(`http://127.0.0.1:${weir.streamPort}/`);
    await page.evaluate(() => {
      window.got = [];
      window.source = new EventSource('/sse/s/g?mode=lossless');
      window.source.onmessage = ({ data, lastEventId }) => window.got.push({ ...JSON.parse(data), lastEventId });
    });
    const got = () => page.evaluate(() => window.got);
    await until(async () => (await got()).length === 1, 'the sync');
    await set(worker, 'm', 1);
    await until(async () => (await got()).length === 2, 'an event');
    // Another gateway takes over while the browser waits.
    const [victim] = weir.gateways();
    process.kill(victim, 'SIGKILL');
    await weir.gatewaysAfter(victim);
    const again = later(await until(() => RawWorker.open(weir.workerUrl).catch(() => undefined), 'a worker port'));
    await set(again, 'm', 2);
    await until(async () => (await got()).some(({ event }) => event.data === 2), 'the event that was missed');
    const events = await got();
    const resumed = events.findIndex(({ event }) => event.type === 'resumed');
    assert.equal(resumed, 2, JSON.stringify(events));
    assert.deepEqual(events.map(({ seq }) => seq), [1, 2, 2, 3]);
    events.forEach(({ epoch, seq, lastEventId }) => assert.equal(lastEventId, `${epoch}-${seq}`));
  });
});

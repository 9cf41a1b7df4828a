// tls.test.mjs -- the stream port over TLS takes the other send path: the same bytes, the same promises.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import https from 'node:https';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { RawSocket } from './lib/frames.mjs';
import { Weir, isSanitized, seededRandom, temporaryDirectory } from './lib/weir.mjs';

const EVENTS = isSanitized ? 200 : 400;
let weir;
let directory;

before(async () => {
  directory = temporaryDirectory();
  const [certificate, key] = [path.join(directory, 'certificate.pem'), path.join(directory, 'key.pem')];
  execFileSync('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out', certificate, '-days', '2', '-subj', '/CN=localhost',
    '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1'], { stdio: 'ignore' });
  weir = await Weir.start({ settings: { tls_certificate: certificate, tls_key: key, idle_timeout_ms: 0 } }); // some do not read for long
});
after(async () => {
  await weir?.stop();
  fs.rmSync(directory, { recursive: true, force: true });
});

const open = () => Subscriber.open(weir.streamUrl, { rejectUnauthorized: false });

test('subscribers over TLS, slow ones too, get every frame byte-exact and in order', async () => {
  const random = seededRandom('tls');
  const writer = await RawWorker.open(weir.workerUrl);
  const clients = [...(await weir.openOnEach(open, 6)).values()].flat();
  for (const client of clients) await client.joined('tls', 'g');
  const slow = clients.filter((_, index) => index % 3 === 0);
  for (const client of slow) client.socket._socket.pause();
  const written = [];
  for (let n = 0; n < EVENTS; n += 1) {
    const value = { n, text: String.fromCharCode(97 + (n % 26)).repeat(random.below(65536)) };
    written.push(value);
    assert.equal((await writer.set('tls', 'g', `item-${n}`, value)).error, undefined);
    if (n % 8 === 0) {
      const client = slow[random.below(slow.length)];
      client.socket._socket.resume();
      setTimeout(() => n < EVENTS - 40 && client.socket._socket.pause(), 3);
    }
  }
  for (const client of slow) client.socket._socket.resume();
  // A pause that was still due would stop a client for good.
  const resuming = setInterval(() => slow.forEach((client) => client.socket._socket.resume()), 50);
  try {
    for (const [index, client] of clients.entries()) {
      await client.waitFor(() => client.events.length === EVENTS, `every event at client ${index}`, 60000);
    }
    for (const client of clients) {
      assert.ok(client.texts.slice(1).every((text, n) => text === clients[1].texts[n + 1]), 'the same bytes everywhere');
      await client.ping();
    }
  } finally {
    clearInterval(resuming);
  }
  clients[1].events.forEach(({ event }, n) => assert.deepEqual(event.data, written[n]));
  await Promise.all([...clients, writer].map((client) => client.close()));
});

test('big frames and plain HTTPS work, plain text on the TLS port is refused', async () => {
  const writer = await RawWorker.open(weir.workerUrl);
  const client = await open();
  await client.joined('tls', 'big');
  const value = 'x'.repeat(4 << 20);
  await writer.set('tls', 'big', 'i', value);
  await client.count(2);
  assert.ok(client.envelopes[1].event.data === value);
  const again = await open();
  assert.ok((await again.joined('tls', 'big')).event.data[0] === value);
  const status = await new Promise((resolve, reject) => {
    https.get({ host: '127.0.0.1', port: weir.streamPort, path: '/', rejectUnauthorized: false }, (response) => {
      response.resume();
      resolve(response.statusCode);
    }).once('error', reject);
  });
  assert.equal(status, 200);
  const plain = await RawSocket.connect(weir.streamPort);
  plain.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n');
  await plain.ended('plain text ends');
  assert.doesNotMatch(plain.head ?? '', /^HTTP\/1\.1 200/);
  for (let round = 0; round < 20; round += 1) {
    const gone = await RawSocket.open(weir.streamPort, '/stream/tls/big', { secure: true });
    gone.socket.destroy();
  }
  await client.ping();
  await Promise.all([client, again, writer].map((each) => each.close()));
});

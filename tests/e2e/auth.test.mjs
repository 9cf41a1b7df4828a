// auth.test.mjs -- who may open a stream socket: auth_function asked through iii-sdk workers, and literal tokens of the file.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { chromium } from 'playwright-core';
import { RawWorker, Subscriber } from './lib/clients.mjs';
import { counted } from './lib/follower.mjs';
import { RawSocket, frame, handshake } from './lib/frames.mjs';
import { codeOf, openSdkWorker } from './lib/sdk.mjs';
import { delay, runWeir, temporaryDirectory, until, withWeir } from './lib/weir.mjs';

const AUTH = { auth_function: 'app::auth' };
// Long enough for an answer of a process that stands still for a moment, short enough for one that never comes.
const SOON = { auth_timeout_ms: 10000 };
const never = () => new Promise(() => {});

// A worker with `handler` as app::auth; returns once calls reach it.
async function authWorker(weir, handler) {
  const worker = await openSdkWorker(weir.workerUrl);
  worker.registerFunction('app::auth', handler);
  worker.registerFunction('app::up', async () => true);
  await until(async () => (await codeOf(worker.trigger({ function_id: 'app::up', payload: {} }))) === undefined, 'the worker is there');
  return worker;
}

// The whole answer to an upgrade: status, head, and the bytes behind it until the end if it is no 101.
async function upgrade(weir, target = '/', headers = {}) {
  const raw = await RawSocket.connect(weir.streamPort);
  raw.write(handshake(target, { headers }));
  await until(() => raw.head !== null || raw.isClosed, `an answer to ${target}`);
  const status = Number(/^HTTP\/1\.1 (\d+)/.exec(raw.head ?? '')?.[1]);
  if (status !== 101) await raw.ended();
  const { head, pending, localPort } = raw;
  raw.destroy();
  return { status, head, body: pending.toString(), localPort };
}

async function refused(weir, status, target, headers) {
  const answer = await upgrade(weir, target, headers);
  assert.equal(answer.status, status, answer.head);
  assert.equal(answer.body, '', 'an empty body');
  assert.match(answer.head, /^Content-Length: 0\r$/m);
  assert.match(answer.head, /^Connection: close\r$/m);
  if (status === 401) assert.match(answer.head, /^WWW-Authenticate: Bearer\r$/m);
}

test('auth_function gets exactly the documented input, from both gateways, whichever has its worker', async () => {
  await withWeir({ settings: AUTH }, async (weir, later) => {
    const inputs = [];
    later(await authWorker(weir, async (input) => {
      inputs.push(input);
      return { context: { user: 'u1' }, extra: 'ignored' };
    }));
    const gateways = new Set();
    for (let attempt = 0; attempt < 200 && gateways.size < 2; attempt += 1) {
      const raw = await RawSocket.connect(weir.streamPort);
      raw.write('GET /stream/a%20b/g?x=1&token=%41+b&x=2&&=no&flag&x= HTTP/1.1\r\nHost: h:1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
        + 'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Twice: first\r\nx-tWICE:  last \r\n'
        + 'X-Latin: \xe9\r\nAuthorization: Bearer t\r\nSec-WebSocket-Protocol: Authorization,t\r\nX-Quote: "\\\r\n\r\n');
      await until(() => raw.head !== null || raw.isClosed, 'the answer');
      assert.match(raw.head, /^HTTP\/1\.1 101 /);
      gateways.add([...weir.byGateway([raw])].find(([, held]) => held.includes(raw))[0]);
      assert.match(raw.head, /^Sec-WebSocket-Protocol: Authorization\r$/m);
      assert.deepEqual(inputs.pop(), {
        headers: {
          host: 'h:1', upgrade: 'websocket', connection: 'Upgrade', 'sec-websocket-version': '13',
          'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==', 'x-twice': 'last', authorization: 'Bearer t',
          'sec-websocket-protocol': 'Authorization,t', 'x-quote': '"\\',
        },
        path: '/stream/a%20b/g',
        query_params: { x: ['1', '2', ''], token: ['%41+b'], flag: [''] },
        addr: `127.0.0.1:${raw.localPort}`,
      });
      await until(() => raw.texts.length === 1, 'the sync of the path');
      assert.equal(JSON.parse(raw.texts[0]).streamName, 'a b');
      raw.destroy();
    }
    assert.deepEqual([...gateways].sort(), weir.gateways().sort(), 'both gateways were reached');
  });
});

test('every result and error of auth_function is answered as documented', async () => {
  await withWeir({ settings: AUTH }, async (weir, later) => {
    const results = {
      object: [101, async () => ({})],
      context: [101, async () => ({ context: { deep: [1, { a: null }] } })],
      nullContext: [101, async () => ({ context: null })],
      false: [101, async () => ({ unauthorized: false })],
      string: [101, async () => ({ unauthorized: 'true' })],
      largeContext: [101, async () => ({ context: 'x'.repeat(65534) })],
      unauthorized: [401, async () => ({ unauthorized: true, context: 1 })],
      null: [401, async () => null],
      nothing: [401, async () => undefined],
      text: [401, async () => 'yes'],
      true: [401, async () => true],
      array: [401, async () => [{}]],
      tooLargeContext: [401, async () => ({ context: 'x'.repeat(65535) })],
      throws: [401, async () => {
        throw new Error('no');
      }],
    };
    later(await authWorker(weir, async ({ query_params: { case: [name] } }) => results[name][1]()));
    let refusals = 0;
    let failures = 0;
    for (const [name, [status]] of Object.entries(results)) {
      if (status === 101) {
        assert.equal((await upgrade(weir, `/?case=${name}`)).status, 101, name);
        continue;
      }
      await refused(weir, status, `/?case=${name}`);
      refusals += 1;
      failures += name === 'unauthorized' ? 0 : 1;
    }
    await counted(weir, 'auth_refused', refusals);
    await counted(weir, 'auth_failed', failures);
    // A refusal by path or origin comes first and costs no call; plain HTTP is not asked about.
    assert.equal((await upgrade(weir, '/nope?case=object')).status, 404);
    await until(async () => (await fetch(`http://127.0.0.1:${weir.streamPort}/healthz`)).status === 200, 'its health is told to anybody');
  });
});

test('a socket that was accepted works: joins, events, frames sent behind the head', async () => {
  await withWeir({ settings: AUTH }, async (weir, later) => {
    const worker = later(await authWorker(weir, async () => {
      await delay(50);
      return {};
    }));
    const subscriber = later(await Subscriber.open(weir.streamUrl));
    await subscriber.joined('accepted', 'g');
    await worker.trigger({ function_id: 'stream::set', payload: { stream_name: 'accepted', group_id: 'g', item_id: 'i', data: 1 } });
    await subscriber.waitFor(() => subscriber.events.length === 1, 'the event');
    const raw = await RawSocket.connect(weir.streamPort);
    const join = { type: 'join', data: { subscriptionId: 's', streamName: 'accepted', groupId: 'g' } };
    raw.write(Buffer.concat([Buffer.from(handshake('/')), frame(JSON.stringify(join))]));
    await until(() => raw.texts.length === 1, 'the sync for a join sent with the head');
    raw.destroy();
  });
});

test('late is 503, not registered is 503, and registering helps at once', async () => {
  await withWeir({ settings: { ...AUTH, ...SOON } }, async (weir, later) => {
    await refused(weir, 503, '/');
    let held = 0;
    const worker = later(await authWorker(weir, async ({ path: asked }) => {
      if (asked !== '/stream') return {};
      held += 1;
      return never();
    }));
    assert.equal((await upgrade(weir, '/')).status, 101);
    // Clients that give up while they wait leave nothing behind.
    const waiting = [];
    for (let n = 0; n < 50; n += 1) {
      const raw = await RawSocket.connect(weir.streamPort);
      raw.write(handshake('/stream'));
      waiting.push(raw);
    }
    await until(() => held === 50, 'all of them are asked about');
    for (const raw of waiting) raw.destroy();
    // The one that is asked about last is refused after the time of all of them.
    const late = refused(weir, 503, '/stream');
    await until(() => held === 51, 'one more is asked about');
    assert.equal((await upgrade(weir, '/')).status, 101, 'others are served meanwhile');
    await late;
    await counted(weir, 'stream_connections', 0); // nobody is connected
    await until(async () => /^weir_broker_calls_pending 0$/m.test(await weir.metrics()), 'no call waits');
    assert.equal((await upgrade(weir, '/')).status, 101);
    await worker.shutdown();
    await until(async () => (await upgrade(weir, '/')).status === 503, 'the function is gone');
  });
});

test('a worker that dies while it is asked, and a broker that does, refuse with 503', async () => {
  await withWeir({ settings: AUTH, gateways: 2 }, async (weir, later) => {
    const onEach = [...(await weir.openOnEach(() => RawWorker.open(weir.workerUrl))).values()].flat().map(later);
    const [worker] = onEach;
    let asked = 0;
    worker.register('app::auth', () => void (asked += 1));
    const known = (each) => each.call('engine::functions::list', {}); // behind the registration, through gateway and broker
    await known(worker);
    const ask = async (count) => {
      const raws = [];
      for (let n = 0; n < count; n += 1) {
        const raw = await RawSocket.connect(weir.streamPort);
        raw.write(handshake('/'));
        raws.push(raw);
      }
      return raws;
    };
    const expect503 = async (raws) => {
      for (const raw of raws) {
        await until(() => raw.head !== null || raw.isClosed, 'an answer');
        assert.match(raw.head, /^HTTP\/1\.1 503 /);
        raw.destroy();
      }
    };
    let raws = await ask(20);
    await until(() => asked === 20, 'all are asked');
    const broker = weir.broker();
    process.kill(broker, 'SIGKILL');
    await expect503(raws);
    await weir.brokerAfter(broker);
    asked = 0;
    await until(async () => {
      const [raw] = await ask(1);
      await until(() => raw.head !== null || asked > 0, 'asked again, or refused');
      if (asked === 0) raw.destroy();
      else raws = [raw];
      return asked > 0;
    }, 'the function is announced again');
    // What a gateway asks before it has noticed is lost with the old broker.
    for (const each of onEach) await until(async () => (await known(each)).error === undefined, 'every gateway has the new broker');
    raws.push(...await ask(20));
    await until(() => asked >= 21, 'all are asked again');
    worker.socket.terminate();
    await expect503(raws);
  });
});

test('auth_failure: allow accepts whatever fails, and still refuses who is refused', async () => {
  await withWeir({ settings: { ...AUTH, ...SOON, auth_failure: 'allow' } }, async (weir, later) => {
    assert.equal((await upgrade(weir, '/')).status, 101, 'not registered');
    const results = {
      null: async () => null,
      text: async () => 'x',
      late: never,
      throws: async () => {
        throw new Error('no');
      },
      unauthorized: async () => ({ unauthorized: true }),
    };
    later(await authWorker(weir, async ({ query_params: { case: [name] } }) => results[name]()));
    for (const name of ['null', 'text', 'late', 'throws']) assert.equal((await upgrade(weir, `/?case=${name}`)).status, 101, name);
    await refused(weir, 401, '/?case=unauthorized');
    await counted(weir, 'auth_failed', 5);
  });
});

function configFile(text) {
  const directory = temporaryDirectory();
  const file = path.join(directory, 'weir.yaml');
  fs.writeFileSync(file, text);
  return { file, remove: () => fs.rmSync(directory, { recursive: true, force: true }) };
}

const TOKENS = `
workers:
  - name: iii-stream
    config: { auth_function: ~ }
weir:
  auth_tokens:
    "tok-one": { user: u1 }
    "tok=two/+": null
    \${WEIR_E2E_TOKEN}: [admin]
`;

test('tokens of the file: by header, by subprotocol as browsers do, by query; all else is 401', async () => {
  const { file, remove } = configFile(TOKENS);
  try {
    await withWeir({ args: ['--config', file], env: { WEIR_E2E_TOKEN: 'tok-env' } }, async (weir, later) => {
      const good = [
        ['/', { Authorization: 'Bearer tok-one' }],
        ['/', { authorization: 'bearer  tok-env ' }],
        ['/', { 'Sec-WebSocket-Protocol': 'Authorization,tok-one' }],
        ['/', { 'Sec-WebSocket-Protocol': 'chat, Authorization, tok-env' }],
        ['/?token=tok-one', {}],
        ['/stream/a/g?x=1&token=tok%3Dtwo%2F+', {}],
        ['/?token=wrong&token=tok-one', {}],
        ['/?token=tok-one', { Authorization: 'Bearer wrong' }],
      ];
      for (const [target, headers] of good) assert.equal((await upgrade(weir, target, headers)).status, 101, JSON.stringify([target, headers]));
      const bad = [
        ['/', {}],
        ['/', { Authorization: 'tok-one' }],
        ['/', { Authorization: 'Basic tok-one' }],
        ['/', { Authorization: 'Bearer tok-on' }],
        ['/', { Authorization: 'Bearer tok-one1' }],
        ['/', { Authorization: 'Bearer TOK-ONE' }],
        ['/', { 'Sec-WebSocket-Protocol': 'tok-one' }],
        ['/', { 'Sec-WebSocket-Protocol': 'tok-one, Authorization' }],
        ['/', { 'Sec-WebSocket-Protocol': 'authorization, tok-one' }],
        ['/?token=', {}],
        ['/?Token=tok-one', {}],
        ['/?token=tok-one&token=wrong', {}],
        [`/?token=${'x'.repeat(4000)}`, {}],
      ];
      for (const [target, headers] of bad) await refused(weir, 401, target, headers);
      // As a browser and the ws library do it, to the end.
      const subscriber = later(await Subscriber.open(weir.streamUrl, { protocols: ['Authorization', 'tok-one'] }));
      assert.equal(subscriber.socket.protocol, 'Authorization');
      await subscriber.joined('tokens', 'g');
      await assert.rejects(Subscriber.open(weir.streamUrl, { protocols: ['Authorization', 'wrong'] }), /401/);
      await counted(weir, 'auth_refused', bad.length + 1);
      for (const secret of ['tok-one', 'tok=two', 'tok-env', 'wrong']) {
        assert.ok(!(weir.stdout + weir.stderr).includes(secret), 'no token in any line');
        for (const pid of [weir.process.pid, weir.broker(), ...weir.gateways()]) {
          assert.ok(!fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(secret), 'no token on a command line');
        }
      }
    });
  } finally {
    remove();
  }
});

test('a browser shows its token as subprotocol, the page the one of its address, weir tail that of its URL', async () => {
  const { file, remove } = configFile(TOKENS.replace(/\n.*E2E_TOKEN.*\n/, '\n'));
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--headless', '--no-sandbox', '--disable-gpu'] });
  try {
    await withWeir({ args: ['--config', file] }, async (weir) => {
      const page = await browser.newPage();
      await page.goto(`http://127.0.0.1:${weir.streamPort}/?token=tok%3Dtwo%2F%2B`);
      await until(async () => (await page.textContent('#status-text')) === 'connected', 'the page is connected');
      const open = (protocols) => page.evaluate((offered) => new Promise((resolve) => {
        const socket = new WebSocket(`ws://${location.host}/`, offered);
        socket.onopen = () => resolve(socket.protocol);
        socket.onerror = () => resolve(null);
      }), protocols);
      assert.equal(await open(['Authorization', 'tok-one']), 'Authorization');
      assert.equal(await open(['Authorization', 'wrong']), null);
      assert.equal(await open([]), null);
      const tail = await runWeir(['tail', '--url', `${weir.streamUrl}/?token=tok-one`, '--count', '1', 's', 'g']);
      assert.equal(tail.code, 0, tail.output);
      assert.match(tail.stdout, /sync/);
    });
  } finally {
    await browser.close();
    remove();
  }
});

test('with tokens and a function a known token costs no call, and any other is asked about', async () => {
  const { file, remove } = configFile(TOKENS.replace('~', 'app::auth').replace(/\n.*E2E_TOKEN.*\n/, '\n'));
  try {
    await withWeir({ args: ['--config', file] }, async (weir, later) => {
      assert.equal((await upgrade(weir, '/?token=tok-one')).status, 101, 'without any worker');
      await refused(weir, 503, '/?token=other');
      let asked = 0;
      later(await authWorker(weir, async ({ query_params: { token } }) => {
        asked += 1;
        return { unauthorized: token?.[0] !== 'other' };
      }));
      assert.equal((await upgrade(weir, '/?token=other')).status, 101);
      await refused(weir, 401, '/');
      assert.equal(asked, 2);
      assert.equal((await upgrade(weir, '/?token=tok-one')).status, 101);
      assert.equal(asked, 2);
    });
  } finally {
    remove();
  }
});

test('the handshake of 200 sockets at once, on both gateways', async () => {
  await withWeir({ settings: AUTH }, async (weir, later) => {
    let asked = 0;
    later(await authWorker(weir, async ({ query_params: { n: [n] } }) => {
      asked += 1;
      await delay(asked % 7);
      return Number(n) % 2 === 0 ? { context: { n } } : { unauthorized: true };
    }));
    const answers = await Promise.all(Array.from({ length: 200 }, (_, n) => upgrade(weir, `/?n=${n}`)));
    answers.forEach(({ status }, n) => assert.equal(status, n % 2 === 0 ? 101 : 401, `socket ${n}`));
  });
});

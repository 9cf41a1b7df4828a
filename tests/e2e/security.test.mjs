// security.test.mjs -- clients and workers that mean harm: requests written to get past auth, sessions of an RBAC listener that reach
// for more than they have, floods by one client, sockets that close at any moment of a decision. Two gateways, frames by hand.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { Client, RawWorker, Subscriber } from './lib/clients.mjs';
import { RawSocket, frame, handshake } from './lib/frames.mjs';
import { Weir, delay, seededRandom, temporaryDirectory, until } from './lib/weir.mjs';

const SECRET = 'token-of-the-test-1c3b';
const FILE = `
weir:
  auth_function: app::stream-auth
  auth_tokens:
    ${SECRET}: { user: secret-context-77 }
workers:
  - name: iii-worker-manager
    config:
      host: 127.0.0.1
      port: 0
      rbac:
        auth_function_id: app::auth
        on_function_registration_function_id: app::on-function
        expose_functions: [ match("app::public::*"), match("stream::*"), metadata: { public: true } ]
  - name: iii-worker-manager
    config: { host: 127.0.0.1, port: 0, rbac: { auth_function_id: app::slow, on_trigger_registration_function_id: app::slow, expose_functions: [ match("*") ] } }
`;
const CONFIGURED = ['app::stream-auth', 'app::auth', 'app::on-function', 'app::slow'];
const RIGHTS = {
  guest: {},
  all: { namespaces: { default: ['*'] }, forbidden_functions: ['app::secret'] },
  listing: { namespaces: { default: ['*'] }, allowed_trigger_types: ['engine::functions-available'] },
};

let weir;
let files;
let home;
let ports;
const open = [];
const asked = []; // whom stream-auth was asked about
const slow = []; // calls of app::slow that nobody has answered

const urlOf = (listener, as) => `ws://127.0.0.1:${ports[listener]}/?as=${as}`;
// A call goes through gateway and broker behind what its worker has registered, so that its answer says that this is known.
const known = (worker) => worker.call('engine::functions::list', {});
const enter = async (as) => {
  const worker = await RawWorker.open(urlOf(0, as));
  open.push(worker);
  return worker;
};

before(async () => {
  files = temporaryDirectory();
  fs.writeFileSync(path.join(files, 'weir.yaml'), FILE);
  weir = await Weir.start({
    settings: { auth_timeout_ms: 60000, subscriptions_max: 10, gate_timeout_ms: 60000, join_gate: 'closed' },
    args: ['--config', path.join(files, 'weir.yaml')],
  });
  const [, list] = / listeners=(\S+)/.exec(weir.stdout);
  ports = list.split(',').map((address) => Number(address.split(':').at(-1)));
});

after(async () => {
  await Promise.all([...open, home].map((client) => client?.close()));
  await weir?.stop();
  fs.rmSync(files, { recursive: true, force: true });
});

// Before the trusted worker is there, so that nobody owns the ids yet.
test('a session of the RBAC listener cannot become what the configuration names, nor its stand-by', async () => {
  const helper = await RawWorker.open(weir.workerUrl);
  helper.register('app::auth', ({ data }) => ({ result: RIGHTS[data.query_params.as[0]] }));
  helper.register('app::on-function', () => ({ result: {} }));
  await known(helper);
  const thief = await enter('all');
  for (const id of CONFIGURED) thief.register(id, () => ({ result: { stolen: true } }));
  thief.register('thief::fn', () => ({ result: 1 }));
  await until(async () => (await helper.call('thief::fn', {})).result === 1, 'what came last is registered');
  for (const id of ['app::stream-auth', 'app::slow']) assert.equal((await helper.call(id, {})).error?.code, 'function_not_found', id);
  await helper.close();
  // Its owner has gone: a stand-by would be promoted now.
  home = await RawWorker.open(weir.workerUrl);
  await until(async () => (await home.call('app::auth', { query_params: { as: ['guest'] } })).error?.code === 'function_not_found', 'nobody follows');
  assert.equal((await home.call('app::on-function', {})).error?.code, 'function_not_found');
  await thief.close();

  home.register('app::stream-auth', ({ data }) => {
    asked.push(data);
    return { result: data.headers['x-pass'] === 'yes' ? { context: { user: 'asked' } } : { unauthorized: true } };
  });
  home.register('app::auth', ({ data }) => ({ result: RIGHTS[data.query_params.as[0]] }));
  home.register('app::on-function', () => ({ result: {} }));
  home.register('app::slow', (call) => void slow.push(call));
  home.register('app::secret', () => ({ result: 'secret' }));
  home.register('app::public::echo', ({ data }) => ({ result: data }));
  await known(home);
});

// One request, whatever it is; the status of the first answer.
async function statusOf(text, port = weir.streamPort) {
  const raw = await RawSocket.connect(port);
  raw.write(text);
  await until(() => raw.head !== null || raw.isClosed, 'an answer');
  const status = Number(/^HTTP\/1\.1 (\d+)/.exec(raw.head ?? '')?.[1]);
  raw.destroy();
  return status;
}

const head = (line, extra = '', key = 'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n') =>
  `${line}\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n${key}${extra}\r\n`;

test('no way of writing an upgrade gets past auth', async () => {
  const table = [
    ['GET / HTTP/1.1', '', 401],
    ['GET /stream HTTP/1.1', '', 401],
    ['GET /stream/ HTTP/1.1', '', 401],
    ['GET /stream/a/b HTTP/1.1', '', 401],
    ['GET /stream/a/b/ HTTP/1.1', '', 401],
    ['GET /stream/%61/%2e%2e HTTP/1.1', '', 401],
    ['GET /stream/%00/%2F HTTP/1.1', '', 401],
    ['GET /%73tream/a/b HTTP/1.1', '', 404],
    ['GET //stream/a/b HTTP/1.1', '', 404],
    ['GET /stream/../ HTTP/1.1', '', 404],
    ['GET /otel HTTP/1.1', '', 404],
    ['GET /ws HTTP/1.1', '', 404],
    ['GET /ws/channels/x?key=y&dir=read HTTP/1.1', '', 404],
    ['GET /healthz HTTP/1.1', '', 404],
    ['GET http://x/stream/a/b HTTP/1.1', '', 401],
    ['GET HTTP://x HTTP/1.1', '', 401],
    ['GET http://x?p=/stream/a/b HTTP/1.1', '', 400],
    ['GET / HTTP/1.0', '', 400],
    ['HEAD / HTTP/1.1', '', 400],
    ['POST / HTTP/1.1', '', 405],
    ['get / HTTP/1.1', '', 405],
    ['GET / HTTP/2.0', '', 400],
    ['GET\t/ HTTP/1.1', '', 400],
    ['GET / HTTP/1.1', 'Transfer-Encoding: chunked\r\n', 400],
    ['GET / HTTP/1.1', 'Content-Length: 5\r\n', 400],
    ['GET / HTTP/1.1', 'Content-Length: 0\r\nContent-Length: 7\r\n', 400],
    ['GET / HTTP/1.1', 'Host: y\r\n', 400],
    ['GET / HTTP/1.1', 'X-Pass : yes\r\n', 400],
    ['GET / HTTP/1.1', ' X-Pass: yes\r\n', 400],
    ['GET / HTTP/1.1', 'X-A: b\nX-Pass: yes\r\n', 400],
    ['GET / HTTP/1.1', 'X-A: b\rX-Pass: yes\r\n', 400],
    ['GET / HTTP/1.1', 'X-Pass: yes\r\nX-PASS: no\r\n', 401],
    ['GET / HTTP/1.1', 'X-Pass: no\r\nx-pass: yes\r\n', 101],
    ['GET / HTTP/1.1', `Authorization: Bearer ${SECRET}\r\n`, 101],
    ['GET / HTTP/1.1', `AUTHORIZATION: bearer ${SECRET}\r\n`, 101],
    ['GET / HTTP/1.1', `Authorization: Bearer ${SECRET}\r\nauthorization: Bearer x\r\n`, 401],
    ['GET / HTTP/1.1', `Authorization: Basic ${SECRET}\r\n`, 401],
    ['GET / HTTP/1.1', `Authorization: ${SECRET}\r\n`, 401],
    ['GET / HTTP/1.1', `Authorization: Bearer ${SECRET}x\r\n`, 401],
    ['GET / HTTP/1.1', `Authorization: Bearer ${SECRET.slice(0, -1)}\r\n`, 401],
    ['GET / HTTP/1.1', `Authorization: Bearer ${SECRET.toUpperCase()}\r\n`, 401],
    [`GET /?token=${SECRET}&token=x HTTP/1.1`, '', 401],
    [`GET /?TOKEN=${SECRET} HTTP/1.1`, '', 401],
    [`GET /?x=?token=${SECRET} HTTP/1.1`, '', 401],
    ['GET /?token= HTTP/1.1', '', 401],
    ['GET /?token HTTP/1.1', '', 401],
    ['GET / HTTP/1.1', `Sec-WebSocket-Protocol: ${SECRET}, Authorization\r\n`, 401],
    ['GET / HTTP/1.1', `Sec-WebSocket-Protocol: authorization, ${SECRET}\r\n`, 401],
    ['GET / HTTP/1.1', 'h: v\r\n'.repeat(1000), 431],
    [`GET /?${'p&'.repeat(1000)} HTTP/1.1`, '', 431],
    ['GET /stream/%ff/g HTTP/1.1', '', 400],
    ['GET /stream/%zz/g HTTP/1.1', '', 400],
  ];
  for (const [line, extra, status] of table) assert.equal(await statusOf(head(line, extra)), status, `${line} ${extra.slice(0, 60)}`);
  assert.equal(await statusOf(head('GET / HTTP/1.1'), weir.adminPort), 404);
  assert.equal(await statusOf(head('GET /?as=guest HTTP/1.1', 'h: v\r\n'.repeat(1000)), ports[0]), 431);
  assert.equal(await statusOf(head(`GET /?as=guest&${'p&'.repeat(1000)} HTTP/1.1`), ports[0]), 431);
  for (const target of ['/metrics', '/healthz', '/stream/a/b']) assert.equal(await statusOf(`GET ${target} HTTP/1.1\r\nHost: x\r\n\r\n`, ports[0]), 404, target);
  assert.equal(await statusOf('GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n'), 404);
  // The path the function was asked about is the one that was sent.
  assert.ok(asked.some((data) => data.path === '/stream/%61/%2e%2e'));
});

test('what is pipelined behind a refused upgrade is not looked at', async () => {
  const good = handshake('/', { headers: { Authorization: `Bearer ${SECRET}` } });
  for (const first of [handshake('/'), handshake('/nowhere'), handshake('/', { headers: { 'Sec-WebSocket-Version': '12' } })]) {
    const raw = await RawSocket.connect(weir.streamPort);
    raw.write(first + good);
    await raw.ended();
    const text = raw.head + raw.pending.toString('latin1');
    assert.doesNotMatch(text, / 101 /);
    assert.equal(text.match(/HTTP\/1\.1 /g).length, 1, text);
  }
  const raw = await RawSocket.connect(weir.streamPort);
  raw.write(`GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n${handshake('/')}${good}`);
  await raw.ended();
  assert.deepEqual((raw.head + raw.pending.toString('latin1')).match(/HTTP\/1\.1 \d+/g), ['HTTP/1.1 200', 'HTTP/1.1 401']);
});

test('frames behind an upgrade are read only once it is accepted', async () => {
  const join = frame(JSON.stringify({ type: 'join', data: { subscriptionId: 's', streamName: 'early', groupId: 'g' } }));
  const refused = await RawSocket.connect(weir.streamPort);
  refused.write(Buffer.concat([Buffer.from(handshake('/')), join]));
  await refused.ended();
  assert.match(refused.head, / 401 /);
  assert.equal(refused.pending.length, 0);
  const accepted = await RawSocket.connect(weir.streamPort);
  accepted.write(Buffer.concat([Buffer.from(handshake('/', { headers: { 'X-Pass': 'yes' } })), join]));
  await until(() => accepted.frames.length === 1, 'the sync');
  accepted.destroy();
});

test('the check and the call read one and the same function', async () => {
  const session = await enter('all');
  const before = home.invocations.length;
  const fields = (first, second) => `{"type":"invokefunction","invocation_id":"INV","data":{},${first},${second}}`;
  const twice = [
    fields('"function_id":"app::secret"', '"function_id":"app::public::echo"'),
    fields('"function_id":"app::public::echo"', '"function_id":"app::secret"'),
    fields('"function_id":"app::public::echo"', '"function\\u005fid":"app::secret"'),
  ];
  for (const [index, text] of twice.entries()) {
    const { message } = await session.callText(`twice-${index}`, text.replace('INV', `twice-${index}`));
    assert.equal(message.error?.code, 'invalid_message', text);
  }
  const escaped = [
    ['"function_id":"app::secre\\u0074"', 'FORBIDDEN'],
    ['"\\u0066unction_id":"app::secret"', 'FORBIDDEN'],
    ['"function_id":"app::secret","namespace":"default"', 'FORBIDDEN'],
    ['"function_id":"app::secret","namespace":""', 'INVALID_NAMESPACE'],
    ['"function_id":"app::secret","namespace":"\\u0020"', 'INVALID_NAMESPACE'],
    ['"function_id":"app::secret","namespace":null', 'FORBIDDEN'],
    ['"function_id":"app::secret","namespace":"other"', 'FORBIDDEN'],
    ['"function_id":"app::secret","action":{"type":"void","type":"enqueue"}', 'invalid_message'],
    ['"function_id":"app::secret","action":{"type":"enqueue","queue":"q"}', 'FORBIDDEN'],
    ['"function_id":"app::secret ","x":1', 'function_not_found'],
    ['"function_id":"app::secret\\u0000"', 'function_not_found'],
    ['"function_id":"engine::register_trigger"', 'FORBIDDEN'],
    ['"function_id":"engine::register_trigger","namespace":"other"', 'FORBIDDEN'],
    [`"function_id":"app::${'x'.repeat(5000)}"`, 'FORBIDDEN'],
  ];
  for (const [index, [text, code]] of escaped.entries()) {
    const id = `escaped-${index}`;
    const { message } = await session.callText(id, `{"type":"invokefunction","invocation_id":"${id}","data":{},${text}}`);
    assert.equal(message.error?.code, code, text);
  }
  assert.equal(home.invocations.slice(before).filter(({ function_id }) => function_id === 'app::secret').length, 0);
});

test('a session becomes a gate, or is told of everybody, only where its rights name that', async () => {
  const bind = async (worker, id, type, fields = {}) => {
    worker.send({ type: 'registertrigger', id, trigger_type: type, function_id: 'app::public::echo', config: null, ...fields });
    await worker.call('app::public::echo', {}); // behind it, so that a refusal has come
    return worker.texts.map((text) => JSON.parse(text)).find((message) => message.type === 'triggerregistrationresult' && message.id === id)?.error.code;
  };
  const all = await enter('all');
  assert.equal(await bind(all, 'l1', 'engine::functions-available'), 'FORBIDDEN');
  assert.equal(await bind(all, 'l2', 'engine::workers-available'), 'FORBIDDEN');
  assert.equal(await bind(all, 'l3', 'engine::functions-availabl\u0065'), 'FORBIDDEN');
  // A gate that is no function would shut closed gates for everybody.
  assert.equal(await bind(all, 'l6', 'stream:join', { function_id: 'stream::get' }), 'FORBIDDEN');
  assert.equal(await bind(all, 'l7', 'stream:leave'), 'FORBIDDEN');
  const subscriber = await Subscriber.open(`${weir.streamUrl}/?token=${SECRET}`);
  open.push(subscriber);
  await subscriber.joined('ungated', 'g');
  assert.equal(await bind(all, 'l4', 'stream', { config: { stream_name: 's', condition_function_id: 'app::secret' } }), 'FORBIDDEN');
  assert.equal(await bind(await enter('listing'), 'l5', 'engine::functions-available'), undefined);
});

test('a token of one listener does not retire, and nobody unregisters what is another\'s', async () => {
  const session = await enter('all');
  home.send({ type: 'registertrigger', id: 'home-trigger', trigger_type: 'stream', function_id: 'app::public::echo', config: { stream_name: 'kept' } });
  await home.ping();
  const before = home.invocations.length;
  for (const token of [session.registered.reattach_token, '', undefined, home.registered.worker_id]) {
    session.send({ type: 'reattach', previous_worker_id: home.registered.worker_id, reattach_token: token });
  }
  session.send({ type: 'unregistertrigger', id: 'home-trigger', trigger_type: 'stream' });
  session.send({ type: 'unregisterfunction', id: 'app::public::echo' });
  session.send({ type: 'registertrigger', id: 'home-trigger', trigger_type: 'stream', function_id: 'app::public::echo', config: { stream_name: 'other' } });
  session.send({ type: 'invocationresult', invocation_id: '00000000-0000-4000-8000-000000000000', function_id: 'app::public::echo', result: 1 });
  session.send({ type: 'triggerregistrationresult', id: 'home-trigger', trigger_type: 'stream', function_id: 'app::public::echo', error: { code: 'x', message: 'y' } });
  await session.ping();
  assert.equal((await session.call('app::public::echo', { n: 1 })).result.n, 1);
  await home.set('kept', 'g', 'i', 1);
  await until(() => home.invocations.slice(before).some(({ data }) => data?.streamName === 'kept'), 'the trigger still runs');
  assert.equal(home.closed, null);
});

test('a trigger makes no byte channels, which would be nobody\'s', async () => {
  const session = await enter('all');
  session.send({ type: 'registertrigger', id: 'maker', trigger_type: 'stream', function_id: 'engine::channels::create', config: { stream_name: 'making' } });
  session.send({ type: 'registertrigger', id: 'echoing', trigger_type: 'stream', function_id: 'app::public::echo', config: { stream_name: 'making' } });
  assert.equal((await session.call('app::public::echo', {})).error, undefined); // behind them, so that they are known
  const before = home.invocations.length;
  for (let i = 0; i < 5; i += 1) await home.set('making', 'g', 'i', i);
  await until(() => home.invocations.slice(before).filter(({ data }) => data?.streamName === 'making').length === 5, 'the other trigger has seen them');
  assert.equal((await session.call('engine::channels::create', {})).error, undefined);
  const channels = async () => {
    const text = await weir.metrics();
    return Number(/^weir_broker_channels (\d+)$/m.exec(text)?.[1]);
  };
  await until(async () => (await channels()) > 0, 'the session\'s own is counted');
  assert.equal(await channels(), 1);
});

// Until the gateway of `client` asks `gate` about joins of `streamName`. A join follows when the one before was answered without that.
async function untilAsked(gate, client, streamName) {
  const isAsked = () => gate.invocations.some(({ data }) => data.stream_name === streamName);
  await until(async () => {
    const before = client.envelopes.length;
    client.join(streamName, 'g', { subscriptionId: 'probe' });
    await until(() => isAsked() || client.envelopes.length > before, 'a question or an answer');
    return isAsked();
  }, 'the gate is asked');
}

test('joining and leaving without end asks the gates no more than a bound', async () => {
  const gate = await RawWorker.open(weir.workerUrl);
  open.push(gate);
  const held = [];
  let isHeld = true;
  const verdict = ({ data }) => ({ result: data.group_id === 'again' ? {} : { unauthorized: true } });
  gate.register('app::gate', (call) => (isHeld ? void held.push(call) : verdict(call)));
  gate.send({ type: 'registertrigger', id: 'flood-gate', trigger_type: 'stream:join', function_id: 'app::gate', config: { stream_name: 'flooded' } });
  await gate.ping();
  const client = await Subscriber.open(weir.streamUrl, { headers: { 'X-Pass': 'yes' } });
  open.push(client);
  await untilAsked(gate, client, 'flooded');
  for (let i = 0; i < 200; i += 1) {
    client.join('flooded', 'g', { subscriptionId: `s${i % 2}` });
    client.leave('flooded', 'g', `s${i % 2}`);
  }
  await client.ping();
  await until(() => client.envelopes.filter(({ event }) => event.type === 'unauthorized').length > 100, 'the others are refused');
  await gate.ping();
  assert.ok(held.length <= 21, `${held.length} questions`);
  // Answered, they make room again, and the verdict of one that was taken back concerns nobody. It has to be taken back before.
  client.leave('flooded', 'g', 'probe');
  await client.ping();
  const unauthorized = client.envelopes.length;
  isHeld = false;
  for (const call of held) gate.send({ type: 'invocationresult', invocation_id: call.invocation_id, function_id: 'app::gate', ...verdict(call) });
  await until(async () => {
    const before = client.envelopes.length;
    client.join('flooded', 'again', { subscriptionId: 'fresh' });
    await client.waitFor(() => client.envelopes.length > before, 'an answer to the join');
    return client.envelopes[before].event.type === 'sync';
  }, 'a join is asked about again, and gets its sync');
  assert.ok(client.envelopes.slice(unauthorized).every(({ groupId }) => groupId === 'again'));
  await gate.close();
});

test('sockets that close at any moment of a decision leave nothing behind', async () => {
  const random = seededRandom('closing');
  const gate = await RawWorker.open(weir.workerUrl);
  open.push(gate);
  gate.register('app::gate', ({ invocation_id }) => {
    setTimeout(() => gate.closed === null && gate.send({ type: 'invocationresult', invocation_id, function_id: 'app::gate', result: { unauthorized: random.below(2) === 0 } }), random.below(20));
  });
  gate.send({ type: 'registertrigger', id: 'closing-gate', trigger_type: 'stream:join', function_id: 'app::gate', config: { stream_name: 'closing' } });
  for (const [client] of (await weir.openOnEach(() => Subscriber.open(weir.streamUrl, { headers: { 'X-Pass': 'yes' } }))).values()) {
    open.push(client);
    gate.invocations.length = 0;
    await untilAsked(gate, client, 'closing');
  }
  const join = (id) => frame(JSON.stringify({ type: 'join', data: { subscriptionId: id, streamName: 'closing', groupId: 'g' } }));
  const call = frame(JSON.stringify({ type: 'invokefunction', invocation_id: 'c', function_id: 'app::tagged', data: {} }));
  const register = frame(JSON.stringify({ type: 'registerfunction', id: 'closing::fn' }));
  const trigger = frame(JSON.stringify({ type: 'registertrigger', id: 't', trigger_type: 'stream', function_id: 'app::tagged', config: { stream_name: 's', condition_function_id: 'app::half' } }));
  const kinds = [
    () => [weir.streamPort, handshake('/'), []],
    () => [weir.streamPort, handshake('/stream/closing/g', { headers: { 'X-Pass': 'yes' } }), [join('a'), join('a'), join('b')]],
    () => [ports[0], handshake('/?as=guest'), [call, register, trigger, call]],
    () => [ports[1], handshake('/?as=guest'), [call, register]], // its rights are never decided
  ];
  const one = async () => {
    const [port, upgrade, frames] = kinds[random.below(kinds.length)]();
    const raw = await RawSocket.connect(port);
    raw.write(Buffer.concat([Buffer.from(upgrade), ...frames.slice(0, random.below(frames.length + 1))]));
    if (random.below(3) > 0) await delay(random.below(12));
    if (random.below(2) === 0) raw.reset();
    else raw.destroy();
  };
  for (let round = 0; round < 30; round += 1) await Promise.all(Array.from({ length: 20 }, one));
  for (const { invocation_id } of slow.splice(0)) home.send({ type: 'invocationresult', invocation_id, function_id: 'app::slow', result: {} });
  assert.equal(weir.gateways().length, 2);
  const client = await Subscriber.open(`${weir.streamUrl}/?token=${SECRET}`);
  open.push(client);
  await client.joined('after', 'g');
  await gate.close();
});

test('no token and no context is ever written to the log', async () => {
  const client = await Client.open(`${weir.streamUrl}/?token=${SECRET}`);
  await client.close();
  assert.ok(!weir.stderr.includes(SECRET) && !weir.stdout.includes(SECRET));
  assert.ok(!weir.stderr.includes('secret-context-77'));
});

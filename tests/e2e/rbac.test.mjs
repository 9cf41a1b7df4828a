// rbac.test.mjs -- worker listeners with rights: who gets in, what a session may call, register and see, hooks, middleware, the
// prefix. Two gateways; an unchanged iii-sdk where it shows what matters, raw frames elsewhere.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { Client, RawWorker } from './lib/clients.mjs';
import { codeOf as sdkCodeOf, openSdkWorker } from './lib/sdk.mjs';
import { Weir, runWeir, temporaryDirectory, until } from './lib/weir.mjs';

const PORTS = { auth: 0, hooks: 1, middleware: 2, anonymous: 3, redirected: 4, silent: 5, absent: 6 };
const FILE = `
workers:
  - name: iii-worker-manager
    config:
      host: 127.0.0.1
      port: 0
      rbac:
        auth_function_id: app::auth
        expose_functions:
          - match("stream::*")
          - match("app::public::*")
          - { match: "app::orders::*", namespace: orders }
          - metadata: { public: true, tier: match("gold*") }
  - name: iii-worker-manager
    config:
      host: 127.0.0.1
      port: 0
      rbac:
        auth_function_id: app::auth
        on_function_registration_function_id: app::on-function
        on_trigger_registration_function_id: app::on-trigger
        on_trigger_type_registration_function_id: app::on-type
        expose_functions: [ match("app::public::*") ]
  - name: iii-worker-manager
    config:
      host: 127.0.0.1
      port: 0
      middleware_function_id: app::middleware
      rbac: { auth_function_id: app::auth, expose_functions: [ match("app::public::*"), match("engine::functions::*") ] }
  - name: iii-worker-manager
    config: { host: 127.0.0.1, port: 0, rbac: { expose_functions: [ match("stream::get") ] } }
  - name: iii-worker-manager
    config: { host: 127.0.0.1, port: 0, middleware_function_id: app::middleware }
  - name: iii-worker-manager
    config: { host: 127.0.0.1, port: 0, rbac: { auth_function_id: app::silent } }
  - name: iii-worker-manager
    config: { host: 127.0.0.1, port: 0, rbac: { auth_function_id: app::not-there } }
`;

// What app::auth answers, by the query parameter `as`.
const RIGHTS = {
  guest: {},
  user: {
    allowed_functions: ['app::private', 'app::literal*'], forbidden_functions: ['app::public::secret', 'app::public::hidden::*'],
    namespaces: { team: ['app::*::read'] }, context: { user: 'u1' },
  },
  narrow: { allowed_functions: ['app::private'], allowed_trigger_types: ['stream'], allow_function_registration: false },
  provider: { allow_trigger_type_registration: true, context: [1] },
  prefixed: { function_registration_prefix: 'ui::7', namespaces: { default: ['ui::7::*'] } },
  admin: { namespaces: { default: ['*'] } },
  nothing: null,
  text: 'yes',
  list: { allowed_functions: 'app::private' },
  number: { namespaces: { default: [1] } },
  flag: { allow_function_registration: 'no' },
  prefix: { function_registration_prefix: 7 },
};

let weir;
let files;
let home; // a trusted worker on the plain port
let ports;
const open = [];
const authInputs = [];
const middlewareCalls = [];
const hookCalls = [];

const urlOf = (listener, as, rest = '') => `ws://127.0.0.1:${ports[PORTS[listener]]}/?as=${as}${rest}`;
const enter = async (listener, as, options) => {
  const worker = await RawWorker.open(urlOf(listener, as), options);
  open.push(worker);
  return worker;
};
const codeOf = async (worker, id, data = {}, fields) => (await worker.call(id, data, fields)).error?.code;
// A call goes through gateway and broker behind what its worker has registered, so that its answer says that this is known.
const known = (worker) => worker.call('engine::functions::list', {});
const listed = async (worker, id, payload = {}) => worker.result(id, payload);

before(async () => {
  files = temporaryDirectory();
  fs.writeFileSync(path.join(files, 'weir.yaml'), FILE);
  weir = await Weir.start({
    // Three tests wait for it to pass; in all others nobody may be so late.
    settings: { auth_timeout_ms: 10000 }, args: ['--config', path.join(files, 'weir.yaml')],
  });
  const [, list] = / listeners=(\S+)/.exec(weir.stdout);
  ports = list.split(',').map((address) => Number(address.split(':').at(-1)));
  home = await RawWorker.open(weir.workerUrl);
  home.register('app::auth', ({ data }) => {
    authInputs.push(data);
    const [as] = data.query_params.as;
    return as === 'throws' ? { error: { code: 'invocation_failed', message: 'the secret reason' } } : { result: RIGHTS[as] };
  });
  home.register('app::silent', () => undefined);
  home.register('app::private', ({ data }) => ({ result: { private: data } }));
  home.register('app::literal*', () => ({ result: 'literal' }));
  home.register('app::public::echo', ({ data }) => ({ result: data }));
  home.register('app::public::secret', () => ({ result: 'secret' }));
  home.register('app::public::hidden::a', () => ({ result: 'hidden' }));
  home.register('app::tagged', () => ({ result: 'tagged' }), { metadata: { public: true, tier: 'gold-plus' } });
  home.register('app::half-tagged', () => ({ result: 'tagged' }), { metadata: { public: true, tier: 'silver' } });
  home.register('app::middleware', ({ data, metadata }) => {
    middlewareCalls.push({ data, metadata });
    return data.payload?.fail ? { error: { code: 'LIMITED', message: 'not now' } } : { result: { through: data.function_id } };
  });
  for (const id of ['app::on-function', 'app::on-trigger', 'app::on-type']) {
    home.register(id, ({ data }) => {
      hookCalls.push({ id, data });
      const name = data.trigger_id ?? data.function_id ?? data.trigger_type_id;
      if (name.includes('deny')) return { result: false };
      if (name.includes('throw')) return { error: { code: 'invocation_failed', message: 'no' } };
      if (name.includes('never')) return undefined;
      if (!name.includes('rename')) return { result: {} };
      return { result: { function_id: 'renamed::fn', metadata: { by: 'hook' }, description: 'by the hook', trigger_type_id: 'renamed-type' } };
    });
  }
  await known(home);
});

after(async () => {
  await Promise.all([...open, home].map((worker) => worker?.close()));
  await weir?.stop();
  fs.rmSync(files, { recursive: true, force: true });
});

// covers: 0#4
test('the auth function is given headers, query and address, and a session follows', async () => {
  const worker = await RawWorker.open(`${urlOf('auth', 'guest')}&x=1&x=%20&&=0&y`, { headers: { 'X-Token': 'T one', 'User-Agent': 'test' } });
  open.push(worker);
  const input = authInputs.at(-1);
  assert.deepEqual(Object.keys(input).sort(), ['headers', 'ip_address', 'query_params']);
  assert.equal(input.ip_address, '127.0.0.1');
  assert.deepEqual(input.query_params, { as: ['guest'], x: ['1', '%20'], y: [''] });
  assert.equal(input.headers['x-token'], 'T one');
  assert.equal(input.headers['sec-websocket-version'], '13');
  assert.match(worker.registered.worker_id, /^[0-9a-f-]{36}$/);
  assert.match(worker.registered.reattach_token, /^[0-9a-f-]{36}$/);
  assert.equal(JSON.parse(worker.texts[0]).type, 'workerregistered');
});

// covers: 2.9#17, 2.3/2#8
for (const as of ['throws', 'nothing', 'text', 'list', 'number', 'flag', 'prefix']) test(`an auth answer that is no rights (${as}) is AUTH_ERROR and a Close`, async () => {
  const client = await Client.open(urlOf('auth', as));
  client.send({ type: 'invokefunction', invocation_id: 'x', function_id: 'stream::list_all', data: {} });
  await until(() => client.closed, 'the Close');
  assert.equal(client.texts.length, 1, client.texts.join('\n'));
  const message = JSON.parse(client.texts[0]);
  assert.deepEqual(Object.keys(message).sort(), ['error', 'type']);
  assert.equal(message.type, 'error');
  assert.equal(message.error.code, 'AUTH_ERROR');
  assert.equal(typeof message.error.message, 'string');
  assert.doesNotMatch(message.error.message, /secret reason/);
  assert.equal(client.closed.code, 1008);
});

// covers: 2.9#17
for (const listener of ['silent', 'absent']) test(`an auth function that is ${listener} is AUTH_ERROR, and Pings are answered meanwhile`, async () => {
  const client = await Client.open(urlOf(listener, 'guest'));
  if (listener === 'silent') await client.ping();
  await until(() => client.closed, 'the Close');
  assert.equal(JSON.parse(client.texts[0]).error.code, 'AUTH_ERROR');
  assert.equal(client.closed.code, 1008);
});

test('what is said before the rights are known is taken up afterwards, in order', async () => {
  const client = await Client.open(urlOf('auth', 'guest'));
  open.push(client);
  for (let i = 0; i < 5; i += 1) {
    client.send({ type: 'invokefunction', invocation_id: `early-${i}`, function_id: 'stream::set', data: { stream_name: 'early', group_id: 'g', item_id: 'i', data: i } });
  }
  await client.waitFor(() => client.texts.length === 6, 'registered and five answers');
  const [first, ...answers] = client.texts.map((text) => JSON.parse(text));
  assert.equal(first.type, 'workerregistered');
  assert.deepEqual(answers.map(({ result }) => [result.old_value, result.new_value]), [[null, 0], [0, 1], [1, 2], [2, 3], [3, 4]]);
});

// covers: 2.9#13
test('a call is decided by lists, namespaces and rules', async () => {
  const guest = await enter('auth', 'guest');
  const user = await enter('auth', 'user');
  const far = await RawWorker.open(weir.workerUrl);
  open.push(far);
  far.send({ type: 'invokefunction', function_id: 'engine::workers::register', action: { type: 'void' }, data: { name: 'far', namespace: 'orders' } });
  far.register('app::orders::one', () => ({ result: 'one' }));
  await known(far);
  const table = [
    // who, id, fields, error code
    [guest, 'app::public::echo', {}, undefined],
    [guest, 'app::private', {}, 'FORBIDDEN'],
    [guest, 'app::unknown', {}, 'FORBIDDEN'],
    [guest, 'app::public::unknown', {}, 'function_not_found'],
    [guest, 'app::public::echo', { namespace: 'team' }, 'FORBIDDEN'],
    [guest, 'app::orders::one', { namespace: 'orders' }, undefined],
    [guest, 'app::orders::one', {}, 'FORBIDDEN'],
    [guest, 'stream::list_all', {}, undefined],
    [guest, 'stream::list_all', { namespace: 'team' }, undefined],
    [guest, 'engine::workers::register', {}, undefined],
    [guest, 'engine::functions::list', {}, 'FORBIDDEN'],
    [guest, 'app::public::echo', { namespace: ' ' }, 'INVALID_NAMESPACE'],
    [user, 'app::private', {}, undefined],
    [user, 'app::literal*', {}, undefined],
    [user, 'app::literal-but-longer', {}, 'FORBIDDEN'],
    [user, 'app::private', { namespace: 'team' }, 'FORBIDDEN'],
    [user, 'app::public::echo', {}, undefined],
    [user, 'app::public::secret', {}, 'FORBIDDEN'],
    [user, 'app::public::hidden::a', {}, 'FORBIDDEN'],
    [user, 'app::x::read', { namespace: 'team' }, 'function_not_found'],
    [user, 'app::x::write', { namespace: 'team' }, 'FORBIDDEN'],
    [user, 'app::private', { action: { type: 'enqueue', queue: 'q' } }, 'enqueue_error'],
    [guest, 'app::private', { action: { type: 'enqueue', queue: 'q' } }, 'FORBIDDEN'],
  ];
  for (const [who, id, fields, code] of table) {
    assert.equal(await codeOf(who, id, {}, fields), code, `${who === user ? 'user' : 'guest'} ${id} ${JSON.stringify(fields)}`);
  }
});

// covers: 2.9#13
test('a refused call is answered even when it asked for no answer, and is not made', async () => {
  const guest = await enter('auth', 'guest');
  const before = home.invocations.length;
  const refusals = () => guest.texts.map((text) => JSON.parse(text)).filter(({ type }) => type === 'invocationresult');
  guest.send({ type: 'invokefunction', function_id: 'app::private', data: {} });
  await guest.waitFor(() => refusals().length === 1, 'a refusal with a made-up id');
  guest.send({ type: 'invokefunction', function_id: 'app::private', data: {}, action: { type: 'void' } });
  await guest.waitFor(() => refusals().length === 2, 'the same for a void call');
  for (const { invocation_id, function_id, error } of refusals()) {
    assert.match(invocation_id, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$/);
    assert.equal(function_id, 'app::private');
    assert.equal(error.code, 'FORBIDDEN');
  }
  // What is called later arrives later.
  assert.equal(await codeOf(guest, 'app::public::echo'), undefined);
  assert.deepEqual(home.invocations.slice(before).map(({ function_id }) => function_id), ['app::public::echo']);
});

test('without auth function nothing is granted but the rules, and both registrations are allowed', async () => {
  const worker = await enter('anonymous', 'nobody');
  assert.equal(await codeOf(worker, 'stream::get', { stream_name: 'a', group_id: 'g', item_id: 'i' }), undefined);
  assert.equal(await codeOf(worker, 'stream::set', { stream_name: 'a', group_id: 'g', item_id: 'i', data: 1 }), 'FORBIDDEN');
  worker.register('anonymous::fn', () => ({ result: 'anonymous' }));
  await until(async () => (await home.call('anonymous::fn', {})).result === 'anonymous', 'its function can be called');
});

// A metadata rule asks for the function as it is registered now.
test('a function is exposed by its metadata, for as long as it has it', async () => {
  const guest = await enter('auth', 'guest');
  assert.equal(await codeOf(guest, 'app::tagged'), undefined);
  assert.equal(await codeOf(guest, 'app::half-tagged'), 'FORBIDDEN');
  assert.equal(await codeOf(guest, 'app::not-registered'), 'FORBIDDEN');
  const answers = Promise.all(['app::tagged', 'stream::list_all', 'app::tagged', 'app::half-tagged'].map((id) => codeOf(guest, id)));
  assert.deepEqual(await answers, [undefined, undefined, undefined, 'FORBIDDEN']);
  home.register('app::tagged', () => ({ result: 'tagged' }), { metadata: { public: false, tier: 'gold' } });
  await home.ping();
  await until(async () => (await codeOf(guest, 'app::tagged')) === 'FORBIDDEN', 'the rule no longer matches');
  home.register('app::tagged', () => ({ result: 'tagged' }), { metadata: { public: true, tier: 'gold-plus' } });
  await until(async () => (await codeOf(guest, 'app::tagged')) === undefined, 'and matches again');
});

test('registrations without the right are dropped, and so are ids that steer the server', async () => {
  const narrow = await enter('auth', 'narrow');
  const guest = await enter('auth', 'guest');
  narrow.register('narrow::fn', () => ({ result: 1 }));
  guest.register('stream::set(chat)', () => ({ result: 1 }));
  guest.register('engine::queue::enqueue', () => ({ result: 1 }));
  guest.register('guest::fn', () => ({ result: 1 }));
  narrow.send({ type: 'registertriggertype', id: 'narrow-type', description: 'd' });
  assert.equal(await codeOf(narrow, 'app::private'), undefined); // behind what it has registered, through gateway and broker
  await until(async () => (await home.call('guest::fn', {})).result === 1, 'an ordinary function is there');
  const ids = (await listed(home, 'engine::functions::list', { include_internal: true })).functions.map(({ function_id }) => function_id);
  for (const id of ['narrow::fn', 'stream::set(chat)', 'engine::queue::enqueue']) assert.ok(!ids.includes(id), id);
  assert.ok(ids.includes('guest::fn'));
});

// covers: 2.11#4
test('a trigger is refused when its type, its function or its condition may not be used', async () => {
  const narrow = await enter('auth', 'narrow');
  const bind = async (id, fields) => {
    narrow.send({ type: 'registertrigger', id, trigger_type: 'stream', function_id: 'app::private', config: { stream_name: 's' }, message_type: 'registertrigger', ...fields });
    assert.equal(await codeOf(narrow, 'app::private'), undefined); // behind it, so that a refusal has come
    const answer = () => narrow.texts.map((text) => JSON.parse(text)).find((message) => message.type === 'triggerregistrationresult' && message.id === id);
    // A bind that is not forbidden may be answered otherwise or not at all.
    if (fields === undefined) return answer()?.error.code;
    await narrow.waitFor(answer, `the result of ${id}`);
    assert.equal(answer().trigger_type, fields.trigger_type ?? 'stream');
    assert.equal(answer().function_id, fields.function_id ?? 'app::private');
    return answer().error.code;
  };
  assert.equal(await bind('t-type', { trigger_type: 'stream:join' }), 'FORBIDDEN');
  assert.equal(await bind('t-function', { function_id: 'app::auth' }), 'FORBIDDEN');
  assert.equal(await bind('t-condition', { config: { stream_name: 's', condition_function_id: 'app::auth' } }), 'FORBIDDEN');
  assert.equal(await bind('t-space', { namespace: 'team' }), 'FORBIDDEN');
  assert.notEqual(await bind('t-fine'), 'FORBIDDEN');
});

test('a prefix files functions under it, and the worker is called back by its own names', async () => {
  const worker = await openSdkWorker(urlOf('auth', 'prefixed'));
  try {
    worker.registerFunction('shout', async ({ text }) => text.toUpperCase());
    await until(async () => (await home.call('ui::7::shout', { text: 'hey' })).result === 'HEY', 'called by the filed name');
    assert.equal((await home.call('shout', {})).error.code, 'function_not_found');
    assert.equal(await worker.trigger({ function_id: 'ui::7::shout', payload: { text: 'self' } }), 'SELF');
    assert.equal(await sdkCodeOf(worker.trigger({ function_id: 'app::auth', payload: {} })), 'FORBIDDEN');
  } finally {
    await worker.shutdown();
  }
  await until(async () => (await home.call('ui::7::shout', {})).error?.code === 'function_not_found', 'it goes with its worker');
});

test('a stream trigger of a prefixed worker calls it back by its own name', async () => {
  const worker = await openSdkWorker(urlOf('auth', 'prefixed'));
  const seen = [];
  try {
    worker.registerFunction('on-change', async (event) => void seen.push(event));
    worker.registerTrigger({ type: 'stream', function_id: 'on-change', config: { stream_name: 'prefixed', group_id: 'g' } });
    await until(async () => {
      await home.set('prefixed', 'g', 'i', seen.length);
      return seen.length > 0;
    }, 'an event arrives');
    assert.equal(seen[0].streamName, 'prefixed');
  } finally {
    await worker.shutdown();
  }
});

test('a prefixed worker unregisters and re-registers by its own names, and is told of conflicts by them', async () => {
  const one = await enter('auth', 'prefixed');
  const two = await enter('auth', 'prefixed');
  one.register('f', () => ({ result: 'one' }));
  await until(async () => (await home.call('ui::7::f', {})).result === 'one', 'it is there');
  two.register('f', () => ({ result: 'two' }));
  const rejection = await two.waitFor(() => two.texts.map((text) => JSON.parse(text)).find(({ type }) => type === 'registrationrejected'), 'the conflict');
  assert.equal(rejection.function_id, 'f');
  one.send({ type: 'unregisterfunction', id: 'f' });
  await until(async () => (await home.call('ui::7::f', {})).result === 'two', 'the stand-in has it now');
});

test('hooks see registrations with their context, and allow, rewrite or drop them', async () => {
  const worker = await enter('hooks', 'provider');
  hookCalls.length = 0;
  for (const id of ['hook::plain', 'hook::deny', 'hook::throw', 'hook::never', 'hook::rename']) {
    worker.register(id, ({ function_id }) => ({ result: function_id }), { description: 'mine', metadata: { m: 1 } });
  }
  await until(async () => (await home.call('renamed::fn', {})).result === 'hook::rename', 'renamed, and called by its own name', 60000);
  assert.equal((await home.call('hook::plain', {})).result, 'hook::plain');
  for (const id of ['hook::deny', 'hook::throw', 'hook::never', 'hook::rename']) assert.equal((await home.call(id, {})).error.code, 'function_not_found', id);
  assert.deepEqual(hookCalls.map(({ data }) => data.function_id), ['hook::plain', 'hook::deny', 'hook::throw', 'hook::never', 'hook::rename']);
  assert.deepEqual(hookCalls[0], { id: 'app::on-function', data: { function_id: 'hook::plain', description: 'mine', metadata: { m: 1 }, context: [1] } });
  const { functions } = await listed(home, 'engine::functions::list', { prefix: 'renamed::' });
  assert.equal(functions[0].description, 'by the hook');
  assert.deepEqual(functions[0].metadata, { by: 'hook' });
  worker.send({ type: 'unregisterfunction', id: 'hook::rename' });
  await until(async () => (await home.call('renamed::fn', {})).error?.code === 'function_not_found', 'unregistered by its own name');
});

test('what follows a registration waits for its hook', async () => {
  const worker = await enter('hooks', 'provider');
  hookCalls.length = 0;
  worker.register('wait::never', () => ({ result: 1 }));
  const answer = worker.call('app::public::echo', { n: 1 });
  let isAnswered = false;
  answer.then(() => (isAnswered = true));
  await until(() => hookCalls.length === 1, 'the hook is asked');
  await worker.ping();
  assert.equal(isAnswered, false);
  assert.equal((await answer).result.n, 1);
});

test('triggers and trigger types have hooks of their own', async () => {
  const worker = await enter('hooks', 'provider');
  hookCalls.length = 0;
  worker.send({ type: 'registertrigger', id: 'trigger-1', trigger_type: 'stream', function_id: 'app::public::echo', config: { stream_name: 's' }, metadata: { k: 1 } });
  worker.send({ type: 'registertriggertype', id: 'deny-type', description: 'mine' });
  worker.send({ type: 'registertrigger', id: 'deny-1', trigger_type: 'stream', function_id: 'app::public::echo', config: { stream_name: 's' } });
  worker.send({ type: 'registertrigger', id: 'forbidden-1', trigger_type: 'stream', function_id: 'app::private', config: { stream_name: 's' } });
  await worker.waitFor(() => worker.texts.some((text) => JSON.parse(text).id === 'forbidden-1'), 'the forbidden one is refused, without its hook');
  assert.deepEqual(hookCalls.find(({ data }) => data.trigger_id === 'trigger-1'), {
    id: 'app::on-trigger',
    data: { trigger_id: 'trigger-1', trigger_type: 'stream', function_id: 'app::public::echo', config: { stream_name: 's' }, metadata: { k: 1 }, context: [1] },
  });
  assert.deepEqual(hookCalls.find(({ data }) => data.trigger_type_id), { id: 'app::on-type', data: { trigger_type_id: 'deny-type', description: 'mine', context: [1] } });
  assert.ok(!worker.texts.some((text) => JSON.parse(text).id === 'deny-1'), 'a dropped registration is not answered');
  assert.ok(!hookCalls.some(({ data }) => data.trigger_id === 'forbidden-1'));
});

test('every allowed call goes to the middleware, the server\'s own engine functions do not', async () => {
  const worker = await enter('middleware', 'user');
  middlewareCalls.length = 0;
  assert.deepEqual(await worker.call('app::public::echo', { a: [1] }, { metadata: { m: 1 } }), { result: { through: 'app::public::echo' } });
  const [{ data, metadata }] = middlewareCalls;
  const { _caller_worker_id, ...input } = data;
  assert.equal(_caller_worker_id, worker.registered.worker_id);
  assert.deepEqual(input, { function_id: 'app::public::echo', payload: { a: [1] }, action: null, context: { user: 'u1' }, namespace: 'default' });
  assert.deepEqual(metadata, { m: 1 });
  assert.equal((await worker.call('app::public::echo', { fail: true })).error.code, 'LIMITED');
  assert.equal(await codeOf(worker, 'app::auth'), 'FORBIDDEN');
  assert.ok(Array.isArray((await listed(worker, 'engine::functions::list')).functions));
  worker.send({ type: 'invokefunction', function_id: 'app::public::echo', data: { v: 1 }, action: { type: 'void' } });
  await until(() => middlewareCalls.length === 3, 'a void call goes there too');
  assert.deepEqual(middlewareCalls[2].data.action, { type: 'void' });
  assert.ok(middlewareCalls.every((call) => !call.data.function_id.startsWith('engine::')));
});

test('middleware without rbac: everything is allowed and goes through it', async () => {
  const worker = await enter('redirected', 'anyone');
  middlewareCalls.length = 0;
  assert.deepEqual(await worker.call('app::auth', 7, { namespace: 'far' }), { result: { through: 'app::auth' } });
  assert.deepEqual(await worker.call('stream::set', { s: 1 }), { result: { through: 'stream::set' } });
  assert.deepEqual(middlewareCalls[0].data.payload, 7);
  assert.deepEqual(middlewareCalls[0].data.context, {});
  assert.deepEqual(middlewareCalls[0].data.namespace, 'far');
});

test('listings show a session what it may call', async () => {
  const worker = await enter('middleware', 'user');
  const { functions } = await listed(worker, 'engine::functions::list');
  const ids = functions.map(({ function_id }) => function_id);
  assert.ok(ids.includes('app::private') && ids.includes('app::public::echo'), ids.join());
  assert.ok(!ids.some((id) => id === 'app::auth' || id === 'app::public::secret' || id.startsWith('stream::')), ids.join());
  const admin = await enter('auth', 'admin');
  const all = (await listed(admin, 'engine::functions::list')).functions.map(({ function_id }) => function_id);
  assert.ok(all.includes('app::auth') && all.includes('stream::set') && all.includes('app::public::secret'));
});

test('details of functions: allowed, forbidden, and many at once', async () => {
  const worker = await enter('middleware', 'user');
  assert.equal((await worker.result('engine::functions::info', { function_id: 'app::private' })).function_id, 'app::private');
  assert.equal(await codeOf(worker, 'engine::functions::info', { function_id: 'app::auth' }), 'FORBIDDEN');
  const { functions } = await worker.result('engine::functions::info', { function_ids: ['app::private', 'app::auth', 'app::public::none'] });
  assert.deepEqual(functions.map(({ function_id, error }) => [function_id, error]),
    [['app::private', undefined], ['app::auth', 'forbidden'], ['app::public::none', 'not_found']]);
});

test('both gateways serve every listener, also after a restart', async () => {
  const pids = weir.gateways();
  const sessions = await weir.openOnEach(() => enter('auth', 'guest'));
  for (const [client] of sessions.values()) assert.equal(await codeOf(client, 'app::private'), 'FORBIDDEN');
  const [victim] = [...weir.byGateway([home])].find(([, held]) => held.length === 0); // the auth function stays
  process.kill(victim, 'SIGKILL');
  const [fresh] = (await weir.gatewaysAfter(victim)).filter((pid) => !pids.includes(pid));
  await until(() => /event=restarted process=gateway/.test(weir.stderr), 'it is ready');
  const client = await weir.openOn(fresh, () => enter('auth', 'guest'));
  assert.equal(await codeOf(client, 'app::private'), 'FORBIDDEN');
  assert.equal(await codeOf(client, 'app::public::echo'), undefined);
});

test('a broker that dies with a question open: the worker is sent away to come back, no registration gets lost', async () => {
  const worker = await enter('hooks', 'provider');
  const waiting = await Client.open(urlOf('silent', 'guest'));
  const onEach = [...(await weir.openOnEach(() => RawWorker.open(weir.workerUrl))).values()].flat();
  open.push(...onEach);
  hookCalls.length = 0;
  worker.register('lost::never', () => ({ result: 1 }));
  await until(() => hookCalls.length === 1, 'the hook is asked');
  const broker = weir.broker();
  process.kill(broker, 'SIGKILL');
  await until(() => worker.closed && waiting.closed, 'both are sent away');
  assert.equal(worker.closed.code, 1012);
  assert.equal(JSON.parse(waiting.texts[0]).error.code, 'AUTH_ERROR');
  await weir.brokerAfter(broker);
  await until(async () => (await home.call('app::public::echo', {})).error === undefined, 'functions are known again');
  // What a gateway asks before it has noticed is lost with the old broker, and refuses whoever comes in.
  for (const each of onEach) await until(async () => (await known(each)).error === undefined, 'every gateway has the new broker');
  assert.equal(await codeOf(await enter('auth', 'guest'), 'app::public::echo'), undefined);
});

test('what is refused is counted', async () => {
  const sum = async (name) => {
    const text = await weir.metrics();
    return [...text.matchAll(new RegExp(`^weir_gateway_${name}_total\\S* (\\d+)$`, 'gm'))].reduce((all, [, count]) => all + Number(count), 0);
  };
  // The figures of the other gateway may be a second old.
  for (const name of ['access_refused', 'auth_refused', 'auth_failed']) await until(async () => (await sum(name)) > 0, `${name} is counted`);
});

test('a listener whose port is taken, or is another\'s, ends the start with a reason', async () => {
  const file = path.join(files, 'bad.yaml');
  fs.writeFileSync(file, 'workers:\n  - name: iii-worker-manager\n    config: { port: 49134, rbac: {} }\n');
  const { code, output } = await runWeir(['serve', '--config', file, '--set', `run_dir=${files}`]);
  assert.ok(code > 0);
  assert.match(output, /line 3 .*`worker_port` both use port 49134/);
  fs.writeFileSync(file, `workers:\n  - name: iii-worker-manager\n    config: { host: 127.0.0.1, port: ${ports[0]}, rbac: {} }\n`);
  const taken = await runWeir(['serve', '--config', file, '--set', `run_dir=${files}`, '--set', 'worker_port=0', '--set', 'stream_port=0', '--set', 'admin=false', '--set', 'store_bytes=64MiB']);
  assert.ok(taken.code > 0);
  assert.match(taken.output, new RegExp(`port ${ports[0]} .*in use.*configuration file`));
});

// never-answers.test.mjs -- handlers that never answer use up no table: not for calls the server makes, not for void calls,
// not for callers that have gone.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Weir, delay, until } from './lib/weir.mjs';
import { openSdkWorker } from './lib/sdk.mjs';

let weir;
let worker;
let asked = 0;
const groups = new Set(); // of the events it was asked about
before(async () => {
  weir = await Weir.start({ settings: { trigger_timeout_ms: 300 } });
  worker = await openSdkWorker(weir.workerUrl);
  worker.registerFunction('never::answers', (data) => {
    asked += 1;
    groups.add(data?.groupId);
    return new Promise(() => {});
  });
  worker.registerFunction('echo', async (data) => data);
});
after(async () => {
  await worker?.shutdown();
  await weir?.stop();
});

async function pending() {
  const text = await weir.metrics();
  return Number(/^weir_broker_calls_pending (\d+)$/m.exec(text)[1]);
}

test('events whose handler never answers are given up one after the other, everywhere', async () => {
  worker.registerTrigger({ type: 'stream', function_id: 'never::answers', config: { stream_name: 'quiet' } });
  const set = (group_id) => worker.trigger({ function_id: 'stream::set', payload: { stream_name: 'quiet', group_id, item_id: 'i', data: 1 } });
  await until(async () => {
    await set('first');
    await delay(100);
    return groups.has('first');
  }, 'the handler is asked');
  const others = Array.from({ length: 20 }, (_, n) => `group ${n}`);
  for (const group of others) await set(group);
  await until(() => others.every((group) => groups.has(group)), 'it is asked again though it has not answered');
  await delay(1500); // the gauge is renewed once a second
  await until(async () => (await pending()) === 0, 'no call is pending');
});

test('a caller that goes leaves nothing pending, and the executor serves on', async () => {
  const caller = await openSdkWorker(weir.workerUrl);
  const before = asked;
  for (let n = 0; n < 200; n += 1) caller.trigger({ function_id: 'never::answers', payload: n }).catch(() => {});
  await until(() => asked >= before + 200, 'all are asked');
  await until(async () => (await pending()) >= 200, 'all are pending');
  await caller.shutdown();
  await until(async () => (await pending()) === 0, 'no call is pending');
  assert.equal(await worker.trigger({ function_id: 'echo', payload: 'still here' }), 'still here');
});

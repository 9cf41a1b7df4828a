// flood.test.mjs -- a worker that sends more than it waits for: order is kept, memory is bounded, others are served.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import { after, before, test } from 'node:test';
import { Weir, isSanitized, until } from './lib/weir.mjs';
import { RawWorker, Subscriber } from './lib/clients.mjs';

let weir;
before(async () => {
  weir = await Weir.start();
});
after(async () => {
  await weir?.stop();
});

const memoryOf = (pid) => Number(/VmRSS:\s+(\d+)/.exec(fs.readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) * 1024;

test('100,000 void sets in one go: every event in order, bounded memory, others answered meanwhile', async () => {
  const total = isSanitized ? 20000 : 100000;
  const flooder = await RawWorker.open(weir.workerUrl);
  const other = await RawWorker.open(weir.workerUrl);
  const subscriber = await Subscriber.open(weir.streamUrl);
  await subscriber.joined('flood', 'g');
  const before = Math.max(...[...weir.gateways(), weir.broker()].map(memoryOf));
  const sent = (async () => {
    for (let n = 0; n < total; n += 1) {
      flooder.send({
        type: 'invokefunction', function_id: 'stream::set', action: { type: 'void' },
        data: { stream_name: 'flood', group_id: 'g', item_id: `i${n % 100}`, data: n },
      });
      if (n % 1000 === 0) await new Promise(setImmediate);
    }
  })();
  for (let n = 0; n < 20; n += 1) assert.equal((await other.set('calm', 'g', 'i', n)).error, undefined);
  await sent;
  await until(() => subscriber.envelopes.length >= total + 1, 'every event', 120000);
  const [sync, ...events] = subscriber.envelopes;
  assert.equal(sync.event.type, 'sync');
  events.forEach((envelope, n) => {
    assert.equal(envelope.seq, n + 1);
    assert.equal(envelope.event.data, n);
  });
  const grown = Math.max(...[...weir.gateways(), weir.broker()].map(memoryOf)) - before;
  assert.ok(grown < 300 * 1024 * 1024, `memory grew by ${grown} bytes`);
  for (const client of [flooder, other, subscriber]) await client.close();
});

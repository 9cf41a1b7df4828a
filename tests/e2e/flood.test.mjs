// flood.test.mjs -- a worker that sends more than it waits for: order is kept, memory is bounded, others are served.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import { test } from 'node:test';
import { RawWorker } from './lib/clients.mjs';
import { Follower } from './lib/follower.mjs';
import { LIMIT_MS, delay, isSanitized, withWeir } from './lib/weir.mjs';

const TOTAL = isSanitized ? 20000 : 100000;
const ITEMS = 100;
const CALM = 20;
const BUFFERED_BYTES = 1 << 20;

const memoryOf = (pid) => Number(/VmRSS:\s+(\d+)/.exec(fs.readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) * 1024;
const idOf = (n) => `i${n % ITEMS}`;

// Set n is event n + 1: what this one gets has to be just that, event by event, or the state of all items at the end of a jump. It
// may be too slow for all of them, and is told then (lib/follower.mjs).
class FloodFollower extends Follower {
  apply(envelope) {
    super.apply(envelope);
    const { event, id, seq } = envelope;
    if (event.type !== 'sync' && (event.data.n !== seq - 1 || id !== idOf(seq - 1))) this.wrong('another set', envelope);
    if ((event.type === 'sync' || envelope.conflated !== undefined) && this.since === null) this.#compareState(envelope);
  }

  #compareState(envelope) {
    const known = Math.min(ITEMS, this.seq);
    if (this.items.size !== known) this.wrong(`${this.items.size} items instead of ${known}`, envelope);
    for (let n = this.seq - known; n < this.seq; n += 1) {
      if (this.items.get(idOf(n))?.n !== n) this.wrong(`set ${n} is not there`, envelope);
    }
  }
}

test('100,000 void sets in one go: all applied in order, every jump told, bounded memory, others answered meanwhile', async () => {
  await withWeir({}, async (weir, later) => {
    const flooder = later(await RawWorker.open(weir.workerUrl));
    const other = later(await RawWorker.open(weir.workerUrl));
    const follower = later(await (await FloodFollower.open(weir.streamUrl)).joined('flood', 'g'));
    const processes = [...weir.gateways(), weir.broker()];
    const before = Math.max(...processes.map(memoryOf));
    // The flood does not end before others have been answered, and is bounded all the same.
    let sent = 0;
    let answered = 0;
    const flood = (async () => {
      for (; sent < TOTAL || (answered < CALM && sent < 40 * TOTAL); sent += 1) {
        flooder.send({
          type: 'invokefunction', function_id: 'stream::set', action: { type: 'void' },
          data: { stream_name: 'flood', group_id: 'g', item_id: idOf(sent), data: { id: idOf(sent), n: sent } },
        });
        if (sent % 1000 === 0) await new Promise(setImmediate);
        while (sent >= TOTAL && flooder.socket.bufferedAmount > BUFFERED_BYTES) await delay(1);
      }
      return answered;
    })();
    for (; answered < CALM; answered += 1) assert.equal((await other.set('calm', 'g', 'i', answered)).error, undefined);
    assert.equal(await flood, CALM, 'others are answered while the flood goes on');
    await follower.waitFor(() => follower.problem !== null || (follower.seq === sent && follower.since === null), 'the end of the flood', 4 * LIMIT_MS);
    assert.equal(follower.problem, null);
    const last = Array.from({ length: ITEMS }, (_, index) => sent - ITEMS + index).map((n) => ({ id: idOf(n), n }));
    assert.deepEqual(new Map(follower.items), new Map(last.map((value) => [value.id, value])), 'the newest value of every item');
    const list = await other.result('stream::list', { stream_name: 'flood', group_id: 'g' });
    assert.deepEqual(new Map(list.map((value) => [value.id, value])), follower.items);
    assert.equal(list.length, ITEMS);
    const grown = Math.max(...processes.map(memoryOf)) - before;
    assert.ok(grown < 300 * 1024 * 1024, `memory grew by ${grown} bytes`);
  });
});

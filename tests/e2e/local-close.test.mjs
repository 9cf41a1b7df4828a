// local-close.test.mjs -- a worker on the unix socket that closes without having read its answers: what it said before counts.
import assert from 'node:assert/strict';
import net from 'node:net';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { Weir, delay, until } from './lib/weir.mjs';
import { openSdkWorker } from './lib/sdk.mjs';

const HELLO = 4;
const CALL = 30;

let weir;
let worker;
before(async () => {
  weir = await Weir.start();
  worker = await openSdkWorker(weir.workerUrl);
});
after(async () => {
  await worker?.shutdown();
  await weir?.stop();
});

// A frame as in shm/wire.h; fields are numbers below 128, strings (as bin 32) or null.
function frame(type, id, fields) {
  const parts = [Buffer.from([0x90 + fields.length])];
  for (const field of fields) {
    if (field === null) parts.push(Buffer.from([0xc0]));
    else if (typeof field === 'number') parts.push(Buffer.from([field]));
    else {
      const head = Buffer.alloc(5, 0xc6);
      head.writeUInt32BE(Buffer.byteLength(field), 1);
      parts.push(head, Buffer.from(field));
    }
  }
  const body = Buffer.concat(parts);
  const header = Buffer.alloc(16);
  header.writeUInt32LE(12 + body.length, 0);
  header.writeUInt16LE(type, 4);
  header.writeUInt32LE(id, 8);
  return Buffer.concat([header, body]);
}

const set = (id, item) => frame(CALL, id, [0, null, 'stream::set',
  JSON.stringify({ stream_name: 'closing', group_id: 'g', item_id: item, data: item }), null, null, null]);

test('calls made right before a close with unread answers are carried out', async () => {
  const rounds = 40;
  for (let round = 0; round < rounds; round += 1) {
    const socket = net.connect(path.join(weir.runDir, 'weir.sock'));
    socket.pause();
    socket.on('error', () => {});
    socket.write(Buffer.concat([frame(HELLO, 0, [1, 'closer', '{}', null, null, null]),
      ...Array.from({ length: 50 }, (_, n) => set(n + 1, `answered ${n}`))]));
    await delay(2);
    await new Promise((resolve) => socket.write(Buffer.concat(Array.from({ length: 50 }, (_, n) => set(0, `void ${round} ${n}`))), resolve));
    socket.destroy();
  }
  const list = () => worker.trigger({ function_id: 'stream::list', payload: { stream_name: 'closing', group_id: 'g' } });
  await until(async () => (await list()).length >= 50 * rounds + 50, 'every call is carried out').catch(async () => {
    assert.equal((await list()).length, 50 * rounds + 50);
  });
});

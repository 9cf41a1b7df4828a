// lib/storm_worker.mjs -- a worker process for storm.test.mjs, which kills and stops it: keeps the stream `kept`, handles the
// events of `storm` and says on standard output, one JSON line each, what it was given.
//
//   node storm_worker.mjs URL GROUP...
import fs from 'node:fs';
import { createStream } from 'iii-sdk/helpers';
import { openSdkWorker } from './sdk.mjs';

const [url, ...groups] = process.argv.slice(2);
// At once and whole: what has been said outlives a SIGKILL.
const say = (line) => fs.writeSync(1, `${JSON.stringify(line)}\n`);

class Kept {
  groups = new Map();
  of(id) {
    if (!this.groups.has(id)) this.groups.set(id, new Map());
    return this.groups.get(id);
  }
  get = async ({ group_id, item_id }) => this.of(group_id).get(item_id) ?? null;
  set = async ({ group_id, item_id, data }) => {
    const old_value = this.of(group_id).get(item_id) ?? null;
    this.of(group_id).set(item_id, data);
    return { old_value, new_value: data };
  };
  delete = async ({ group_id, item_id }) => {
    const old_value = this.of(group_id).get(item_id) ?? null;
    this.of(group_id).delete(item_id);
    return { old_value };
  };
  list = async ({ group_id }) => [...this.of(group_id).values()];
  listGroups = async () => [...this.groups.keys()];
}

// The parent is gone: nobody wants anything any more.
process.stdin.on('end', () => process.exit(0)).resume();
const worker = await openSdkWorker(url);
createStream(worker, 'kept', new Kept());
for (const group of groups) {
  const function_id = `storm::on::${process.pid}::${group}`;
  worker.registerFunction(function_id, async ({ event, seq, epoch, groupId }) => {
    say({ group: groupId, epoch, seq, type: event.type });
    return null;
  });
  worker.registerTrigger({ type: 'stream', function_id, config: { stream_name: 'storm', group_id: group } });
}
say({ ready: process.pid });

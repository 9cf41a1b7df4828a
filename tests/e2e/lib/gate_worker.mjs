// lib/gate_worker.mjs -- an iii-sdk worker in a process of its own, to be killed: a stream:join handler that denies group `no`.
//
//   node gate_worker.mjs WORKER_URL [STREAM_NAME]
//
// A line on stdin has it unregister its trigger. Prints a line when each has been sent.
import { openSdkWorker } from './sdk.mjs';

const [url, stream] = process.argv.slice(2);
const worker = await openSdkWorker(url);
worker.registerFunction('app::gate', async ({ group_id }) => ({ unauthorized: group_id === 'no' }));
const trigger = worker.registerTrigger({ type: 'stream:join', function_id: 'app::gate', config: stream === undefined ? {} : { stream_name: stream } });
console.log('registered');
process.stdin.once('data', () => {
  trigger.unregister();
  console.log('unregistered');
});

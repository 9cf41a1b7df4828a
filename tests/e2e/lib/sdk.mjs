// lib/sdk.mjs -- iii-sdk workers for tests: telemetry off (one per process), names told apart, shut down together.
import { registerWorker } from 'iii-sdk';
import { until } from './weir.mjs';

// The library says a line at each connect and reconnect; a test's output should not.
console.debug = () => {};

export async function openSdkWorker(url, options = {}) {
  const worker = registerWorker(url, { otel: { enabled: false }, enableMetricsReporting: false, invocationTimeoutMs: 15000, ...options });
  await until(() => worker.workerId, 'the worker is registered');
  return worker;
}

// Which local port the worker's socket has, to ask which gateway it is on.
export const localPortOf = (worker) => worker.ws?._socket?.localPort;

// As Client, for Weir.openOnEach().
export async function openSdkClient(url, options) {
  const worker = await openSdkWorker(url, options);
  return { worker, localPort: localPortOf(worker), remotePort: worker.ws?._socket?.remotePort, close: () => worker.shutdown() };
}

export async function codeOf(promise) {
  try {
    await promise;
  } catch (error) {
    return error.code;
  }
  return undefined;
}

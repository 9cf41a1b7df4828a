// lib/pair.mjs -- a server with two gateways and an SDK worker on each, for files whose tests show the same across gateways; and
// all that such a test opens, closed with it.
import { RawWorker } from './clients.mjs';
import { openSdkClient } from './sdk.mjs';
import { Weir } from './weir.mjs';

export class Pair {
  #open = [];
  weir;
  here; // an SDK worker on one gateway
  there; // and one on the other

  async start() {
    this.weir = await Weir.start();
    const found = await this.weir.openOnEach(() => openSdkClient(this.weir.workerUrl));
    [[this.here], [this.there]] = [...found.values()].map((clients) => clients.map(({ worker }) => worker));
    return this;
  }

  async stop() {
    await Promise.all([this.here, this.there].map((worker) => worker?.shutdown()));
    await Promise.all(this.#open.map((worker) => worker.close()));
    await this.weir?.stop();
  }

  // Something with a close(), for when the tests are done.
  closeLater(worker) {
    this.#open.push(worker);
    return worker;
  }

  async openRaw() {
    return this.closeLater(await RawWorker.open(this.weir.workerUrl));
  }

  // A raw worker on each gateway.
  async openRawOnEach() {
    return [...(await this.weir.openOnEach(() => this.openRaw())).values()].flat();
  }
}

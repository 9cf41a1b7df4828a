// lib/weir.mjs -- starts and stops a real weir, and looks at its processes.
//
// Binaries come from $WEIR_BIN (a directory) or build/bin. Every server gets its own temporary run directory and free
// ports; stop() demands exit status 0, no process left behind, and no sanitizer report.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { webcrypto } from 'node:crypto';

// Node 18 has no global crypto; the libraries under test expect one.
globalThis.crypto ??= webcrypto;

const here = path.dirname(fileURLToPath(import.meta.url));
export const binDir = path.resolve(process.env.WEIR_BIN ?? path.join(here, '../../../build/bin'));
export const weirProgram = path.join(binDir, 'weir');

// Sanitized binaries are several times slower; sizes of load tests follow.
export const isSanitized = fs.readFileSync(weirProgram).includes('__asan_init');

// For connections to reach the gateway they are meant for. A gateway lives before it listens, and until then every one goes to the
// others: a number of attempts alone would be used up by then.
const OPEN_ATTEMPTS = 400;
const OPEN_LIMIT_MS = 60000;

// For whatever is to happen: a machine may be slow, and any process on it may stand still for seconds.
export const LIMIT_MS = 60000;

// Times a server has by default within which a process that stands still for seconds, or this one, would be given up. A test that
// wants one of them to pass sets it.
const PATIENT = {
  write_wait_ms: 60000, handshake_timeout_ms: 60000, auth_timeout_ms: 60000, gate_timeout_ms: 60000, custom_timeout_ms: 60000,
};

const SANITIZER_REPORT = /(Address|Leak|Thread|UndefinedBehavior)Sanitizer|runtime error:/;

export const delay = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Servers that run. What they have logged is told by a failure, which may not come again.
const running = new Set();
const LOG_TAIL = 4000;

// An AssertionError that says what did not happen, and what the servers logged last.
export function failure(message) {
  const logs = [...running].map(({ stderr }) => `\nlogged by weir:\n${stderr.slice(-LOG_TAIL)}`);
  return new assert.AssertionError({ message: message + logs.join('') });
}

// Waits until `predicate` is truthy and returns its value; a test that never gets there fails with `what`.
export async function until(predicate, what, limitMs = LIMIT_MS) {
  const end = Date.now() + limitMs;
  for (;;) {
    const value = await predicate();
    if (value) return value;
    if (Date.now() > end) throw failure(`never happened: ${what}`);
    await delay(10);
  }
}

// Below the range from which the kernel takes ports for outgoing connections, so that none of them takes it first. Runs beside
// each other have a range each in $WEIR_TEST_PORTS.
const [firstPort, lastPort] = (process.env.WEIR_TEST_PORTS ?? '15000-29999').split('-').map(Number);
const given = new Set();

export async function freePort() {
  for (;;) {
    const port = firstPort + Math.floor(Math.random() * (lastPort - firstPort + 1));
    if (given.has(port)) continue;
    given.add(port);
    const isFree = await new Promise((resolve) => {
      const server = net.createServer();
      server.once('error', () => resolve(false));
      server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
    });
    if (isFree) return port;
  }
}

function readText(file) {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}

// A pid and its start time: pids are reused, the pair is not.
function identify(pid) {
  const stat = readText(`/proc/${pid}/stat`);
  return stat === '' ? null : { pid, start: stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] };
}

// A process that has ended is in the list until its parent has asked for its status. It has not while one of its threads still holds
// its files, and a directory's lock with them, though the first one has ended.
function isZombie(pid) {
  try {
    return fs.readdirSync(`/proc/${pid}/task`).every((task) => !/^State:\s+[^ZX\s]/m.test(readText(`/proc/${pid}/task/${task}/status`)));
  } catch {
    return true;
  }
}

// SIGSTOP, and until it has: on another core a process may run on for a moment.
export async function standStill(pid) {
  process.kill(pid, 'SIGSTOP');
  await until(() => /^State:\s+[TZX]/m.test(readText(`/proc/${pid}/status`)), `process ${pid} stands still`);
}

function isAlive({ pid, start }) {
  const now = identify(pid);
  return now !== null && now.start === start && !isZombie(pid);
}

// By everybody's parent, in one look: the kernel's list of children may miss one while another comes or goes (proc(5)).
function descendantsOf(pid) {
  const children = new Map();
  for (const name of fs.readdirSync('/proc').filter((each) => /^\d+$/.test(each))) {
    const stat = readText(`/proc/${name}/stat`);
    const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
    if (children.has(parent)) children.get(parent).push(Number(name));
    else children.set(parent, [Number(name)]);
  }
  const below = (one) => (children.get(one) ?? []).flatMap((child) => [child, ...below(child)]);
  return below(pid);
}

const portOf = (address) => parseInt(address.split(':')[1], 16);

// The other ends of TCP connections from our `localPort`, as the links in /proc/PID/fd name them. Whole tables are long when many
// connections have just ended, so that only lines with that port are taken apart. Connections to different ports may come from one
// and the same: `remotePort` says which is meant.
function socketsFrom(localPort, remotePort) {
  const sockets = new Set();
  const mark = `:${localPort.toString(16).toUpperCase().padStart(4, '0')} `;
  for (const table of ['/proc/net/tcp', '/proc/net/tcp6']) {
    const text = readText(table);
    for (let at = text.indexOf(mark); at >= 0; at = text.indexOf(mark, at + 1)) {
      const fields = text.slice(text.lastIndexOf('\n', at) + 1, text.indexOf('\n', at)).trim().split(/\s+/);
      const isMeant = remotePort === undefined || portOf(fields[1]) === remotePort;
      if (isMeant && fields[2].endsWith(mark.trimEnd())) sockets.add(`socket:[${fields[9]}]`);
    }
    if (sockets.size > 0) break;
  }
  return sockets;
}

export function temporaryDirectory() {
  return fs.mkdtempSync(path.join(os.tmpdir(), 'weir-e2e-'));
}

// Runs `weir ARGUMENTS` to its end.
export function runWeir(args, { input = '', env = {}, limitMs = LIMIT_MS } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(weirProgram, args, { env: { ...process.env, ...env }, stdio: ['pipe', 'pipe', 'pipe'] });
    let stdout = '';
    let stderr = '';
    child.stdout.on('data', (chunk) => (stdout += chunk));
    child.stderr.on('data', (chunk) => (stderr += chunk));
    child.stdin.on('error', () => {});
    child.stdin.end(input);
    const timer = setTimeout(() => child.kill('SIGKILL'), limitMs);
    child.once('error', reject);
    child.once('close', (code, signal) => {
      clearTimeout(timer);
      resolve({ code, signal, stdout, stderr, output: stdout + stderr });
    });
  });
}

export class Weir {
  #seen = new Map();
  stdout = '';
  stderr = '';
  exit = null;

  // settings: name -> value of --set; arguments: further command line.
  static async start({ settings = {}, gateways = 2, args = [], env = {}, host = '127.0.0.1' } = {}) {
    const weir = new Weir();
    weir.ownsRunDir = settings.run_dir === undefined;
    weir.runDir = settings.run_dir ?? temporaryDirectory();
    weir.adminPort = await freePort();
    weir.host = host;
    const all = {
      run_dir: weir.runDir, stream_host: host, worker_host: host, stream_port: 0, worker_port: 0,
      admin: `127.0.0.1:${weir.adminPort}`, store_bytes: '256MiB', ...PATIENT, ...settings,
    };
    const sets = Object.entries(all).flatMap(([name, value]) => ['--set', `${name}=${value}`]);
    weir.process = spawn(weirProgram, ['serve', ...sets, '--gateways', String(gateways), ...args], {
      env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'],
    });
    weir.exited = new Promise((resolve) => {
      weir.process.once('error', (error) => resolve((weir.exit = { error })));
      weir.process.once('close', (code, signal) => resolve((weir.exit = { code, signal })));
    });
    running.add(weir);
    weir.exited.then(() => running.delete(weir));
    weir.process.stdout.on('data', (chunk) => (weir.stdout += chunk));
    weir.process.stderr.on('data', (chunk) => (weir.stderr += chunk));
    const ready = await until(
      () => weir.exit ?? /^weir: ready stream=(\S+):(\d+) worker=(\S+):(\d+) gateways=(\d+)/m.exec(weir.stdout + weir.stderr),
      'the ready line',
    );
    if (weir.exit) assert.fail(`weir serve ended early: ${JSON.stringify(weir.exit)}\n${weir.stdout}${weir.stderr}`);
    weir.streamPort = Number(ready[2]);
    weir.workerPort = Number(ready[4]);
    weir.gatewayCount = Number(ready[5]);
    weir.streamUrl = `${settings.tls_certificate ? 'wss' : 'ws'}://${host}:${weir.streamPort}`;
    weir.workerUrl = `ws://${host}:${weir.workerPort}`;
    weir.workerTarget = `${host}:${weir.workerPort}`;
    weir.note();
    return weir;
  }

  // Remembers every process seen so far, so that stop() can demand that all are gone; returns those of now.
  note() {
    const pids = descendantsOf(this.process.pid);
    for (const pid of pids) {
      const identity = identify(pid);
      if (identity) this.#seen.set(`${pid}:${identity.start}`, identity);
    }
    return pids;
  }

  #pids(name) {
    return this.note().filter((pid) => readText(`/proc/${pid}/comm`).trim() === name && !isZombie(pid));
  }

  gateways() {
    return this.#pids('weir-gateway');
  }

  // What a process was started with.
  argumentsOf(pid) {
    return readText(`/proc/${pid}/cmdline`).split('\0');
  }

  broker() {
    const [pid] = this.#pids('weir-broker');
    return pid;
  }

  // Waits for the broker, or all gateways, that run once `gone` has ended (undefined: nobody). Who is there is asked once for each
  // answer: it may end between two questions.
  brokerAfter(gone) {
    return until(() => [this.broker()].find((pid) => pid !== undefined && pid !== gone), 'another broker');
  }

  gatewaysAfter(gone, limitMs) {
    return until(() => [this.gateways()].find((pids) => pids.length === this.gatewayCount && !pids.includes(gone)), 'another gateway', limitMs);
  }

  // How often a gateway has come to a broker, as they log it.
  attachments() {
    return this.stderr.split('event=broker_attached').length - 1;
  }

  isAlive(pid) {
    const identity = identify(pid);
    return identity !== null && isAlive(identity);
  }

  // The gateway that holds the server's end of a connection from our `localPort` (to its `remotePort`), or undefined.
  gatewayOf(localPort, remotePort) {
    const inodes = socketsFrom(localPort, remotePort);
    return this.gateways().find((pid) => {
      try {
        return fs.readdirSync(`/proc/${pid}/fd`).some((fd) => {
          try {
            return inodes.has(fs.readlinkSync(`/proc/${pid}/fd/${fd}`));
          } catch {
            return false;
          }
        });
      } catch {
        return false;
      }
    });
  }

  // A Map from gateway pid to those of `clients` it holds, for many at once: one look at the machine's processes and sockets, and
  // another where the table has missed one while others came and went.
  byGateway(clients) {
    for (let attempt = 0; attempt < 50; attempt += 1) {
      const held = this.#heldNow(clients);
      if ([...held.values()].flat().length === clients.length) return held;
    }
    return assert.fail('not every connection is held by a gateway');
  }

  #heldNow(clients) {
    const ports = new Map(clients.map((client) => [`${client.localPort} ${client.remotePort}`, client]));
    const clientOf = new Map();
    for (const table of ['/proc/net/tcp', '/proc/net/tcp6']) {
      for (const line of readText(table).split('\n').slice(1)) {
        const fields = line.trim().split(/\s+/);
        const client = fields.length > 9 && ports.get(`${portOf(fields[2])} ${portOf(fields[1])}`);
        if (client) clientOf.set(`socket:[${fields[9]}]`, client);
      }
    }
    const held = (pid) => fs.readdirSync(`/proc/${pid}/fd`).map((fd) => {
      try {
        return clientOf.get(fs.readlinkSync(`/proc/${pid}/fd/${fd}`));
      } catch {
        return undefined;
      }
    });
    return new Map(this.gateways().map((pid) => [pid, held(pid).filter((client) => client !== undefined)]));
  }

  // As gatewayOf(), of a connection that may not have been accepted yet.
  async #holderOf({ localPort, remotePort }) {
    for (const end = Date.now() + LIMIT_MS / 4; localPort !== undefined && Date.now() < end; await delay(2)) {
      const pid = this.gatewayOf(localPort, remotePort);
      if (pid !== undefined) return pid;
    }
    return undefined;
  }

  // Opens clients until every gateway has `each` of them; the rest are closed. `open` returns an object with `localPort` and
  // `close()`. Returns a Map from gateway pid to its clients.
  async openOnEach(open, each = 1) {
    const pids = await this.gatewaysAfter();
    const found = new Map(pids.map((pid) => [pid, []]));
    for (let attempt = 0, end = Date.now() + OPEN_LIMIT_MS; attempt < OPEN_ATTEMPTS || Date.now() < end; attempt += 1) {
      const client = await open();
      const mine = found.get(await this.#holderOf(client));
      if (mine !== undefined && mine.length < each) mine.push(client);
      else await client.close();
      if ([...found.values()].every((clients) => clients.length === each)) return found;
    }
    assert.fail('connections never reached every gateway');
  }

  // Opens one client on the gateway `pid`.
  async openOn(pid, open) {
    for (let attempt = 0, end = Date.now() + OPEN_LIMIT_MS; attempt < OPEN_ATTEMPTS || Date.now() < end; attempt += 1) {
      const client = await open();
      if ((await this.#holderOf(client)) === pid) return client;
      await client.close();
    }
    return assert.fail(`no connection reached gateway ${pid}`);
  }

  // What the admin port shows. A connection kept since the last question may have gone with its gateway: then another is asked.
  metrics() {
    const read = async () => (await fetch(`http://127.0.0.1:${this.adminPort}/metrics`)).text();
    return until(() => read().catch(() => undefined), 'the metrics are shown');
  }

  async stop({ signal = 'SIGTERM' } = {}) {
    if (this.exit === null) {
      this.note();
      this.process.kill(signal);
    }
    const timer = setTimeout(() => this.process.kill('SIGKILL'), LIMIT_MS);
    const exit = await this.exited;
    clearTimeout(timer);
    const left = [...this.#seen.values()].filter(isAlive);
    for (const { pid } of left) process.kill(pid, 'SIGKILL');
    if (this.ownsRunDir) fs.rmSync(this.runDir, { recursive: true, force: true });
    assert.doesNotMatch(this.stdout + this.stderr, SANITIZER_REPORT);
    assert.deepEqual(exit, { code: 0, signal: null }, `exit of weir serve\n${this.stderr.slice(-4000)}`);
    assert.deepEqual(left, [], 'no process is left behind');
  }
}

// A server for the time of `use`, which is also given a function that notes what is to be closed before the server stops.
export async function withWeir(options, use) {
  const weir = await Weir.start(options);
  const closing = [];
  try {
    await use(weir, (closable) => (closing.push(closable), closable));
  } finally {
    for (const closable of closing) await (closable.shutdown?.() ?? closable.close?.());
    await weir.stop();
  }
}

// A seeded generator (mulberry32); $WEIR_SEED overrides, and the seed is printed for the record.
export function seededRandom(name) {
  const seed = Number(process.env.WEIR_SEED ?? Math.floor(Math.random() * 2 ** 31));
  console.log(`# ${name}: WEIR_SEED=${seed}`);
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
  next.below = (limit) => Math.floor(next() * limit);
  return next;
}

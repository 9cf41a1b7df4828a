// processes.mjs -- starts servers and looks at all their processes: CPU time, private memory, an end by pid.
//
// Nothing here outlives the session: what was started is remembered, and stopAll() ends it.
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import net from 'node:net';

export const delay = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function readText(file) {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch {
    return ''; // the process has ended in the meantime
  }
}

function statOf(pid) {
  const stat = readText(`/proc/${pid}/stat`);
  return stat === '' ? null : stat.slice(stat.lastIndexOf(')') + 2).split(' ');
}

// A pid and its start time: pids are reused, the pair is not.
function identify(pid) {
  const stat = statOf(pid);
  return stat === null || stat[0] === 'Z' ? null : { pid, start: stat[19] };
}

// The process and all it has started, that live.
export function treeOf(root) {
  const children = new Map();
  for (const name of fs.readdirSync('/proc')) {
    const stat = /^\d+$/.test(name) ? statOf(Number(name)) : null;
    if (stat === null || stat[0] === 'Z') continue;
    const parent = Number(stat[1]);
    children.set(parent, [...(children.get(parent) ?? []), Number(name)]);
  }
  const below = (pid) => [pid, ...(children.get(pid) ?? []).flatMap(below)];
  return below(root);
}

// Private memory in bytes, clean and dirty: what these processes alone cost. Pages they share count for none of them.
export function privateBytes(pids) {
  let kilobytes = 0;
  for (const pid of pids) {
    for (const [, size] of readText(`/proc/${pid}/smaps_rollup`).matchAll(/^Private_(?:Clean|Dirty):\s+(\d+) kB/gm)) {
      kilobytes += Number(size);
    }
  }
  return kilobytes * 1024;
}

// Processor time since the machine's start, and what the host has taken of it for others; null where the kernel does not say.
export function processorTicks() {
  const [, line] = /^cpu +(.*)$/m.exec(readText('/proc/stat')) ?? [];
  const ticks = line?.split(' ').slice(0, 8).map(Number); // guests' time is in user time already
  return ticks?.length === 8 ? { steal: ticks[7], all: ticks.reduce((sum, value) => sum + value, 0) } : null;
}

// What the host took between two looks, as a share.
export function stealShare(before, after) {
  if (before === null || after === null || after.all <= before.all) return null;
  return Math.round(((after.steal - before.steal) / (after.all - before.all)) * 1e4) / 1e4;
}

// Below the range from which the kernel takes ports for outgoing connections, so that none of them takes it first. Tests that run
// beside each other have a range each in $WEIR_TEST_PORTS.
const [firstPort, lastPort] = (process.env.WEIR_TEST_PORTS ?? '15000-29999').split('-').map(Number);

export async function freePort() {
  for (;;) {
    const port = firstPort + Math.floor(Math.random() * (lastPort - firstPort + 1));
    const isFree = await new Promise((resolve) => {
      const server = net.createServer();
      server.once('error', () => resolve(false));
      server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
    });
    if (isFree) return port;
  }
}

const running = new Set();
let isOver = false;

// A started program: what it said (the end of it), how it ended, and the pids it consists of.
export class Program {
  static start(command, args, { env = {} } = {}) {
    if (isOver) throw new Error('the session is over');
    const program = new Program();
    program.command = command;
    program.said = '';
    program.exit = null;
    program.child = spawn(command, args, { env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
    program.exited = new Promise((resolve) => {
      const end = (exit) => {
        program.exit = exit;
        running.delete(program);
        resolve(exit);
      };
      program.child.once('error', (error) => end({ error: error.message }));
      program.child.once('close', (code, signal) => end({ code, signal }));
    });
    const keep = (chunk) => (program.said = (program.said + chunk).slice(-65536));
    program.child.stdout.setEncoding('utf8').on('data', keep);
    program.child.stderr.setEncoding('utf8').on('data', keep);
    running.add(program);
    return program;
  }

  get pid() {
    return this.child.pid;
  }

  pids() {
    return this.exit === null ? treeOf(this.pid) : [];
  }

  // Until `isReady` is truthy; its value.
  async ready(isReady, limitMs = 20000) {
    const end = Date.now() + limitMs;
    for (;;) {
      const value = this.exit === null && (await isReady(this.said));
      if (value) return value;
      if (this.exit !== null) throw new Error(`${this.command} ended early: ${JSON.stringify(this.exit)}\n${this.said}`);
      if (Date.now() > end) throw new Error(`${this.command} did not become ready\n${this.said}`);
      await delay(20);
    }
  }

  // SIGTERM to the first process; whatever of the tree lives after the limit is killed.
  async stop(limitMs = 5000) {
    if (this.exit !== null) return;
    const tree = this.pids().map(identify).filter(Boolean);
    const lives = () => tree.filter(({ pid, start }) => identify(pid)?.start === start);
    this.child.kill('SIGTERM');
    for (const end = Date.now() + limitMs; Date.now() < end && lives().length > 0;) await delay(20);
    for (const { pid } of lives()) process.kill(pid, 'SIGKILL');
    await this.exited;
  }
}

// Ends all, and nothing starts any more.
export function stopAll() {
  isOver = true;
  return Promise.all([...running].map((program) => program.stop()));
}

// However this process ends but by SIGKILL.
process.on('exit', () => {
  for (const pid of [...running].flatMap((program) => program.pids())) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // It has ended in the meantime.
    }
  }
});

// True once something listens on the port.
export const answers = (port) => new Promise((resolve) => {
  const socket = net.connect(port, '127.0.0.1', () => resolve(true) ?? socket.destroy());
  socket.once('error', () => resolve(false));
});

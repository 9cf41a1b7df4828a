// servers.mjs -- the servers that are compared, each as good as it gets for one task: every message of a group to every
// subscriber of the group, nothing kept on a disk, TCP_NODELAY, all cores allowed.
//
// A server: name, protocol (crowd's, when it is not the name), label, plot_label (when the label is too long for a plot),
// is_floor, processes (a sentence), settings (those that differ from the defaults, and why), version() and
// start({ cores, scratch }) -> { program, port, publishPort }.
import { execFile } from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { Program, answers, delay, freePort } from './processes.mjs';

const here = path.dirname(fileURLToPath(import.meta.url));
export const binDirectory = path.resolve(process.env.WEIR_BIN ?? path.join(here, '../../build/bin'));
const NGINX_MODULES = '/usr/lib/nginx/modules';
const CONNECTIONS_MAX = 16384;

// What a program says of itself, on either channel.
async function output(command, args) {
  const { stdout, stderr } = await promisify(execFile)(command, args, { env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin` } });
  return stdout + stderr;
}

async function match(pattern, command, args) {
  const text = await output(command, args);
  const [, version] = pattern.exec(text) ?? [];
  if (version === undefined) throw new Error(`${command} does not say its version: ${text}`);
  return version;
}

const npmVersion = (name) => JSON.parse(fs.readFileSync(path.join(here, 'node_modules', name, 'package.json'), 'utf8')).version;

const inPath = (name) => ['/usr/sbin', '/usr/bin', '/usr/local/sbin', '/usr/local/bin']
  .map((directory) => path.join(directory, name)).find((file) => fs.existsSync(file)) ?? name;

// Starts a program that listens on a free port, and waits for so many `processes`. The port may be taken by somebody else in between: then once more.
async function listening(command, argsFor, options = {}) {
  for (let attempt = 0; ; attempt += 1) {
    const port = await freePort();
    const program = Program.start(command, argsFor(port), options);
    try {
      await program.ready(async () => program.pids().length >= (options.processes ?? 1) && answers(port));
      return { program, port };
    } catch (error) {
      await program.stop();
      if (attempt === 2 || !/address already in use|EADDRINUSE/i.test(program.said)) throw error;
    }
  }
}

const weir = {
  name: 'weir',
  label: 'weir',
  processes: 'a broker, a gateway per core',
  settings: [
    ['gateways = cores', 'the default'],
    ['admin = false', 'no metrics port is needed'],
  ],
  version: () => match(/weir (\S+)/, path.join(binDirectory, 'weir'), ['--version']),
  async start({ cores, scratch }) {
    const settings = { run_dir: scratch, stream_host: '127.0.0.1', stream_port: 0, worker_port: 0, admin: false };
    const sets = Object.entries(settings).flatMap(([name, value]) => ['--set', `${name}=${value}`]);
    const program = Program.start(path.join(binDirectory, 'weir'), ['serve', '--gateways', String(cores), ...sets]);
    const [, port, publishPort] = await program.ready((said) => /^weir: ready stream=\S+:(\d+) worker=\S+:(\d+)/m.exec(said));
    return { program, port: Number(port), publishPort: Number(publishPort) };
  },
};

const nginxConfiguration = (port, cores, directory) => `
load_module ${NGINX_MODULES}/ngx_nchan_module.so;
daemon off;
${process.getuid() === 0 ? 'user root;' : ''}
pid ${directory}/nginx.pid;
error_log stderr crit;
worker_processes ${cores};
events {
    worker_connections ${CONNECTIONS_MAX};
    multi_accept on;
}
http {
    access_log off;
    client_body_temp_path ${directory}/body;
    proxy_temp_path ${directory}/proxy;
    fastcgi_temp_path ${directory}/fastcgi;
    uwsgi_temp_path ${directory}/uwsgi;
    scgi_temp_path ${directory}/scgi;
    keepalive_timeout 3600s;
    keepalive_requests 1000000000;
    tcp_nodelay on;
    nchan_shared_memory_size 512M;
    server {
        listen 127.0.0.1:${port} reuseport backlog=4096;
        location ~ ^/sub/(.+)$ {
            nchan_subscriber websocket;
            nchan_channel_id $1;
            nchan_subscriber_first_message newest;
        }
        location ~ ^/pub/(.+)$ {
            nchan_publisher http;
            nchan_channel_id $1;
            nchan_message_buffer_length 64;
            nchan_message_timeout 5s;
        }
        location = /status {
            nchan_stub_status;
        }
    }
}
`;

function startNginx({ cores, scratch }) {
  return listening(inPath('nginx'), (port) => {
    const file = path.join(scratch, 'nginx.conf');
    fs.writeFileSync(file, nginxConfiguration(port, cores, scratch));
    return ['-p', scratch, '-c', file, '-e', 'stderr'];
  }, { processes: cores + 1 });
}

const get = (port, address) => new Promise((resolve, reject) => {
  http.get({ host: '127.0.0.1', port, path: address, agent: false }, (response) => {
    let text = '';
    response.setEncoding('utf8').on('data', (chunk) => (text += chunk)).on('end', () => resolve(text));
  }).on('error', reject);
});

const nchan = {
  name: 'nchan',
  label: 'nginx + nchan',
  processes: 'a worker per core, and the first process',
  settings: [
    ['worker_processes = cores', 'so that every core serves'],
    ['listen … reuseport, multi_accept on', 'connections are spread by the kernel, as weir does it; a burst of them is taken at once'],
    ['access_log off', 'a line per message would cost more than the message'],
    ['keepalive_requests 1000000000', 'the publisher stays on one connection'],
    ['nchan_message_buffer_length 64, nchan_message_timeout 5s', 'the messages in flight are kept, no more; with 0 or 1 no difference was seen'],
    ['nchan_shared_memory_size 512M', 'a publisher waits when it is full'],
    ['nchan_subscriber websocket, first_message newest', 'no old messages'],
  ],
  async version({ cores, scratch }) {
    const nginx = await match(/nginx version: nginx\/(\S+)/, inPath('nginx'), ['-v']);
    const { program, port } = await startNginx({ cores, scratch });
    const [, version] = /nchan version: (\S+)/.exec(await get(port, '/status')) ?? [];
    await program.stop();
    return `${nginx} + ${version}`;
  },
  start: startNginx,
};

const nats = {
  name: 'nats',
  label: 'nats-server',
  processes: 'one process with a thread per core',
  settings: [['defaults', 'no log of connections, no monitoring, no JetStream']],
  version: () => match(/v?(\d+\.\d+\.\d+\S*)/, inPath('nats-server'), ['--version']),
  start: () => listening(inPath('nats-server'), (port) => ['--addr', '127.0.0.1', '--port', String(port)]),
};

const redis = {
  name: 'redis',
  label: 'redis pub/sub',
  processes: 'one process, one thread for clients',
  settings: [
    ['save "", appendonly no', 'nothing on the disk'],
    ['maxclients 16384, tcp-backlog 4096', 'so many subscribers'],
    ['protected-mode no', 'the load comes from more loopback addresses than 127.0.0.1'],
    ['client-output-buffer-limit pubsub 0 0 0', 'a subscriber that is behind is not cut off'],
    ['io-threads 1', 'the default, and what it advises below four cores'],
  ],
  version: () => match(/v=(\S+)/, inPath('redis-server'), ['--version']),
  start: ({ scratch }) => listening(inPath('redis-server'), (port) => [
    '--port', String(port), '--bind', '127.0.0.1', '--protected-mode', 'no', '--daemonize', 'no', '--dir', scratch, '--save', '', '--appendonly', 'no',
    '--maxclients', String(CONNECTIONS_MAX), '--tcp-backlog', '4096', '--client-output-buffer-limit', 'pubsub 0 0 0', '--loglevel', 'warning',
  ]),
};

const startNode = (file) => () => listening(process.execPath, (port) => [path.join(here, file), String(port)], { env: { NODE_ENV: 'production' } });
const nodeVersion = async (name) => `${npmVersion(name)} (Node ${process.versions.node})`;

const socketio = {
  name: 'socketio',
  label: 'socket.io',
  processes: 'one process; one thread runs JavaScript',
  settings: [
    ['transports: websocket', 'no long polling first'],
    ['perMessageDeflate, httpCompression, serveClient: false', 'nothing is packed'],
    ['socket.request = null', 'its advice on memory'],
    ['adapter in memory', 'the default; several processes would need one that connects them'],
  ],
  version: () => nodeVersion('socket.io'),
  start: startNode('socketio_server.mjs'),
};

const ws = {
  name: 'ws',
  label: 'ws',
  processes: 'one process; one thread runs JavaScript',
  settings: [
    ['perMessageDeflate: false', 'the default'],
    ['one frame for all', 'made once and given to every sender, as socket.io does it; client.send() makes one for each subscriber'],
  ],
  version: () => nodeVersion('ws'),
  start: startNode('ws_server.mjs'),
};

// Nothing for people to use: what the kernel's part of the task costs alone, so that a figure has something below it as well.
const floor = (kind, { label, plotLabel, why }) => ({
  name: `f${kind}`,
  protocol: 'floor',
  is_floor: true,
  label,
  plot_label: plotLabel,
  processes: 'one process with one thread, and no memory for a subscriber that is behind',
  settings: [[`floor ${kind}`, why]],
  version: async () => 'bench/floor.c',
  async start() {
    const program = Program.start(path.join(binDirectory, 'floor'), [String(kind)]);
    const [, port] = await program.ready((said) => /^ready port=(\d+) /m.exec(said));
    return { program, port: Number(port) };
  },
});

const f1 = floor(1, {
  label: 'bare epoll server, one send() a message',
  plotLabel: 'bare, send()/message',
  why: "one read() for each message, one send() for each subscriber and message; it sends weir's frames, ready-made by the publisher",
});
const f2 = floor(2, {
  label: 'bare epoll server, all of a turn in one send()',
  plotLabel: 'bare, send()/turn',
  why: 'one read() for all that has come, one send() for each subscriber with all of it',
});

export const SERVERS = [weir, nchan, nats, redis, socketio, ws, f1, f2];

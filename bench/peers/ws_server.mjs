// ws_server.mjs -- the smallest broadcast server over `ws`: one process, groups are sets of sockets.
//
// A subscriber connects to /sub/GROUP; the publisher to /pub, and sends "GROUP MESSAGE". The frame is made once for all
// subscribers, and given to the sender of each as socket.io does; the documented way, client.send(), makes one for each.
// Run: node ws_server.mjs PORT
import { createServer } from 'node:http';
import { Sender, WebSocketServer } from 'ws';

const groups = new Map();
const TEXT = { fin: true, rsv1: false, opcode: 1, mask: false, readOnly: true };

function join(socket, name) {
  const members = groups.get(name) ?? new Set();
  groups.set(name, members.add(socket));
  socket.on('close', () => members.delete(socket) && members.size === 0 && groups.delete(name));
}

function publish(data) {
  const space = data.indexOf(32);
  const frame = [Buffer.concat(Sender.frame(data.subarray(space + 1), TEXT))];
  for (const socket of groups.get(data.toString('latin1', 0, space)) ?? []) socket._sender.sendFrame(frame);
}

const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false, clientTracking: false });
const server = createServer();
server.on('upgrade', (request, connection, head) => {
  sockets.handleUpgrade(request, connection, head, (socket) => {
    socket.on('error', () => {});
    if (request.url.startsWith('/sub/')) join(socket, request.url.slice(5));
    else socket.on('message', publish);
  });
});
server.listen({ port: Number(process.argv[2]), host: '127.0.0.1', backlog: 4096 });

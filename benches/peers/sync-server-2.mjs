// @automerge/automerge-repo-sync-server 0.2.8 as it is, on automerge-repo 2.5.6.
import fs from "node:fs"
import os from "node:os"
import express from "express"
import { WebSocketServer } from "ws"
import { Repo } from "@automerge/automerge-repo"
import { NodeWSServerAdapter } from "@automerge/automerge-repo-network-websocket"
import { NodeFSStorageAdapter } from "@automerge/automerge-repo-storage-nodefs"

const folder = process.env.DATA_DIR ?? ".amrg"
fs.mkdirSync(folder, { recursive: true })
const sockets = new WebSocketServer({ noServer: true })
new Repo({
  network: [new NodeWSServerAdapter(sockets)],
  storage: new NodeFSStorageAdapter(folder),
  peerId: `storage-server-${os.hostname()}`,
  sharePolicy: async () => false,
})
const port = parseInt(process.env.PORT ?? "3030")
const server = express().listen(port, () => console.log(`Listening on port ${port}`))
server.on("upgrade", (request, socket, head) => {
  sockets.handleUpgrade(request, socket, head, socket => sockets.emit("connection", socket, request))
})

// The clients of automerge-repo 1.2.1, under the names that both generations share here.

export { Repo, cbor, generateAutomergeUrl, parseAutomergeUrl } from "@automerge/automerge-repo"
export { BrowserWebSocketClientAdapter as WebSocketClientAdapter } from "@automerge/automerge-repo-network-websocket"
export { NodeFSStorageAdapter } from "@automerge/automerge-repo-storage-nodefs"
export { next as Automerge } from "@automerge/automerge"

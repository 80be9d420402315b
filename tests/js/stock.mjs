// The clients of automerge-repo 2.5.6, under the names that both generations share here.

export { Repo, Presence, cbor, decodeHeads, generateAutomergeUrl, parseAutomergeUrl } from "@automerge/automerge-repo"
export { WebSocketClientAdapter } from "@automerge/automerge-repo-network-websocket"
export { NodeFSStorageAdapter } from "@automerge/automerge-repo-storage-nodefs"
export { next as Automerge } from "@automerge/automerge"

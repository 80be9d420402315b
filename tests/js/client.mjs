// One stock client of either generation. What is here is what an application would write; nothing of the packages is
// changed, and nothing here knows which server it talks to.

import { check, soon } from "./harness.mjs"

const GENERATIONS = { 1: "./v1/stock.mjs", 2: "./stock.mjs" }
const loaded = new Map()

/** The packages of a generation. */
export async function stock(generation) {
  if (!loaded.has(generation)) loaded.set(generation, await import(GENERATIONS[generation]))
  return loaded.get(generation)
}

/** Connects a new client, and waits until the server has answered. */
export async function connect(generation, url, options) {
  const client = new Client(await stock(generation), generation, url, options)
  await client.connected()
  return client
}

/** A client that is not connected before `online` is called. */
export async function offline(generation, url, options) {
  return new Client(await stock(generation), generation, url, { ...options, online: false })
}

class Client {
  constructor(packages, generation, url, { folder, peerId, gossip = false, retry = 2000, online = true } = {}) {
    this.packages = packages
    this.generation = generation
    this.adapter = new packages.WebSocketClientAdapter(url, retry)
    this.retry = retry
    if (!online) this.hold()
    /** Every message that came, in order. */
    this.messages = []
    this.adapter.on("message", message => this.messages.push(message))
    this.repo = new packages.Repo({
      network: [this.adapter],
      storage: folder && new packages.NodeFSStorageAdapter(folder),
      peerId,
      enableRemoteHeadsGossiping: gossip,
    })
    this.network = this.repo.networkSubsystem
    this.network.on("peer", ({ peerId, peerMetadata }) => {
      this.server = { peerId, storageId: peerMetadata?.storageId }
      this.peers = (this.peers ?? 0) + 1
    })
  }

  /** Waits for the next answer to a join, or takes the one that is there. */
  async connected() {
    if (!this.server) await soon(new Promise(done => this.network.once("peer", done)), "an answer to the join")
    check(this.server.storageId, "the server names its store")
  }

  hold() {
    // A retry that is on its way must not connect, and none may begin. The packages have no such switch.
    this.adapter.connect = (peerId, metadata) => {
      this.adapter.peerId ??= peerId
      this.adapter.peerMetadata ??= metadata
    }
    this.adapter.retryInterval = 0
  }

  /** Loses the connection, and does not come back by itself. */
  async offline() {
    this.hold()
    const gone = new Promise(done => this.network.once("peer-disconnected", done))
    this.adapter.socket.close()
    await soon(gone, "the end of the connection")
    this.server = undefined
  }

  async online(url = this.adapter.url) {
    delete this.adapter.connect
    this.adapter.retryInterval = this.retry
    this.adapter.url = url
    this.adapter.connect(this.network.peerId, await this.network.peerMetadata)
    await this.connected()
  }

  create(value) {
    return this.repo.create(value)
  }

  /** The document, or undefined when the server says that it has none. */
  async find(url) {
    const handle = await this.look(url)
    return handle.isReady() ? handle : undefined
  }

  /** The handle of a document, when it is known whether there is one. */
  async look(url) {
    const handle = this.generation === "1" ? this.repo.find(url) : await this.repo.find(url, ANY)
    await soon(handle.whenReady(ANY.allowableStates), `an answer about ${url}`)
    return handle
  }
}

const ANY = { allowableStates: ["ready", "unavailable"] }

/** What is in a document now. */
export function read(handle) {
  // The first generation has a promise under this name, and the second complains of the other.
  return handle && (handle.getSyncInfo ? handle.doc() : handle.docSync())
}

/** Waits until a document is there and is as the test wants it. */
export async function until(handle, test, what) {
  const holds = () => handle.isReady() && test(read(handle))
  if (holds()) return
  let look
  const there = new Promise(done => {
    look = () => holds() && done()
    handle.on("change", look)
    // A document that appears has its changes before it is called ready.
    handle.whenReady().then(look, () => {})
  })
  const seen = () => `${what}; it is ${handle.isReady() ? JSON.stringify(read(handle)).slice(0, 200) : handle.state}`
  await soon(there, what).catch(error => {
    throw new Error(`${error.message} (${seen()})`)
  })
  handle.off("change", look)
}

/** The changes at the end of what a client has of a document, in hexadecimal. */
export function heads(client, handle) {
  return [...client.packages.Automerge.getHeads(read(handle))].sort()
}

/** What a client knows a store to have of a document, in the words of its own generation. */
function headsOf(client, handle, storageId) {
  if (client.generation === "2") return inOneLine(handle.getSyncInfo(storageId)?.lastHeads)
  const heads = handle.getRemoteHeads(storageId)
  // What others' stores have is told in the words of the second generation: a server cannot know its client's.
  return inOneLine(storageId === client.server.storageId ? heads : heads && loaded.get("2").decodeHeads(heads))
}

const inOneLine = heads => heads && [...heads].sort().join()

/** Waits until the client knows that a store has all that it has itself; by itself, that of the server. */
export async function saved(client, handle, storageId = client.server.storageId, what = "the server has the edit") {
  await stock("2")
  const holds = () => headsOf(client, handle, storageId) === [...handle.heads()].sort().join()
  if (holds()) return
  let look
  const there = new Promise(done => {
    look = () => holds() && done()
    handle.on("remote-heads", look)
  })
  await soon(there, what)
  handle.off("remote-heads", look)
}

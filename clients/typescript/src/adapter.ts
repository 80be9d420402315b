// The stock connection of automerge-repo, with what it lacks: attempts further and further apart, a token, a state that
// can be seen, and a word before the first message of a document about the collection it is created in.

import { cbor } from "@automerge/automerge-repo/slim"
import type { DocumentId, PeerId, PeerMetadata, StorageId } from "@automerge/automerge-repo/slim"
import { WebSocketClientAdapter } from "@automerge/automerge-repo-network-websocket"
import type { Connection } from "./connection.js"
import { retryDelay, retryDelayAfter } from "./connection.js"
import { retryAfterOf, TidelogError, unreachable } from "./error.js"

/** What the stock adapter may take for its own attempts: none within a life. */
const NEVER_MS = 0x7fff_ffff
/** After so long without an answer documents are looked for without the server. */
const READY_MS = 1_000
/** What says that something is wrong is short. */
const ERROR_BYTES_MAX = 8_192
/** Whether a socket was closed for good, and not for now: by policy, for a message that is too long, or for the token. */
const isForGood = (code: number | undefined): boolean =>
  code === 1008 || code === 1009 || (code !== undefined && code >= 4400 && code < 4500)

const HASH = /^[0-9a-f]{64}$/

/** Changes of this client that the server does not take, since it may not make them. */
export interface Denial {
  documentId: DocumentId
  /** Their hashes; none when the document may not be created. What stands on them is not taken either. */
  changes: string[]
  /** Why, as the server says it. */
  reason: string
}

type Sent = Parameters<WebSocketClientAdapter["send"]>[0]

export class TidelogAdapter extends WebSocketClientAdapter {
  /** The name of the server's store: what it has is told under it. */
  storageId: StorageId | undefined
  /** Called whenever the server has answered a join. */
  onServer: (() => void) | undefined
  /** Called whenever the server says what it does not take. */
  onDenied: ((denial: Denial) => void) | undefined
  /** Whether a document is open here. The server says nothing of others, but may have said it before one was deleted. */
  isOpen: (documentId: DocumentId) => boolean = () => true
  /** Where documents belong that the server may not know yet. */
  readonly creations = new Map<string, { collection: string }>()
  /** What must be known here before the server is told anything. */
  loaded: Promise<void> = Promise.resolve()
  /** Of which of them it was said on this connection. */
  readonly #said = new Set<string>()
  #attempt = 0
  #isOpening = false
  #isWanted = false
  #reason: string | undefined
  #isAnswered = false
  readonly #answered: Promise<void>
  #answer: () => void = () => {}
  readonly #connection: Connection

  constructor(connection: Connection) {
    super(connection.url, NEVER_MS)
    this.#connection = connection
    this.#answered = new Promise(done => (this.#answer = done))
    const stockOpen = this.onOpen
    this.onOpen = () => {
      this.#said.clear()
      this.#reason = undefined
      stockOpen()
    }
    this.onClose = (event?: unknown) => {
      const { code, reason } = (event ?? {}) as { code?: number; reason?: string }
      this.#closed(code, retryAfterOf(reason))
    }
    // The stock one ends the process over a connection that is reset. That it closed is told in any case.
    this.onError = () => {}
    connection.onStatus(() => this.#look())
  }

  override isReady(): boolean {
    return this.#isAnswered
  }

  override whenReady(): Promise<void> {
    return this.#answered
  }

  override connect(peerId: PeerId, peerMetadata?: PeerMetadata): void {
    this.peerId = peerId
    this.peerMetadata = peerMetadata ?? {}
    this.#isWanted = true
    setTimeout(() => this.#ready(), this.#connection.isUp ? READY_MS : 0)
    void this.#open()
  }

  override disconnect(): void {
    this.#isWanted = false
    this.#drop()
    // Nothing is to be waited for.
    this.#ready()
  }

  override send(message: Sent): void {
    // What is lost with the connection is sent again after the next join.
    if (this.socket?.readyState !== 1) return
    const { documentId, type } = message as { documentId?: DocumentId; type: string }
    const creation = documentId && this.creations.get(documentId)
    if (creation && (type === "sync" || type === "request") && !this.#said.has(documentId)) {
      this.#said.add(documentId)
      super.send({ type: "tidelog-create", senderId: this.peerId, documentId, ...creation } as unknown as Sent)
    }
    super.send(message)
  }

  override peerCandidate(remotePeerId: PeerId, peerMetadata: PeerMetadata): void {
    this.storageId = peerMetadata.storageId
    this.#attempt = 0
    super.peerCandidate(remotePeerId, peerMetadata)
    super.send({ type: "tidelog-denials", senderId: this.peerId } as unknown as Sent)
    this.#connection.status = "connected"
    this.#connection.wake()
    this.onServer?.()
    this.#ready()
  }

  /** The server knows of a document, or need not know any more. */
  settle(documentId: DocumentId): void {
    this.creations.delete(documentId)
    this.#said.delete(documentId)
  }

  /** Something went wrong that nobody waits for. */
  fail(error: TidelogError): void {
    this.#connection.lastError = error
  }

  /** Shows the server another token, on the connection that stands. */
  authenticate(token: string): void {
    if (this.socket?.readyState !== 1 || this.#connection.status !== "connected") return
    super.send({ type: "tidelog-auth", senderId: this.peerId, token } as unknown as Sent)
  }

  override emit: WebSocketClientAdapter["emit"] = (name, ...words) => {
    const { documentId } = (name === "message" ? words[0] : {}) as { documentId?: DocumentId }
    if (documentId !== undefined && !this.isOpen(documentId)) return false
    return super.emit(name, ...words)
  }

  override receiveMessage(bytes: Uint8Array): void {
    const isShort = bytes.byteLength > 0 && bytes.byteLength <= ERROR_BYTES_MAX
    if (!isShort || !this.#takes(bytes)) super.receiveMessage(bytes)
  }

  /** Takes what is for this adapter; whether it is for nobody else. */
  #takes(bytes: Uint8Array): boolean {
    let message: { type?: unknown; message?: unknown; documentId?: unknown; changes?: unknown }
    try {
      message = cbor.decode(new Uint8Array(bytes)) as typeof message
    } catch {
      // Nobody understands it, and the stock adapter says so.
      return false
    }
    if (message?.type === "error") this.#reason = String(message.message)
    if (message?.type !== "tidelog-denied") return false
    const changes = Array.isArray(message.changes) ? message.changes.map(String) : []
    if (!changes.every(hash => HASH.test(hash))) return true
    this.onDenied?.({ documentId: String(message.documentId) as DocumentId, changes, reason: String(message.message) })
    return true
  }

  #ready(): void {
    this.#isAnswered = true
    this.#answer()
  }

  /** The network went or came. */
  #look(): void {
    if (!this.#connection.isUp) this.#drop()
    else if (this.#isWanted && !this.#isOpening && this.socket?.readyState !== 1) void this.#open()
  }

  async #open(): Promise<void> {
    if (this.#isOpening) return
    this.#isOpening = true
    try {
      await this.loaded
      while (this.#isWanted && !this.#connection.isClosed) {
        await this.#connection.whenUp()
        if (!this.#isWanted || this.#connection.isClosed) return
        if (this.socket?.readyState === 1) return
        if (this.#connection.status !== "denied") this.#connection.status = "connecting"
        if (await this.#try()) return
        if (this.#connection.isUp && this.#connection.status !== "denied") this.#connection.status = "offline"
        this.#ready()
        await this.#connection.pauseFor(retryDelay(this.#attempt, this.#connection.retryMs))
        this.#attempt += 1
      }
    } finally {
      this.#isOpening = false
    }
  }

  /** One attempt: whether the socket opened. */
  async #try(): Promise<boolean> {
    const peerId = this.peerId
    if (!peerId) return false
    try {
      // The stock adapter has one address for its life; a token does not live as long.
      ;(this as { url: string }).url = await this.#connection.syncUrl()
    } catch (error) {
      if (this.#connection.isUp) this.fail(new TidelogError("E0501", `there is no token: ${String(error)}`, "look at the token callback"))
      return false
    }
    if (!this.#connection.isUp || !this.#isWanted) return false
    try {
      super.connect(peerId, this.peerMetadata)
    } catch (error) {
      // A browser opens none to a server without TLS from a page with it.
      this.fail(unreachable(this.#connection.url, error))
      return false
    }
    const socket = this.socket
    if (!socket) return false
    return await new Promise<boolean>(done => {
      socket.addEventListener("open", () => done(true))
      socket.addEventListener("close", () => done(false))
    })
  }

  #closed(code: number | undefined, retryAfterMs: number | undefined): void {
    this.#gone()
    if (isForGood(code) || this.#reason !== undefined) {
      const why = this.#reason ?? "the server closed the connection"
      this.#connection.lastError = new TidelogError("E0502", why, "see docs/repo-protocol.md, section 5")
      if (isForGood(code)) this.#connection.status = "denied"
      this.#attempt = Math.max(this.#attempt, 4)
    }
    if (this.#isWanted) void this.#again(retryAfterMs)
  }

  async #again(retryAfterMs: number | undefined): Promise<void> {
    if (this.#isOpening) return
    this.#isOpening = true
    if (this.#connection.isUp && this.#connection.status !== "denied") this.#connection.status = "offline"
    await this.#connection.pauseFor(retryDelayAfter(this.#attempt, this.#connection.retryMs, retryAfterMs))
    this.#attempt += 1
    this.#isOpening = false
    await this.#open()
  }

  #gone(): void {
    const peer = this.remotePeerId
    if (!peer) return
    delete this.remotePeerId
    this.emit("peer-disconnected", { peerId: peer })
  }

  #drop(): void {
    const socket = this.socket
    if (!socket) return
    // One that is not open yet complains when it is closed, and nobody listens any more.
    socket.addEventListener("error", () => {})
    super.disconnect()
    delete this.remotePeerId
  }
}

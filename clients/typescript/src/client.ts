// A client of one server.

import * as A from "@automerge/automerge/slim"
import { Repo } from "@automerge/automerge-repo/slim"
import type { DocHandle, DocumentId, StorageAdapterInterface } from "@automerge/automerge-repo/slim"
import { TidelogAdapter } from "./adapter.js"
import { Connection, type Status, type Token } from "./connection.js"
import { closed, storageFault, TidelogError } from "./error.js"
import { readFeed, type FeedEvent, type FeedOptions } from "./feed.js"
import { Holdings, type Held } from "./holdings.js"
import { collectionName, documentIdOf, urlOf } from "./ids.js"
import { Query } from "./query.js"
import { DocumentReference, removeOnServer } from "./reference.js"
import type { Rejected } from "./rejected.js"
import { Rejections } from "./rejection.js"
import { saveAgain } from "./saving.js"
import { Store } from "./store.js"
import { toJson } from "./values.js"

export interface ClientOptions {
  /** The server's address: `http://127.0.0.1:4780`. */
  url: string
  /** Where documents are kept between runs: a store of automerge-repo. Without one they are forgotten. */
  storage?: StorageAdapterInterface
  /** Sent with every request. */
  token?: Token
  /** How long the first wait for another attempt is; each is twice as long, 10 s at most. */
  retryMs?: number
}

/** Connects to a server. */
export function tidelog(options: ClientOptions): Client {
  return new Client(options)
}

/** Whether what is here of a document, or was when it was asked for, is on the server or refused. */
interface Arrival {
  isThere: () => boolean
  /** What is waited for; not known before the document is open. */
  readonly heads: A.Heads | undefined
}

export class Client {
  /** The stock Repo. */
  readonly repo: Repo
  /** @internal */
  readonly connection: Connection
  /** @internal */
  readonly holdings: Holdings
  /** @internal */
  readonly rejections: Rejections
  readonly #adapter: TidelogAdapter
  readonly #store: Store | undefined
  readonly #endSaving: () => void
  #closing: Promise<void> | undefined

  /** @internal */
  constructor(options: ClientOptions) {
    this.connection = new Connection(options.url, options.token, options.retryMs ?? 500)
    this.#adapter = new TidelogAdapter(this.connection)
    this.connection.onExpiring = () => void this.authenticate().catch(() => {})
    const store = options.storage && new Store(options.storage, error => this.#adapter.fail(storageFault(error)))
    this.#store = store
    this.repo = new Repo({ network: [this.#adapter], ...(store ? { storage: store } : {}) })
    this.#adapter.isOpen = documentId => documentId in this.repo.handles
    this.#endSaving = saveAgain(this.repo, store)
    this.holdings = new Holdings(this.repo, this.#adapter, options.storage)
    this.rejections = new Rejections(this.repo, this.holdings, store)
    this.#adapter.onDenied = denial => this.rejections.deny(denial)
    void this.holdings.ready.then(() => {
      for (const held of this.holdings.pending()) if (held.isDeleted) this.remove(held).catch(() => {})
    })
  }

  get status(): Status {
    return this.connection.status
  }

  /** Tells whenever the status is another. The returned function ends that. */
  onStatus(told: (status: Status) => void): () => void {
    return this.connection.onStatus(told)
  }

  /**
   * Edits of this client that the server does not take, since it may not make them; the oldest first. They are not in
   * the documents here any more. The last 256 are kept, of 4 MiB together; with `storage` they outlive the page.
   */
  get rejected(): Rejected[] {
    return this.rejections.list.all
  }

  /**
   * Tells of each edit that was taken back, once it is in `rejected`, and of those that `storage` still has. The returned
   * function ends that.
   */
  onRejected(told: (rejected: Rejected) => void): () => void {
    return this.rejections.list.onRejected(told)
  }

  /**
   * Makes a refused edit anew on the document as it is now, and takes it off the list. If it is refused again, it is on
   * the list again, under another id. Does not wait for the server: `whenSynced()` does.
   */
  async resubmit(id: string): Promise<void> {
    this.assertOpen()
    const remove = (collection: string, documentId: DocumentId) => void this.reference(collection, documentId).delete().catch(() => {})
    await this.rejections.resubmit(id, remove)
  }

  /** Takes a refused edit off the list for good. */
  async discardRejected(id: string): Promise<void> {
    this.assertOpen()
    await this.rejections.discard(id)
  }

  /**
   * Asks the token callback again, and shows the server what it gives: the connection stays. Done by itself half a minute
   * before a JSON Web Token ends; of use when the user's rights are others.
   */
  async authenticate(): Promise<void> {
    const token = await this.connection.currentToken()
    if (token !== undefined) this.#adapter.authenticate(token)
  }

  /** What went wrong last with the connection. */
  get lastError(): TidelogError | undefined {
    return this.connection.lastError
  }

  /** The documents of a collection. */
  collection<T = Record<string, unknown>>(name: string): Collection<T> {
    return new Collection<T>(this, collectionName(name))
  }

  /** What happens to all documents. */
  changes(options: FeedOptions = {}): AsyncGenerator<FeedEvent, void, undefined> {
    return readFeed(this, undefined, options)
  }

  /** Behaves as if there were no network, until `enableNetwork`. */
  disableNetwork(): void {
    this.connection.pause(true)
  }

  enableNetwork(): void {
    this.connection.pause(false)
  }

  /** Waits until everything that was edited here so far is on the server's disk, or was taken back. */
  async whenSynced(): Promise<void> {
    await this.holdings.ready
    const waiting = new Map<string, (() => boolean)[]>()
    for (const held of this.holdings.pending()) {
      const { isThere } = this.arrivalOf(held)
      const isDone = () => (held.isDeleted ? !this.holdings.has(held) : isThere())
      const all = waiting.get(held.collection)
      if (all) all.push(isDone)
      else waiting.set(held.collection, [isDone])
    }
    // The last of each is looked at until it is done, and then the one before.
    const wait = ([collection, all]: [string, (() => boolean)[]]) => this.until(collection, () => {
      while (all.at(-1)?.()) all.pop()
      return all.length === 0
    })
    await Promise.all([...waiting].map(wait))
  }

  /** Ends all listeners and the connection. What is in the store stays there. */
  close(): Promise<void> {
    return (this.#closing ??= this.#close())
  }

  async #close(): Promise<void> {
    this.connection.close()
    this.#endSaving()
    // The stock repo cannot end while one of its documents is not here.
    const here = () => Object.values(this.repo.handles).filter(handle => handle.isReady()).map(({ documentId }) => documentId)
    const faults: unknown[] = []
    // What the store does not take of one does not keep it from taking the others, or the connection from ending.
    for (const end of [() => this.holdings.close(), () => this.rejections.list.flush(), () => this.repo.flush(here())]) {
      await end().catch((error: unknown) => void faults.push(error))
    }
    await this.repo.shutdown().catch(() => {})
    await this.#store?.settled()
    // What is still looked for is not found any more.
    for (const handle of Object.values(this.repo.handles)) {
      const search = setTimeout(() => handle.inState(["loading"]) && handle.delete(), STORE_MS)
      void endSearch(handle).finally(() => clearTimeout(search))
    }
    if (faults.length > 0) throw faults[0]
  }

  /** @internal */
  assertOpen(): void {
    if (this.connection.isClosed) throw closed()
  }

  /** @internal */
  reference<T>(collection: string, id: DocumentId): DocumentReference<T> {
    return new DocumentReference<T>(this, collection, id)
  }

  /** Opens a document; its handle may be that of one that is not there. @internal */
  async open(held: Held): Promise<DocHandle<unknown>> {
    if (held.handle?.isReady()) return held.handle
    const { collection, documentId } = held
    const handle = await this.repo.find<unknown>(urlOf(documentId), { allowableStates: ["ready", "unavailable"] })
    // It may have been let go meanwhile.
    if (!this.connection.isClosed) this.holdings.attach(this.holdings.find(documentId) ?? this.holdings.hold(collection, documentId), handle)
    return handle
  }

  /** Deletes a hidden document on the server; whoever asks again waits for the same. @internal */
  remove(held: Held): Promise<void> {
    return (held.removal ??= this.#remove(held).finally(() => (held.removal = undefined)))
  }

  async #remove(held: Held): Promise<void> {
    try {
      await this.holdings.ready
      // What was edited here goes there first: it would come back after the deletion. What the store does not give
      // cannot.
      const { isThere } = this.arrivalOf(held)
      await this.until(held.collection, () => held.fault !== undefined || isThere())
      await removeOnServer(this, held)
    } catch (error) {
      if (!this.connection.isClosed) this.holdings.hide(held, false)
      if (error instanceof TidelogError && error.code === "E0203") this.rejections.denyDeletion(held, error)
      throw error
    }
    try {
      await this.#takeOut(held)
    } finally {
      // Not before: it would be shown once more, and be edited.
      this.holdings.forget(held)
    }
  }

  /** Takes a document that was deleted on the server out of the repo and the store. */
  async #takeOut({ documentId, fault }: Held): Promise<void> {
    const handle = this.repo.handles[documentId]
    // What the store does not give stays in it.
    if (!handle || fault) return
    await endSearch(handle)
    // What the repo has yet to save it would save after the document is out of the store.
    if (handle.isReady()) await this.repo.flush([documentId]).catch(() => {})
    // Whoever found it hears of that first: when a search ends with a deletion the repo begins one that never ends.
    await new Promise(done => setTimeout(done, 0))
    if (this.repo.handles[documentId] !== handle) return
    // So does it when somebody searches again for what was not found: that stays not found.
    if (handle.isReady()) this.repo.delete(documentId)
    await this.#store?.removeDocument(documentId, this.repo).catch(() => {})
  }

  /** When the server has what is here of a document now, or has refused it. @internal */
  arrivalOf(held: Held): Arrival {
    const { holdings, rejections } = this
    const arrival = { heads: held.doc && A.getHeads(held.doc), isThere }
    function isThere(): boolean {
      // One of before this start is being opened.
      arrival.heads ??= held.doc && A.getHeads(held.doc)
      return holdings.isDurable(held, arrival.heads && rejections.trace(arrival.heads).heads)
    }
    return arrival
  }

  /** Waits until something holds of a collection's documents. @internal */
  async until(collection: string, holds: () => boolean): Promise<void> {
    if (holds()) return
    this.assertOpen()
    await new Promise<void>((done, failed) => {
      const end = () => {
        unwatch()
        offClose()
      }
      const unwatch = this.holdings.watch(collection, () => {
        try {
          if (!holds()) return
          done()
        } catch (error) {
          failed(error)
        }
        end()
      })
      const offClose = this.connection.onClose(() => {
        end()
        failed(closed())
      })
    })
  }
}

/** How long the store may take to give a document after the end, before whoever looks for it is told that it is not found. */
const STORE_MS = 1_000

/** Lets those who look for a document that is not here know that it is not found. */
async function endSearch(handle: DocHandle<unknown>): Promise<void> {
  // It is read from the store first.
  if (!handle.isReady()) await handle.whenReady(["ready", "requesting", "unavailable"]).catch(() => {})
  handle.unavailable()
}

/** The documents of a collection. */
export class Collection<T> extends Query<T> {
  /**
   * Makes a document. It is in listeners' results at once and sent to the server as soon as that is there;
   * `ref.whenSynced()` waits for that.
   */
  async add(data: T): Promise<DocumentReference<T>> {
    this.client.assertOpen()
    try {
      toJson(data)
    } catch (error) {
      throw error instanceof TidelogError ? new TidelogError("E0604", error.message, error.fix) : error
    }
    const handle = this.client.repo.create<unknown>(data as Record<string, unknown>)
    this.client.holdings.create(this.name, handle)
    return this.client.reference<T>(this.name, handle.documentId)
  }

  /** The document of that id, or of that address (`automerge:…`). */
  doc(idOrUrl: string): DocumentReference<T> {
    return this.client.reference<T>(this.name, documentIdOf(idOrUrl))
  }

  /** What happens to the documents of this collection. */
  changes(options: FeedOptions = {}): AsyncGenerator<FeedEvent, void, undefined> {
    return readFeed(this.client, this.name, options)
  }
}

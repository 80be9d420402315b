// One document: where it is, and what can be done with it.

import type { AutomergeUrl, DocHandle, DocumentId } from "@automerge/automerge-repo/slim"
import type { Client } from "./client.js"
import { isTransient, TidelogError, unreachable } from "./error.js"
import type { Held } from "./holdings.js"
import { retryDelayAfter } from "./connection.js"
import { urlOf } from "./ids.js"
import { DocumentPresence } from "./presence.js"
import { DocumentSnapshot } from "./snapshot.js"

export class DocumentReference<T> {
  /** @internal */
  constructor(readonly client: Client, readonly collection: string, readonly id: DocumentId) {}

  get url(): AutomergeUrl {
    return urlOf(this.id)
  }

  /** The stock handle. It may not be ready yet: `await ref.load()` waits for that. */
  get handle(): DocHandle<T> {
    const held = this.#held()
    if (!held.handle) {
      const handle = this.client.repo.findWithProgress<unknown>(this.url)
      this.client.holdings.attach(held, "handle" in handle ? handle.handle : (handle as DocHandle<unknown>))
    }
    return held.handle as DocHandle<T>
  }

  /** The stock handle, once the document is here. */
  async load(): Promise<DocHandle<T>> {
    await this.client.holdings.ready
    const handle = await this.client.open(this.#held())
    if (handle.isReady()) return handle as DocHandle<T>
    throw new TidelogError("E0601", `there is no document ${this.url} here, and the server gives none`, "look whether it was deleted, or come back online")
  }

  /**
   * Edits it. A document that is here is edited before this returns; what the server has is loaded first. The promise
   * does not wait for the server: `whenSynced()` does.
   */
  change(edit: (doc: T) => void): Promise<void> {
    this.client.assertOpen()
    const held = this.#held()
    const apply = (handle: DocHandle<unknown>) => handle.change(doc => edit(doc as T))
    const refused = this.#refusal(held)
    if (refused) return Promise.reject(refused)
    if (held.handle?.isReady()) {
      try {
        apply(held.handle)
        return Promise.resolve()
      } catch (error) {
        return Promise.reject(error)
      }
    }
    return this.load().then(handle => {
      this.client.assertOpen()
      // It may have been deleted meanwhile, or before this start.
      const refused = this.#refusal(this.#held())
      if (refused) throw refused
      apply(handle as DocHandle<unknown>)
    })
  }

  /** The document now. */
  async get(): Promise<DocumentSnapshot<T>> {
    await this.client.holdings.ready
    const held = this.#held()
    await this.client.open(held)
    return this.#snapshot(held)
  }

  /** Tells the document, and again whenever it changed. The returned function ends that. */
  onSnapshot(next: (snapshot: DocumentSnapshot<T>) => void): () => void
  onSnapshot(options: { includeMetadataChanges?: boolean }, next: (snapshot: DocumentSnapshot<T>) => void): () => void
  onSnapshot(...words: unknown[]): () => void {
    const next = words.pop() as (snapshot: DocumentSnapshot<T>) => void
    const { includeMetadataChanges = false } = (words[0] ?? {}) as { includeMetadataChanges?: boolean }
    this.client.assertOpen()
    let told: string | undefined
    let timer: ReturnType<typeof setTimeout> | undefined
    let isOver = false
    let isLooked = false
    const tell = () => {
      timer = undefined
      // Another one, once it was deleted and is back.
      const held = this.#held()
      const snapshot = this.#snapshot(held)
      if (!snapshot.exists && !isLooked) return
      const metadata = includeMetadataChanges ? JSON.stringify(snapshot.metadata) : ""
      const now = `${snapshot.exists} ${held.standing()?.heads} ${metadata}`
      if (now === told || isOver) return
      told = now
      next(snapshot)
    }
    const schedule = () => void (isOver || (timer ??= setTimeout(tell, 0)))
    const unwatch = this.client.holdings.watch(this.collection, schedule)
    const offStatus = this.client.onStatus(schedule)
    const open = async () => {
      await this.client.holdings.ready
      await this.client.open(this.#held())
    }
    void open().catch(() => {}).then(() => {
      isLooked = true
      schedule()
    })
    const offClose = this.client.connection.onClose(() => stop())
    const stop = () => {
      if (isOver) return
      isOver = true
      clearTimeout(timer)
      unwatch()
      offStatus()
      offClose()
    }
    return stop
  }

  /**
   * Waits until the server has on its disk what this client has of the document now.
   *
   * @throws TidelogError `E0203` when something of it was refused, and taken back: see `client.rejected`.
   */
  async whenSynced(): Promise<void> {
    const { holdings, rejections } = this.client
    const held = this.#held()
    const arrival = this.client.arrivalOf(held)
    await holdings.ready
    await this.client.until(this.collection, arrival.isThere)
    const { refused } = rejections.trace(arrival.heads ?? [])
    if (refused) throw refused
    if (held.isRefused || (held.isDeleted && !holdings.has(held))) throw deleted(this.url)
  }

  /** Hides it here at once, and on the server as soon as that answers; resolves then. */
  async delete(): Promise<void> {
    this.client.assertOpen()
    const held = this.#held()
    this.client.holdings.hide(held, true)
    await this.client.remove(held)
  }

  /** Who has the document open, and what they say of themselves. Nothing of it is stored. */
  presence<S extends Record<string, unknown>>(initial: S): DocumentPresence<S> {
    return new DocumentPresence<S>(this.handle as DocHandle<unknown>, initial, ended => this.client.connection.onClose(ended))
  }

  #held(): Held {
    return this.client.holdings.find(this.id) ?? this.client.holdings.hold(this.collection, this.id)
  }

  /** Why it takes no edits. */
  #refusal(held: Held): TidelogError | undefined {
    if (held.isRefused || held.isDeleted) return deleted(this.url)
    return held.isRejected ? this.client.rejections.creationRefused(this.id) : undefined
  }

  #snapshot(held: Held): DocumentSnapshot<T> {
    const standing = held.standing()
    const metadata = { fromCache: this.client.status !== "connected", hasPendingWrites: standing?.isPending ?? false }
    return new DocumentSnapshot<T>(this, held.name, standing !== undefined, standing?.value, metadata)
  }
}

function deleted(url: string): TidelogError {
  return new TidelogError("E0602", `the document ${url} is deleted`, "tidelog restore <id>")
}

/** Asks the server to delete a document until it has answered. */
export async function removeOnServer(client: Client, held: Held): Promise<void> {
  const path = `/v1/collections/${held.collection}/documents/${urlOf(held.documentId)}`
  for (let attempt = 0; ; attempt += 1) {
    try {
      await client.connection.whenUp()
      await client.connection.request(path, { method: "DELETE" })
      return
    } catch (error) {
      const known = error instanceof TidelogError ? error : unreachable(client.connection.url, error)
      // Already deleted, or never there.
      if (known.status === 410 || known.code === "E0601") return
      // Edits wait for a token that is accepted, too.
      if (known.code !== "E0501" && known.status !== 401 && !isTransient(known)) throw known
      await client.connection.pauseFor(retryDelayAfter(attempt, client.connection.retryMs, known.retryAfterMs))
    }
  }
}

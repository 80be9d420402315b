// One listener: follows the server's word on a query and what happens here, and tells what is shown.

import type { DocumentId } from "@automerge/automerge-repo/slim"
import type { Client } from "./client.js"
import { stepsBetween } from "./changes.js"
import { reason, TidelogError } from "./error.js"
import type { Held, ToldDocument } from "./holdings.js"
import { documentIdOf } from "./ids.js"
import { specToJson, type QuerySpec } from "./query-spec.js"
import { resultOf, type Shown } from "./result.js"
import { Shape, type Place } from "./shape.js"
import { follow } from "./stream.js"

export interface ListenOptions {
  /** Also tell when only the metadata changed. */
  includeMetadataChanges?: boolean
  /** Keep the documents of the result open here, so that they can be edited without a network. 256 at most. */
  hold?: boolean
}

/** What a listener tells. */
export interface Told {
  before: readonly Shown[]
  now: readonly Shown[]
  fromCache: boolean
  position: string | undefined
}

interface Snapshot {
  reset: boolean
  position: string
  from_cache: boolean
  changes: { type: "added" | "modified" | "removed"; document: ToldDocument }[]
}

const OPEN_MAX = 256

export class Listener {
  readonly shape: Shape
  readonly #base = new Map<DocumentId, Held>()
  #shown: readonly Shown[] = []
  #hasTold = false
  #isLive = false
  #isServerCached = false
  #canAnswer = false
  #position: string | undefined
  #metadata = ""
  #timer: ReturnType<typeof setTimeout> | undefined
  readonly #ending = new AbortController()
  readonly #unwatch: () => void
  readonly #offClose: () => void

  constructor(
    readonly client: Client,
    readonly collection: string,
    readonly spec: QuerySpec,
    readonly options: ListenOptions,
    readonly next: (told: Told) => void,
    readonly failed: (error: TidelogError) => void,
  ) {
    this.shape = new Shape(spec)
    this.#unwatch = client.holdings.watch(collection, () => this.#schedule())
    this.#offClose = client.connection.onClose(this.stop)
    void client.holdings.ready.then(() => this.#schedule())
    this.#run().catch((error: unknown) => this.#fail(error))
  }

  readonly stop = (): void => {
    if (this.#ending.signal.aborted) return
    this.#ending.abort()
    this.#unwatch()
    this.#offClose()
    clearTimeout(this.#timer)
    for (const held of this.#base.values()) held.shown -= 1
    this.#base.clear()
  }

  async #run(): Promise<void> {
    await this.client.holdings.ready
    const path = `/v1/collections/${this.collection}/listen`
    const query = JSON.stringify(specToJson(this.spec))
    const address = () => {
      const asked = new URLSearchParams({ query })
      if (this.#position !== undefined) asked.set("since", this.#position)
      return `${path}?${asked}`
    }
    if (!this.client.connection.isUp) this.#down()
    const offStatus = this.client.connection.onStatus(() => {
      if (!this.client.connection.isUp) this.#down()
    })
    try {
      for await (const item of follow(this.client.connection, address, this.#ending.signal)) {
        if (item.kind === "down") {
          this.client.connection.lastError = item.error
          this.#down()
        } else if (item.kind === "event" && item.name === "snapshot") {
          this.#take(item.data as Snapshot)
        }
      }
    } finally {
      offStatus()
    }
  }

  #down(): void {
    this.#isLive = false
    this.#canAnswer = true
    this.#schedule()
  }

  #fail(error: unknown): void {
    if (this.#ending.signal.aborted) return
    const known = error instanceof TidelogError ? error : new TidelogError("E0317", reason(error), "this is a fault of the client: report it")
    if (known.status === 401 || known.status === 403) this.client.connection.status = "denied"
    this.client.connection.lastError = known
    this.stop()
    this.failed(known)
  }

  #take({ reset, position, from_cache: isCached, changes }: Snapshot): void {
    const { holdings } = this.client
    const before = reset ? new Map(this.#base) : new Map<DocumentId, Held>()
    for (const { type, document } of changes) {
      const id = documentIdOf(document.id)
      before.delete(id)
      if (type === "removed") {
        this.#lose(id)
        continue
      }
      // It was created, and what it was created with is still on its way.
      if (document.heads.length === 0) continue
      const held = holdings.tell(this.collection, id, document, reset)
      const old = this.#base.get(id)
      // Another one, once it was deleted here and is back.
      if (old !== held) {
        if (old) old.shown -= 1
        held.shown += 1
        this.#base.set(id, held)
      }
      // One that cannot be opened is shown all the same.
      if (this.options.hold && this.#base.size <= OPEN_MAX) this.client.open(held).catch(() => {})
    }
    for (const id of before.keys()) this.#lose(id)
    this.#position = position
    this.#isServerCached = isCached
    this.#isLive = true
    this.#canAnswer = true
    this.#schedule()
  }

  #lose(id: DocumentId): void {
    const held = this.#base.get(id)
    if (!held) return
    this.#base.delete(id)
    held.shown -= 1
    // Where there is a limit, others may have taken its place.
    const { limit } = this.spec
    this.client.holdings.left(held, value => limit === undefined && this.shape.find(id, value) !== undefined)
  }

  /** All that happens in one turn is told at once, and nothing is told while somebody is told something. */
  #schedule(): void {
    if (this.#timer !== undefined || this.#ending.signal.aborted) return
    this.#timer = setTimeout(() => {
      this.#timer = undefined
      this.#tell()
    }, 0)
  }

  #tell(): void {
    const now = resultOf(this.client.holdings, this.collection, this.shape, this.#isLive ? new Set(this.#base.keys()) : undefined)
    // Until the server has answered, or is known not to, nothing found here is no answer.
    if (!this.#canAnswer && now.length === 0 && !this.#hasTold) return
    const before = this.#shown
    const fromCache = !this.#isLive || this.#isServerCached
    const metadata = `${fromCache} ${now.map(({ isPending }) => Number(isPending)).join("")}`
    const withMetadata = this.options.includeMetadataChanges ?? false
    const isNew = !this.#hasTold
      || stepsBetween(before, now, (a: Place, b: Place) => this.shape.compare(a, b), false).length > 0
      || (withMetadata && metadata !== this.#metadata)
    if (!isNew) return
    this.#hasTold = true
    this.#metadata = metadata
    this.#shown = now
    this.next({ before, now, fromCache, position: this.#position })
  }
}

// What this client holds of collections: for each document what the server told last, and what is here and has not
// reached it yet. With a store it outlives the page.

import * as A from "@automerge/automerge/slim"
import { decodeHeads } from "@automerge/automerge-repo/slim"
import type { DocHandle, DocumentId, Repo, StorageAdapterInterface } from "@automerge/automerge-repo/slim"
import type { TidelogAdapter } from "./adapter.js"
import { storageFault, type TidelogError } from "./error.js"
import { urlOf } from "./ids.js"
import { again } from "./store.js"
import { fromJson, toJson } from "./values.js"

/** Documents of one collection that are held; of more, those are let go that nobody looks at. */
const HELD_MAX = 10_000
/** How long a document that reached the server is shown although no listener was told of it. */
const SETTLE_MS = 5_000
const SAVE_MS = 20
/** After how long what the store did not take is offered to it again. */
const SAVE_AGAIN_MS = 5_000
const KEY = ["tidelog", "collection"]

/** Heads as one text, so that they compare. */
export function headsKey(heads: readonly string[]): string {
  return [...heads].sort().join(",")
}

const headsOf = (key: string) => (key === "" ? [] : key.split(","))

/** A document as the server tells it. */
export interface ToldDocument {
  id: string
  name?: string | null
  heads: string[]
  value: unknown
  position: number
}

/** What is shown of a document. */
export interface Standing {
  heads: string
  value: unknown
  isPending: boolean
  /** It is what the server told, and no newer. */
  isTold: boolean
}

/** One document. */
export class Held {
  name: string | null = null
  /** `isOurs`: it is what was here when it was written down, and has edits that the server may not have. */
  told: { heads: string; value: unknown; position: number; isOurs?: boolean } | undefined
  handle: DocHandle<unknown> | undefined
  /** Heads that are known to be durable on the server. */
  synced: string | undefined
  isPending = false
  /** The heads with which it is not there any more, as far as listeners can tell. */
  goneAt: string | undefined
  isDeleted = false
  /** Its deletion on the server, while that is under way. */
  removal: Promise<void> | undefined
  /** The server takes nothing of it and gives nothing: it is deleted there. */
  isRefused = false
  /** Made here, and not known to the server yet. */
  isNew = false
  /** The server does not let it be created: nothing of it is left here. */
  isRejected = false
  /** Its document is being replaced. */
  isMoving = false
  /** Why what was edited here before this start cannot be brought to the server: the store does not give it. */
  fault: TidelogError | undefined
  settledAt = -Infinity
  isSettling = false
  detach: () => void = () => {}
  /** Listeners that show it. */
  shown = 0
  #local: { heads: string; value: unknown } | undefined

  constructor(readonly collection: string, readonly documentId: DocumentId) {}

  /** The document as it is here, if it is. */
  get doc(): A.Doc<unknown> | undefined {
    return this.handle?.isReady() ? this.handle.doc() : undefined
  }

  local(): { heads: string; value: unknown } | undefined {
    const doc = this.doc
    if (!doc) return undefined
    const heads = headsKey(A.getHeads(doc))
    // Without a change there is no document.
    if (heads === "") return undefined
    if (this.#local?.heads !== heads) this.#local = { heads, value: A.toJS(doc) }
    return this.#local
  }

  /** What is shown of it; undefined when it is not there. */
  standing(): Standing | undefined {
    if (this.isDeleted || this.isRefused) return undefined
    const local = this.local()
    const { told, isPending } = this
    if (local && (!told || local.heads === told.heads || isPending || this.#holds(told.heads))) {
      if (this.goneAt === local.heads && !isPending) return undefined
      return { ...local, isPending, isTold: local.heads === told?.heads }
    }
    if (!told) return undefined
    return { heads: told.heads, value: told.value, isPending, isTold: !told.isOurs }
  }

  #holds(heads: string): boolean {
    const doc = this.doc
    return doc !== undefined && A.hasHeads(doc, headsOf(heads))
  }
}

type Written = {
  name: string | null
  heads: string
  value: unknown
  position: number
  synced: string | null
  pending: boolean
  deleted: boolean
  isNew: boolean
}

export class Holdings {
  /** When what the store has is known. */
  readonly ready: Promise<void>
  readonly #collections = new Map<string, Map<DocumentId, Held>>()
  readonly #byId = new Map<DocumentId, Held>()
  readonly #watchers = new Map<string, Set<() => void>>()
  readonly #lively = new Map<string, Set<Held>>()
  readonly #unsaved = new Set<Held>()
  readonly #timers = new Set<ReturnType<typeof setTimeout>>()
  /** What was asked of the store last. Never fails, or nothing would be asked of it any more. */
  #saving: Promise<void>
  #saveTimer: ReturnType<typeof setTimeout> | undefined
  #saveAt = 0
  /** What the store has is not known: it failed. */
  #isUnread = false
  #isClosed = false

  constructor(
    readonly repo: Repo,
    readonly adapter: TidelogAdapter,
    readonly storage: StorageAdapterInterface | undefined,
  ) {
    this.ready = this.#load().catch((error: unknown) => {
      adapter.fail(storageFault(error))
      this.#saveAfter(SAVE_AGAIN_MS)
    })
    // What it has is read before anything is written over it, and before the server hears of any of it.
    this.#saving = this.ready
    adapter.loaded = this.ready
    adapter.onServer = () => {
      for (const held of this.#byId.values()) {
        // Who says no says it again.
        held.isRefused = false
        if (held.handle) this.#look(held)
      }
    }
    adapter.on("message", message => {
      if (message.type === "doc-unavailable" && message.documentId) this.#refuse(message.documentId)
    })
  }

  /** Everything that is held of a collection. */
  of(collection: string): Iterable<Held> {
    return this.#collections.get(collection)?.values() ?? []
  }

  /** What of a collection is on its way to the server, or arrived there just now. */
  lively(collection: string): Iterable<Held> {
    return this.#lively.get(collection) ?? []
  }

  find(documentId: DocumentId): Held | undefined {
    return this.#byId.get(documentId)
  }

  /** The documents that have something to bring to the server. */
  pending(): Held[] {
    return [...this.#lively.values()].flatMap(all => [...all]).filter(held => held.isPending || held.isDeleted)
  }

  hold(collection: string, documentId: DocumentId): Held {
    const all = this.#collections.get(collection) ?? new Map<DocumentId, Held>()
    this.#collections.set(collection, all)
    let held = all.get(documentId)
    if (!held) {
      held = new Held(collection, documentId)
      all.set(documentId, held)
      this.#byId.set(documentId, held)
      const handle = this.repo.handles[documentId]
      if (handle) this.attach(held, handle)
      if (all.size > HELD_MAX) this.#letGo(all, held)
    }
    return held
  }

  watch(collection: string, changed: () => void): () => void {
    const all = this.#watchers.get(collection) ?? new Set()
    this.#watchers.set(collection, all.add(changed))
    return () => void all.delete(changed)
  }

  /** Takes what the server says of a document. */
  tell(collection: string, documentId: DocumentId, document: ToldDocument, isReset: boolean): Held {
    const held = this.hold(collection, documentId)
    const heads = headsKey(document.heads)
    held.goneAt = undefined
    held.isRefused = false
    if (held.told && !isReset && document.position < held.told.position) return held
    if (held.told?.heads !== heads || held.told.isOurs) {
      held.told = { heads, value: fromJson(document.value), position: document.position }
      held.name = document.name ?? null
      this.#save(held)
    }
    const handle = held.handle ?? this.repo.handles[documentId]
    if (handle && !held.handle) this.attach(held, handle)
    if (held.handle) this.#look(held)
    else if (!held.isPending) held.synced = heads
    return held
  }

  /**
   * A listener was told that a document left its result. What is open here stays, unless `isOut` says that it would
   * still be in the result: then it was deleted, or moved to another collection.
   */
  left(held: Held, isOut: (value: unknown) => boolean): void {
    if (held.shown > 0 || this.#byId.get(held.documentId) !== held) return
    const local = held.local()
    if (!local && !held.isPending && !held.isDeleted) this.forget(held)
    if (local && isOut(local.value) && held.goneAt !== local.heads) {
      held.goneAt = local.heads
      this.#notify(held.collection)
    }
  }

  /** Follows what happens to a document that is open here. */
  attach(held: Held, handle: DocHandle<unknown>): void {
    if (!this.has(held) || handle.isDeleted()) return
    // It may have become ready since, of which nothing tells.
    if (held.handle === handle) return this.#look(held)
    held.detach()
    held.handle = handle
    const look = () => this.#look(held)
    handle.on("heads-changed", look)
    const hear = () => {
      held.isRefused = false
      look()
    }
    handle.on("remote-heads", hear)
    // Somebody took it out of the repo: there is nothing to bring any more.
    const lose = () => void this.forget(held)
    handle.on("delete", lose)
    held.detach = () => {
      handle.off("heads-changed", look)
      handle.off("remote-heads", hear)
      handle.off("delete", lose)
    }
    look()
  }

  /** A document that was made here. */
  create(collection: string, handle: DocHandle<unknown>): Held {
    this.adapter.creations.set(handle.documentId, { collection })
    const held = this.hold(collection, handle.documentId)
    held.isNew = true
    held.isRefused = false
    this.attach(held, handle)
    // A handle of before that was not ready has told nobody of what it has now.
    this.#look(held)
    return held
  }

  /** A document that was made here and may not be there was taken back. */
  refuseCreation(held: Held): void {
    // Whoever was told of that has made it anew.
    if (held.local()) return
    this.adapter.settle(held.documentId)
    held.isRejected = true
    held.isNew = false
    held.isPending = false
    held.told = undefined
    this.#enliven(held)
    this.#changed(held)
  }

  /** Hides a document here, before the server has deleted it. */
  hide(held: Held, isDeleted: boolean): void {
    held.isDeleted = isDeleted
    this.#enliven(held)
    this.#changed(held)
  }

  /** Whether it is what is held of its document, and was not forgotten meanwhile. */
  has(held: Held): boolean {
    return this.#byId.get(held.documentId) === held
  }

  forget(held: Held): void {
    if (!this.has(held)) return
    held.detach()
    this.#collections.get(held.collection)?.delete(held.documentId)
    this.#byId.delete(held.documentId)
    this.#lively.get(held.collection)?.delete(held)
    this.adapter.settle(held.documentId)
    this.#unsaved.delete(held)
    this.#saving = this.#saving.then(() => this.#remove(held)).catch(() => {})
    this.#notify(held.collection)
  }

  /**
   * Whether the server is known to have these changes of a document on its disk, or all, when it is not known which.
   *
   * @throws TidelogError when the store does not give them.
   */
  isDurable(held: Held, heads: readonly string[] | undefined): boolean {
    if (!held.isPending || held.isRefused || !this.has(held)) return true
    if (held.fault) throw held.fault
    return held.handle !== undefined && heads !== undefined && this.missing(held.handle, heads)?.length === 0
  }

  /** Replaces a document, and looks at it after. */
  replace(held: Held, move: () => void): void {
    held.isMoving = true
    try {
      move()
    } finally {
      held.isMoving = false
    }
    this.#look(held)
  }

  /** Those of some changes of a document that the server does not have; undefined when it is not known what it has. */
  missing(handle: DocHandle<unknown>, changes: readonly string[]): string[] | undefined {
    const doc = handle.isReady() ? handle.doc() : undefined
    const theirs = this.#heardOf(handle)
    if (!doc || !theirs || !A.hasHeads(doc, theirs)) return undefined
    const ahead = new Set(A.getChangesMetaSince(doc, theirs).map(({ hash }) => hash))
    return changes.filter(hash => ahead.has(hash))
  }

  async close(): Promise<void> {
    this.#isClosed = true
    for (const timer of this.#timers) clearTimeout(timer)
    this.#watchers.clear()
    for (const held of this.#byId.values()) held.detach()
    await this.flush()
  }

  /** Writes what is not in the store yet. What that does not take is offered to it again. */
  async flush(): Promise<void> {
    clearTimeout(this.#saveTimer)
    this.#saveTimer = undefined
    const written = this.#saving.then(() => this.#write())
    this.#saving = written.catch(() => this.#saveAfter(SAVE_AGAIN_MS))
    await written
  }

  /** What the server last said it has of a document. */
  #heardOf(handle: DocHandle<unknown> | undefined): string[] | undefined {
    const { storageId } = this.adapter
    const heads = storageId && handle?.getSyncInfo(storageId)?.lastHeads
    return heads && decodeHeads(heads)
  }

  /**
   * The server says that it has no such document. When it was told changes of it, it has hidden it; when nothing that is
   * here can be told, since it stands on what is nowhere, nothing is to be brought.
   */
  #refuse(documentId: DocumentId): void {
    const held = this.#byId.get(documentId)
    if (!held?.doc) return
    held.isRefused = A.getHeads(held.doc).length > 0
    held.isPending = false
    this.#enliven(held)
    this.#changed(held)
  }

  #look(held: Held): void {
    const local = held.local()
    if (!local || held.isRefused || held.isMoving) return
    // It is here itself now, and what the server has of it is not known from what was written down.
    if (held.told?.isOurs) held.told = undefined
    if (held.isRejected) {
      // It is made once more.
      held.isRejected = false
      held.isNew = true
      this.adapter.creations.set(held.documentId, { collection: held.collection })
    }
    const heard = this.#heardOf(held.handle)
    const isKnown = local.heads === held.synced || local.heads === held.told?.heads
      || (heard !== undefined && local.heads === headsKey(heard))
    const isDurable = isKnown && !held.fault
    const before = `${held.isPending} ${held.synced}`
    if (isDurable) {
      held.synced = local.heads
      if (held.isPending) held.settledAt = performance.now()
      held.isPending = false
      held.isNew = false
      this.adapter.settle(held.documentId)
    } else {
      held.isPending = true
    }
    this.#enliven(held)
    if (before !== `${held.isPending} ${held.synced}` || held.isPending) this.#save(held)
    this.#notify(held.collection)
  }

  #enliven(held: Held): void {
    const all = this.#lively.get(held.collection) ?? new Set<Held>()
    this.#lively.set(held.collection, all)
    const settles = held.settledAt + SETTLE_MS - performance.now()
    if (held.isPending || held.isDeleted || settles > 0) {
      all.add(held)
    } else {
      all.delete(held)
    }
    if (!held.isPending && !held.isDeleted && settles > 0 && !this.#isClosed && !held.isSettling) {
      held.isSettling = true
      const timer = setTimeout(() => {
        this.#timers.delete(timer)
        held.isSettling = false
        this.#enliven(held)
        this.#notify(held.collection)
      }, settles + 1)
      // Nothing is lost if the process ends before.
      ;(timer as { unref?: () => void }).unref?.()
      this.#timers.add(timer)
    }
  }

  #changed(held: Held): void {
    this.#save(held)
    this.#notify(held.collection)
  }

  #notify(collection: string): void {
    for (const changed of [...(this.#watchers.get(collection) ?? [])]) changed()
  }

  #letGo(all: Map<DocumentId, Held>, newest: Held): void {
    for (const held of all.values()) {
      if (held === newest || held.isPending || held.isDeleted || held.shown > 0 || held.handle) continue
      this.forget(held)
      return
    }
  }

  #save(held: Held): void {
    if (!this.storage) return
    this.#unsaved.add(held)
    this.#saveAfter(SAVE_MS)
  }

  #saveAfter(ms: number): void {
    const at = performance.now() + ms
    if (this.#isClosed || (this.#saveTimer && this.#saveAt <= at)) return
    clearTimeout(this.#saveTimer)
    this.#saveAt = at
    this.#saveTimer = setTimeout(() => {
      this.flush().catch((error: unknown) => this.adapter.fail(storageFault(error)))
    }, ms)
  }

  async #remove(held: Held): Promise<void> {
    const { storage } = this
    if (storage) await again(() => storage.remove([...KEY, held.collection, held.documentId]))
  }

  async #write(): Promise<void> {
    const { storage } = this
    if (!storage) return
    // What was not read must not be written over.
    if (this.#isUnread) await this.#load()
    const all = [...this.#unsaved]
    this.#unsaved.clear()
    const faults: unknown[] = []
    // One that the store does not take does not keep the others out.
    for (const held of all) {
      await this.#writeOne(storage, held).catch((error: unknown) => {
        faults.push(error)
        this.#unsaved.add(held)
      })
    }
    if (faults.length > 0) throw faults[0]
  }

  async #writeOne(storage: StorageAdapterInterface, held: Held): Promise<void> {
    if (!this.has(held)) return
    if (held.isRejected) return await this.#remove(held)
    const shown = held.standing() ?? held.told
    const written: Written = {
      name: held.name,
      heads: shown?.heads ?? "",
      value: noted(shown?.value ?? null),
      position: held.told?.position ?? -1,
      synced: held.synced ?? null,
      pending: held.isPending,
      deleted: held.isDeleted,
      isNew: held.isNew,
    }
    const data = new TextEncoder().encode(JSON.stringify(written))
    await again(() => storage.save([...KEY, held.collection, held.documentId], data))
  }

  async #load(): Promise<void> {
    const { storage } = this
    if (!storage) return
    this.#isUnread = true
    const chunks = await again(() => storage.loadRange(KEY))
    this.#isUnread = false
    const decoder = new TextDecoder()
    for (const { key, data } of chunks) {
      const [, , collection, documentId] = key
      if (!collection || !documentId || !data) continue
      try {
        this.#remember(collection, documentId as DocumentId, JSON.parse(decoder.decode(data)) as Written)
      } catch {
        // Half written by a process that ended; the server knows the document.
      }
    }
  }

  /** Takes what the store has of a document. Whoever was quicker than the store may hold it already. */
  #remember(collection: string, documentId: DocumentId, written: Written): void {
    const value = fromJson(written.value)
    const early = this.#byId.get(documentId)
    if (early ? early.collection !== collection : this.#isClosed) return
    const held = early ?? this.hold(collection, documentId)
    held.name ??= written.name
    // Of one that was never seen nothing is written but what is to be done to it.
    if (written.heads !== "") held.told ??= { heads: written.heads, value, position: written.position, isOurs: written.pending }
    held.synced ??= written.synced ?? undefined
    held.isDeleted ||= written.deleted
    held.isNew ||= written.isNew
    held.isPending ||= written.pending
    if (held.isNew) this.adapter.creations.set(documentId, { collection })
    this.#look(held)
    this.#enliven(held)
    if (written.pending && !this.#isClosed) void this.#bring(held)
    if (early) this.#changed(held)
  }

  /** Opens a document that has something for the server. */
  async #bring(held: Held): Promise<void> {
    let handle: DocHandle<unknown>
    try {
      handle = await this.repo.find<unknown>(urlOf(held.documentId), { allowableStates: ["ready", "unavailable"] })
    } catch (error) {
      held.fault = storageFault(error)
      this.adapter.fail(held.fault)
      this.#notify(held.collection)
      return
    }
    if (!this.has(held)) return
    this.attach(held, handle)
    if (held.local()) return
    // The process ended before the store had the edits themselves: there is nothing to bring.
    const isTold = held.told !== undefined && !held.told.isOurs
    if (held.isNew && !held.isDeleted && !isTold) return this.forget(held)
    // What stands on changes that the server has comes to light with those.
    if (!handle.isReady() || held.isNew) held.isPending = false
    // It was sent before that, and the server tells it.
    if (isTold) {
      held.isNew = false
      this.adapter.settle(held.documentId)
    }
    this.#enliven(held)
    this.#changed(held)
  }
}

/** A value as the store has it; nothing in place of what cannot be written as JSON. The document has it all the same. */
function noted(value: unknown): unknown {
  try {
    return toJson(value)
  } catch {
    return null
  }
}

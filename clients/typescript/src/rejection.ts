// Edits that the server does not take. They show here at once; when it refuses them they are taken back, what was made
// on top of them is made anew without, and they are kept in a list, from which they can be made again.

import * as A from "@automerge/automerge/slim"
import type { DocHandle, DocumentId, Repo } from "@automerge/automerge-repo/slim"
import type { Denial } from "./adapter.js"
import { TidelogError } from "./error.js"
import type { Held, Holdings } from "./holdings.js"
import { isWithin, makeOnTop, rebuild, type Fates } from "./rebuild.js"
import { idOf, readable, refusal, RejectedList, type Entry } from "./rejected.js"
import type { Store } from "./store.js"

/** Refused changes, and what fell with them, that are remembered, so that they are known if they come again. */
const REMEMBERED_MAX = 65_536

export class Rejections {
  readonly list: RejectedList
  readonly #repo: Repo
  readonly #holdings: Holdings
  readonly #store: Store | undefined
  readonly #refused = new Map<DocumentId, Set<string>>()
  readonly #fates: Fates = new Map()
  readonly #watched = new WeakSet<DocHandle<unknown>>()

  constructor(repo: Repo, holdings: Holdings, store: Store | undefined) {
    this.#repo = repo
    this.#holdings = holdings
    this.#store = store
    this.list = new RejectedList(store)
  }

  /** Takes back what the server says it does not take. When this returns nothing of it is in the document. */
  deny({ documentId, changes, reason }: Denial): void {
    const handle = this.#repo.handles[documentId] as DocHandle<unknown> | undefined
    if (!handle?.isReady()) return
    const doc = handle.doc()
    const here = changes.length > 0 ? this.#notThere(handle, changes.filter(hash => A.hasHeads(doc, [hash]))) : this.#beginningsOf(handle)
    if (here.length === 0) return
    this.#remember(documentId, here)
    if (!this.#watched.has(handle)) {
      this.#watched.add(handle)
      const look = () => this.#lookFor(handle)
      handle.on("heads-changed", look)
      handle.on("remote-heads", look)
    }
    this.#takeBack(handle, new Set(here), reason)
  }

  /** A deletion that the server does not make. */
  denyDeletion({ collection, documentId }: Held, { message }: TidelogError): void {
    const id = idOf(documentId, "delete")
    const entry: Entry = { id, collection, documentId, kind: "delete", at: new Date(), reason: refusal(message), patches: [], omitted: 0, leftOut: 0, changes: [] }
    this.list.add(documentId, [entry], async () => {})
  }

  /**
   * What stands now for the heads of before: those that were made anew by their new names. `refused` is why something
   * was taken back that they were or stood on.
   */
  trace(hashes: readonly string[]): { heads: string[]; refused: TidelogError | undefined } {
    const heads: string[] = []
    let refused: string | undefined
    const left = [...hashes]
    for (let hash = left.pop(); hash !== undefined; hash = left.pop()) {
      const fate = this.#fates.get(hash)
      if (fate) {
        refused = fate.refused
        left.push(...fate.now)
      } else {
        heads.push(hash)
      }
    }
    if (refused === undefined) return { heads, refused }
    const entry = this.list.all.find(({ id }) => id.endsWith(`/${refused}`))
    return { heads, refused: entry?.reason ?? refusal("what it was made with was refused") }
  }

  /** Why a document that was made here may not be there. */
  creationRefused(documentId: DocumentId): TidelogError | undefined {
    return this.list.all.findLast(entry => entry.documentId === documentId && entry.kind === "create")?.reason
  }

  /** Makes a refused edit anew, as if it were made now, and takes it off the list. `remove` deletes a document. */
  async resubmit(id: string, remove: (collection: string, documentId: DocumentId) => void): Promise<void> {
    await this.list.ready
    const entry = this.list.get(id)
    const { collection, documentId, kind } = entry
    if (kind === "delete") {
      await this.list.remove(entry)
      if (collection !== undefined) remove(collection, documentId)
      return
    }
    const handle = await this.#open(entry)
    // Somebody else may have done it meanwhile.
    this.list.get(id)
    const made = madeAgain(handle.isReady() ? handle.doc() : A.init<unknown>(), entry)
    handle.update(() => made)
    if (kind === "create" && collection !== undefined) this.#holdings.create(collection, handle)
    // It is off the stored list once it is in the stored document.
    await this.list.remove(entry, () => this.#repo.flush([documentId]))
  }

  /** Takes a refused edit off the list for good. */
  async discard(id: string): Promise<void> {
    await this.list.ready
    await this.list.remove(this.list.get(id))
  }

  async #open({ documentId, kind }: Entry): Promise<DocHandle<unknown>> {
    const open = this.#repo.handles[documentId] as DocHandle<unknown> | undefined
    const handle = open?.isReady() ? open : await this.#repo.find<unknown>(documentId, { allowableStates: ["ready", "unavailable"] })
    if (handle.isReady() || kind === "create") return handle
    throw new TidelogError("E0601", `there is no document ${documentId} here, and the server gives none`, "look whether it was deleted, or come back online")
  }

  /** The first changes of a document that may not be created, by which it is refused as a whole. */
  #beginningsOf(handle: DocHandle<unknown>): string[] {
    const all = A.getChangesMetaSince(handle.doc(), []).filter(({ deps }) => deps.length === 0).map(({ hash }) => hash)
    return this.#notThere(handle, all)
  }

  /** Those that the server is not known to have. What it has was allowed after it was refused, and that may be told first. */
  #notThere(handle: DocHandle<unknown>, hashes: string[]): string[] {
    return this.#holdings.missing(handle, hashes) ?? hashes
  }

  #remember(documentId: DocumentId, hashes: readonly string[]): void {
    const all = this.#refused.get(documentId) ?? new Set()
    // The last document is the newest.
    this.#refused.delete(documentId)
    this.#refused.set(documentId, all)
    for (const hash of hashes) all.add(hash)
    let count = 0
    for (const { size } of this.#refused.values()) count += size
    for (const [oldest, { size }] of this.#refused) {
      if (count <= REMEMBERED_MAX) break
      this.#refused.delete(oldest)
      count -= size
    }
  }

  /** Looks for refused changes that are in a document again. */
  #lookFor(handle: DocHandle<unknown>): void {
    const { documentId } = handle
    const refused = this.#refused.get(documentId)
    if (!refused || !handle.isReady()) return
    const doc = handle.doc()
    // One that could not be created is there after all.
    if (A.getHeads(doc).length > 0) this.#store?.setAbsent(documentId, false)
    const here = [...refused].filter(hash => A.hasHeads(doc, [hash]))
    const missing = here.length > 0 ? this.#holdings.missing(handle, here) : undefined
    if (!missing) return
    // What the server has was allowed meanwhile, whoever sent it.
    for (const hash of here.filter(hash => !missing.includes(hash))) {
      refused.delete(hash)
      this.#fates.delete(hash)
      const entry = this.list.find(idOf(documentId, hash))
      if (entry) this.list.remove(entry).catch(() => {})
    }
    // Another page on the same storage had the rest, or somebody merged an old copy. Not while others are told of that.
    if (missing.length > 0) queueMicrotask(() => handle.isReady() && this.#takeBack(handle, new Set(missing), "it was refused before"))
  }

  #takeBack(handle: DocHandle<unknown>, refused: ReadonlySet<string>, why: string): void {
    const rebuilt = rebuild(handle.doc(), refused)
    if (!rebuilt) return
    const { documentId } = handle
    const { kept, taken, doc } = rebuilt
    const isWhole = kept.length === 0
    const held = this.#holdings.find(documentId)
    const [kind, at] = [isWhole ? "create" as const : "change" as const, new Date()]
    const entries = taken.map(({ hash, changes, patches, leftOut, fault }): Entry =>
      ({ id: idOf(documentId, hash), collection: held?.collection, documentId, kind, at, reason: refusal(fault ?? why), ...readable(patches), leftOut, changes }))
    this.list.add(documentId, entries, store => store.takeOut(documentId, refused, this.#repo))
    this.#store?.setAbsent(documentId, isWhole)
    for (const [hash, fate] of rebuilt.fates) this.#fates.set(hash, fate)
    for (const hash of this.#fates.keys()) {
      if (this.#fates.size <= REMEMBERED_MAX) break
      this.#fates.delete(hash)
    }
    // First the document as it was before, which has all of its history: whoever listens is told exactly what is taken
    // back. Then, before anybody else can do anything, the one without, which has what was before: and what was made anew.
    const move = () => handle.update(old => {
      handle.update(() => doc)
      return A.view(old, kept)
    })
    // What is waited for is not there in between, though nothing else is either.
    if (held) this.#holdings.replace(held, move)
    else move()
    // The repo must not save the first of the two: that has what was refused.
    handle.emit("heads-changed", { handle, doc })
    if (held && isWhole) this.#holdings.refuseCreation(held)
  }
}

function madeAgain(doc: A.Doc<unknown>, { changes }: Entry): A.Doc<unknown> {
  let why = "what it was made on is not here any more"
  try {
    if (isWithin(doc, changes)) return makeOnTop(doc, changes)
  } catch (error) {
    why = String(error)
  }
  throw new TidelogError("E0601", `it cannot be made again: ${why}`, "make it by hand: client.rejected says what it did")
}

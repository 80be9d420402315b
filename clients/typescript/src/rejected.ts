// The list of what was refused: bounded, and in the store where there is one.

import type { DocumentId } from "@automerge/automerge-repo/slim"
import { TidelogError } from "./error.js"
import type { Patches } from "./rebuild.js"
import { again, type Store } from "./store.js"
import { tellAll } from "./told.js"
import { base64Of, bytesOf, fromJson, toJson } from "./values.js"

/** What is kept of what was refused: of more, the oldest go. */
const ENTRIES_MAX = 256
const BYTES_MAX = 4 * 1024 * 1024
/** Patches that are shown of an edit, and how long a text or list in one is. */
const PATCHES_MAX = 100
const LENGTH_MAX = 1_000
const KEY = ["tidelog", "rejected"]

/** An edit of this client that the server does not take. */
export interface Rejected {
  readonly id: string
  /** Where the document is, as far as it is known here. */
  readonly collection: string | undefined
  readonly documentId: DocumentId
  /** `create`: the document may not be there at all; what was made on top is in it. `delete`: it is there again. */
  readonly kind: "create" | "change" | "delete"
  /** When it was taken back. */
  readonly at: Date
  /** Why: `E0203`, in the server's words. It does not say which rule. */
  readonly reason: TidelogError
  /** What it did, as Automerge's patches; long texts are cut. */
  readonly patches: Patches
  /** Patches that are not shown. */
  readonly omitted: number
  /** Operations made on top of it that mean nothing without it and are lost, such as a field of a refused map. */
  readonly leftOut: number
}

/** An entry with what it takes to make it again. */
export interface Entry extends Rejected {
  readonly changes: readonly Uint8Array[]
}

type Written = Omit<Rejected, "at" | "reason" | "patches"> & { at: number; why: string; patches: unknown; changes: string[] }

export class RejectedList {
  /** When what the store has is on it. */
  readonly ready: Promise<void>
  readonly #store: Store | undefined
  readonly #entries = new Map<string, Entry>()
  readonly #told = new Set<(rejected: Rejected) => void>()
  #writing: Promise<unknown> = Promise.resolve()

  constructor(store: Store | undefined) {
    this.#store = store
    this.ready = this.#load()
  }

  /** The oldest first. */
  get all(): Entry[] {
    return [...this.#entries.values()].sort((a, b) => a.at.getTime() - b.at.getTime())
  }

  onRejected(told: (rejected: Rejected) => void): () => void {
    this.#told.add(told)
    return () => void this.#told.delete(told)
  }

  find(id: string): Entry | undefined {
    return this.#entries.get(id)
  }

  get(id: string): Entry {
    const entry = this.#entries.get(id)
    if (entry) return entry
    const name = JSON.stringify(String(id).slice(0, 128))
    throw new TidelogError("E0601", `nothing on the list of what was refused is called ${name}`, "look at client.rejected")
  }

  /**
   * Puts entries of a document on the list, and tells of them once they are in the store. Then something else is done
   * there, before anything newer of the document is stored.
   */
  add(documentId: DocumentId, entries: readonly Entry[], then: (store: Store) => Promise<void>): void {
    const fresh = entries.filter(({ id }) => !this.#entries.has(id))
    for (const entry of fresh) this.#entries.set(entry.id, entry)
    const gone = this.#shorten()
    const tell = () => this.#tell(fresh)
    const store = this.#store
    if (!store) return queueMicrotask(tell)
    const write = async (): Promise<void> => {
      for (const entry of fresh) if (this.#entries.has(entry.id)) await again(() => store.inner.save(keyOf(entry), toWritten(entry)))
      for (const entry of gone) await again(() => store.inner.remove(keyOf(entry)))
      await then(store)
    }
    // A store that fails still has the refused edits in the document: they are refused again after a reload.
    const written = store.rewrite(documentId, write).catch(() => {})
    this.#note(written)
    void written.then(tell)
  }

  /** Takes an entry off the list. It is off the stored list when this resolves, which is not before `first` is done. */
  async remove(entry: Entry, first: () => Promise<void> = async () => {}): Promise<void> {
    this.#entries.delete(entry.id)
    const store = this.#store
    if (!store) return
    await first()
    const removed = store.inTurn(entry.documentId, () => again(() => store.inner.remove(keyOf(entry))))
    this.#note(removed)
    await removed
  }

  /** Waits until all of it is in the store. */
  async flush(): Promise<void> {
    await this.#writing
  }

  #tell(entries: Iterable<Entry>): void {
    for (const entry of entries) tellAll(this.#told, entry)
  }

  #note(work: Promise<unknown>): void {
    this.#writing = Promise.allSettled([this.#writing, work])
  }

  /** Lets the oldest go while there is too much. */
  #shorten(): Entry[] {
    const gone: Entry[] = []
    const all = this.all
    const sizeOf = ({ changes }: Entry) => changes.reduce((sum, { length }) => sum + length, 0)
    let bytes = all.reduce((sum, entry) => sum + sizeOf(entry), 0)
    while (all.length > 1 && (all.length > ENTRIES_MAX || bytes > BYTES_MAX)) {
      const oldest = all.shift()!
      bytes -= sizeOf(oldest)
      this.#entries.delete(oldest.id)
      gone.push(oldest)
    }
    return gone
  }

  async #load(): Promise<void> {
    const chunks = (await this.#store?.loadRange(KEY).catch(() => [])) ?? []
    const loaded: Entry[] = []
    for (const { data } of chunks) {
      const entry = data && fromWritten(data)
      if (!entry || this.#entries.has(entry.id)) continue
      this.#entries.set(entry.id, entry)
      loaded.push(entry)
    }
    this.#tell(loaded)
  }
}

/** The name of what was refused of a document: a change, or that it is deleted. The same wherever it is heard of. */
export const idOf = (documentId: DocumentId, hash: string): string => `${documentId}/${hash}`
const keyOf = ({ documentId, id }: Entry) => [...KEY, documentId, id.slice(documentId.length + 1)]

/** Why something was refused, in the server's words. */
export function refusal(why: string): TidelogError {
  return new TidelogError("E0203", why, "it is in client.rejected: once it is allowed, client.resubmit(id) makes it again")
}

/** What is shown of an edit. */
export function readable(patches: Patches): { patches: Patches; omitted: number } {
  const shown = patches.slice(0, PATCHES_MAX).map(patch => shortened(patch) as Patches[number])
  return { patches: shown, omitted: patches.length - shown.length }
}

function shortened(value: unknown): unknown {
  if (typeof value === "string") return value.length > LENGTH_MAX ? `${value.slice(0, LENGTH_MAX)}…` : value
  if (value instanceof Uint8Array) return value.slice(0, LENGTH_MAX)
  if (Array.isArray(value)) return value.slice(0, LENGTH_MAX).map(shortened)
  if (typeof value !== "object" || value === null || Object.getPrototypeOf(value) !== Object.prototype) return value
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, shortened(part)]))
}

function toWritten(entry: Entry): Uint8Array {
  const { at, reason, patches, changes, ...rest } = entry
  const written: Written = { ...rest, at: at.getTime(), why: reason.message, patches: toJson(patches), changes: changes.map(base64Of) }
  return new TextEncoder().encode(JSON.stringify(written))
}

/** An entry that was stored; nothing when it cannot be read. */
function fromWritten(data: Uint8Array): Entry | undefined {
  try {
    const { at, why, patches, changes, ...rest } = JSON.parse(new TextDecoder().decode(data)) as Written
    return { ...rest, collection: rest.collection, at: new Date(at), reason: refusal(why), patches: fromJson(patches) as Patches, changes: changes.map(bytesOf) }
  } catch {
    // Half written by a process that ended; the server refuses it again.
    return undefined
  }
}

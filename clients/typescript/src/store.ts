// The application's storage, in which what concerns one document happens in turn: what was refused is written down and
// taken out of it before anything newer of the document is written.

import * as A from "@automerge/automerge/slim"
import type { DocumentId, StorageAdapterInterface } from "@automerge/automerge-repo/slim"
import { rebuild } from "./rebuild.js"

type Key = Parameters<StorageAdapterInterface["load"]>[0]
type Chunks = Awaited<ReturnType<StorageAdapterInterface["loadRange"]>>

export class Store implements StorageAdapterInterface {
  readonly #last = new Map<string, Promise<unknown>>()
  readonly #absent = new Set<string>()

  constructor(readonly inner: StorageAdapterInterface) {}

  load(key: Key): Promise<Uint8Array | undefined> {
    return this.inner.load(key)
  }

  loadRange(key: Key): Promise<Chunks> {
    return this.inner.loadRange(key)
  }

  save(key: Key, data: Uint8Array): Promise<void> {
    return this.inTurn(key[0]!, async () => {
      if (!this.#absent.has(key[0]!)) await this.inner.save(key, data)
    })
  }

  remove(key: Key): Promise<void> {
    return this.inTurn(key[0]!, () => this.inner.remove(key))
  }

  removeRange(key: Key): Promise<void> {
    return this.inTurn(key[0]!, () => this.inner.removeRange(key))
  }

  /** Does something after all that was to be done about a document before. */
  inTurn<T>(documentId: string, work: () => Promise<T>): Promise<T> {
    const done = (this.#last.get(documentId) ?? Promise.resolve()).then(work, work)
    this.#last.set(documentId, done)
    const forget = () => void (this.#last.get(documentId) === done && this.#last.delete(documentId))
    done.then(forget, forget)
    return done
  }

  /** Whether a document is to be kept at all: one that may not be there is not. */
  setAbsent(documentId: DocumentId, isAbsent: boolean): void {
    if (isAbsent) this.#absent.add(documentId)
    else this.#absent.delete(documentId)
  }

  /**
   * Takes changes out of what is stored of a document, and what stands on them; it is made anew as `rebuild` does. Only
   * within a turn. What others have stored meanwhile stays.
   */
  async takeOut(documentId: DocumentId, changes: ReadonlySet<string>): Promise<void> {
    const ranges = await Promise.all(["snapshot", "incremental"].map(kind => this.inner.loadRange([documentId, kind])))
    const chunks = ranges.flat()
    let doc = A.init<unknown>()
    // Snapshots first, as they were written.
    for (const { data } of chunks) if (data) doc = A.loadIncremental(doc, data)
    const rebuilt = rebuild(doc, changes)
    if (!rebuilt) return
    if (rebuilt.kept.length > 0) {
      // Under a name of its own: those of automerge-repo are removed by whoever wrote them.
      const name = `rebuilt-${A.getActorId(rebuilt.doc)}`
      await this.inner.save([documentId, "snapshot", name], A.save(rebuilt.doc))
    }
    for (const { key } of chunks) await this.inner.remove(key)
  }
}

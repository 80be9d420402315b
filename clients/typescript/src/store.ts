// The application's storage, in which what concerns one document happens in turn: what was refused is written down and
// taken out of it before anything newer of the document is written.

import * as A from "@automerge/automerge/slim"
import type { DocumentId, Repo, StorageAdapterInterface } from "@automerge/automerge-repo/slim"
import { rebuild } from "./rebuild.js"

type Key = Parameters<StorageAdapterInterface["load"]>[0]
type Chunks = Awaited<ReturnType<StorageAdapterInterface["loadRange"]>>

/** Under which the repo keeps its own name. Without one it would connect to nobody. */
const NAME = "storage-adapter-id"

/** How long it is waited before a store that fails is asked again, in milliseconds. Then it has failed. */
const PAUSES_MS = [50, 250, 1_000]

/** Asks a store, and again when it fails: it may be busy, or just opening. */
export async function again<T>(ask: () => Promise<T>): Promise<T> {
  for (const ms of PAUSES_MS) {
    try {
      return await ask()
    } catch {
      await new Promise(done => setTimeout(done, ms))
    }
  }
  return await ask()
}

export class Store implements StorageAdapterInterface {
  readonly #last = new Map<string, Promise<unknown>>()
  readonly #absent = new Set<string>()
  readonly #rewritten = new Map<string, Promise<unknown>>()
  /** Documents of which the repo reads what is left. */
  readonly #left = new Set<string>()

  /** `failed` is told of what fails for good and may be waited for by nobody. */
  constructor(
    readonly inner: StorageAdapterInterface,
    readonly failed: (error: unknown) => void = () => {},
  ) {}

  async load(key: Key): Promise<Uint8Array | undefined> {
    const read = this.#read(() => this.inner.load(key))
    return await (key[0] === NAME ? read.catch(() => undefined) : read)
  }

  async loadRange(key: Key): Promise<Chunks> {
    const chunks = await this.#read(() => this.inner.loadRange(key))
    const [documentId, kind] = key
    if (chunks.length > 0 || kind !== "snapshot" || !this.#left.has(documentId!)) return chunks
    // It takes no note of nothing.
    return [{ key: [...key, "nothing"], data: A.save(A.init()) }]
  }

  async save(key: Key, data: Uint8Array): Promise<void> {
    const saved = this.inTurn(key[0]!, async () => {
      await again(async () => {
        if (!this.#absent.has(key[0]!)) await this.inner.save(key, data)
      })
    })
    await (key[0] === NAME ? saved.catch(this.failed) : saved)
  }

  remove(key: Key): Promise<void> {
    return this.inTurn(key[0]!, () => again(() => this.inner.remove(key)))
  }

  removeRange(key: Key): Promise<void> {
    return this.inTurn(key[0]!, () => again(() => this.inner.removeRange(key)))
  }

  async #read<T>(ask: () => Promise<T>): Promise<T> {
    try {
      return await again(ask)
    } catch (error) {
      this.failed(error)
      throw error
    }
  }

  /** Does something after all that was to be done about a document before. */
  inTurn<T>(documentId: string, work: () => Promise<T>): Promise<T> {
    const done = (this.#last.get(documentId) ?? Promise.resolve()).then(work, work)
    this.#last.set(documentId, done)
    const forget = () => void (this.#last.get(documentId) === done && this.#last.delete(documentId))
    done.then(forget, forget)
    return done
  }

  /**
   * As `inTurn`, for what takes out what the repo has saved. Meanwhile it saves nothing of the document: it saves what it
   * believes to be missing.
   */
  rewrite<T>(documentId: string, work: () => Promise<T>): Promise<T> {
    const done = this.inTurn(documentId, work)
    this.#rewritten.set(documentId, done)
    const forget = () => void (this.#rewritten.get(documentId) === done && this.#rewritten.delete(documentId))
    done.then(forget, forget)
    return done
  }

  /** Waits until nothing is being taken out of a document's store. */
  async whenRewritten(documentId: string): Promise<void> {
    for (let work; (work = this.#rewritten.get(documentId));) await work.catch(() => {})
  }

  /** Takes a document out, that the repo has not any more; it knows that nothing is left. */
  removeDocument(documentId: DocumentId, repo: Repo): Promise<void> {
    return this.rewrite(documentId, async () => {
      try {
        for (const kind of ["snapshot", "incremental", "sync-state"]) await again(() => this.inner.removeRange([documentId, kind]))
      } finally {
        await this.#readLeft(documentId, repo)
      }
    })
  }

  /** Waits until all that was to be done is done. */
  async settled(): Promise<void> {
    while (this.#last.size > 0) await Promise.allSettled([...this.#last.values()])
  }

  /** Whether a document is to be kept at all: one that may not be there is not. */
  setAbsent(documentId: DocumentId, isAbsent: boolean): void {
    if (isAbsent) this.#absent.add(documentId)
    else this.#absent.delete(documentId)
  }

  /**
   * Takes changes out of what is stored of a document, and what stands on them; it is made anew as `rebuild` does. What
   * others have stored meanwhile stays. Only within `rewrite`. Then the repo knows what is there.
   */
  async takeOut(documentId: DocumentId, changes: ReadonlySet<string>, repo: Repo): Promise<void> {
    try {
      await this.#takeOut(documentId, changes)
    } finally {
      await this.#readLeft(documentId, repo)
    }
  }

  /** Has the repo know what is left of a document. */
  async #readLeft(documentId: DocumentId, repo: Repo): Promise<void> {
    this.#left.add(documentId)
    await repo.storageSubsystem?.loadDoc(documentId).finally(() => this.#left.delete(documentId))
  }

  async #takeOut(documentId: DocumentId, changes: ReadonlySet<string>): Promise<void> {
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

// Documents that the store does not take. Nobody waits for what the stock repo saves on its own: a store that failed once
// would end the process, and the document would not be saved before its next edit.

import type * as A from "@automerge/automerge/slim"
import type { DocumentId, Repo } from "@automerge/automerge-repo/slim"
import type { Store } from "./store.js"

/** After how long a document that could not be saved is saved again. */
const AGAIN_MS = 5_000
/** Deleted documents that are remembered until the repo does not save them any more: it does so within a moment. */
const DELETED_MAX = 10_000

/** Lets a repo live with a store that fails, or is rewritten. `store.failed` is told; whoever flushes is, too. Returns what ends it. */
export function saveAgain(repo: Repo, store: Store | undefined): () => void {
  const storage = repo.storageSubsystem
  if (!storage || !store) return () => {}
  const { failed } = store
  const unsaved = new Map<DocumentId, unknown>()
  let timer: ReturnType<typeof setTimeout> | undefined
  let isOver = false
  const later = () => {
    if (isOver || unsaved.size === 0) return
    timer ??= setTimeout(async () => {
      timer = undefined
      for (const id of [...unsaved.keys()]) {
        const handle = repo.handles[id]
        if (handle?.isReady()) await storage.saveDoc(id, handle.doc())
        else unsaved.delete(id)
      }
    }, AGAIN_MS)
    // In node it keeps no process alive.
    ;(timer as { unref?: () => void }).unref?.()
  }
  const [saveDoc, saveSyncState, flush] = [storage.saveDoc.bind(storage), storage.saveSyncState.bind(storage), repo.flush.bind(repo)]
  const saving = new Map<DocumentId, Promise<void>>()
  const deleted = new Set<DocumentId>()
  repo.on("delete-document", ({ documentId }) => {
    deleted.add(documentId)
    if (deleted.size > DELETED_MAX) for (const oldest of deleted) return void deleted.delete(oldest)
  })
  const save = async (id: DocumentId, asked: A.Doc<unknown>) => {
    await store.whenRewritten(id)
    const handle = repo.handles[id]
    // The repo saves what is empty in place of what it has just taken out of the store.
    if (!handle && deleted.has(id)) return
    deleted.delete(id)
    try {
      await saveDoc(id, handle?.isReady() ? handle.doc() : asked)
      unsaved.delete(id)
    } catch (error) {
      unsaved.set(id, error)
      failed(error)
      later()
    }
  }
  // One after the other: the second knows what the first has saved, and does not write the same file once more, which
  // might be read, or be the last that the process does.
  storage.saveDoc = (id, doc) => {
    const done = (saving.get(id) ?? Promise.resolve()).then(() => save(id, doc))
    saving.set(id, done)
    void done.then(() => saving.get(id) === done && saving.delete(id))
    return done
  }
  // Only spares a round of messages at the next start.
  storage.saveSyncState = async (id, storageId, state) => {
    if (repo.handles[id] || !deleted.has(id)) await saveSyncState(id, storageId, state).catch(failed)
  }
  repo.flush = async documents => {
    await flush(documents)
    for (const [id, error] of unsaved) if (!documents || documents.includes(id)) throw error
  }
  return () => {
    isOver = true
    clearTimeout(timer)
  }
}

// Documents that the store does not take. Nobody waits for what the stock repo saves on its own: a store that failed once
// would end the process, and the document would not be saved before its next edit.

import type { DocumentId, Repo } from "@automerge/automerge-repo/slim"
import type { Store } from "./store.js"

/** After how long a document that could not be saved is saved again. */
const AGAIN_MS = 5_000

/** Lets a repo live with a store that fails, or is rewritten. `failed` is told; whoever flushes is, too. Returns what ends it. */
export function saveAgain(repo: Repo, store: Store | undefined, failed: (error: unknown) => void): () => void {
  const storage = repo.storageSubsystem
  if (!storage || !store) return () => {}
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
  storage.saveDoc = async (id, asked) => {
    let doc = asked
    while (store.isRewritten(id)) {
      await store.whenRewritten(id)
      const handle = repo.handles[id]
      if (handle?.isReady()) doc = handle.doc()
    }
    try {
      await saveDoc(id, doc)
      unsaved.delete(id)
    } catch (error) {
      unsaved.set(id, error)
      failed(error)
      later()
    }
  }
  // Only spares a round of messages at the next start.
  storage.saveSyncState = (id, storageId, state) => saveSyncState(id, storageId, state).catch(failed)
  repo.flush = async documents => {
    await flush(documents)
    for (const [id, error] of unsaved) if (!documents || documents.includes(id)) throw error
  }
  return () => {
    isOver = true
    clearTimeout(timer)
  }
}

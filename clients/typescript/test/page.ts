// The page of browser.test.ts: the messages of a collection, and what is known of them.

import { automergeWasmBase64 } from "@automerge/automerge/automerge.wasm.base64"
import { IndexedDBStorageAdapter } from "@automerge/automerge-repo-storage-indexeddb"
import { initializeBase64Wasm, tidelog } from "../src/slim.js"

interface Message {
  text: string
  at: number
}

await initializeBase64Wasm(automergeWasmBase64)
const client = tidelog({ url: location.search.slice(1), storage: new IndexedDBStorageAdapter("messages"), retryMs: 100 })
const messages = client.collection<Message>("messages")
const list = document.querySelector("ul")!
const state = document.querySelector("output")!

messages.orderBy("at").onSnapshot({ includeMetadataChanges: true }, {
  next: snapshot => {
    for (const { type, oldIndex, newIndex, doc } of snapshot.docChanges()) {
      const item = type === "added" ? document.createElement("li") : list.children[oldIndex]!
      if (oldIndex >= 0) item.remove()
      if (newIndex >= 0) list.insertBefore(item, list.children[newIndex] ?? null)
      item.textContent = doc.data().text
    }
    const { fromCache, hasPendingWrites } = snapshot.metadata
    state.textContent = `${snapshot.size} ${fromCache ? "cached" : "live"} ${hasPendingWrites ? "pending" : "saved"}`
  },
  error: error => void (state.textContent = `${error.code} ${error.message}`),
})
Object.assign(globalThis, {
  add: async (text: string, at: number) => void (await messages.add({ text, at })),
  client,
})

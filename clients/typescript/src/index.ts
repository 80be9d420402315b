// Automerge's WebAssembly is loaded by this import; without it, see slim.ts.
import "@automerge/automerge"

export * from "./slim.js"

// Names of documents: the id that automerge-repo uses, and the address that holds it.

import { documentIdToBinary, isValidAutomergeUrl, isValidDocumentId, parseAutomergeUrl } from "@automerge/automerge-repo/slim"
import type { AutomergeUrl, DocumentId } from "@automerge/automerge-repo/slim"
import { TidelogError } from "./error.js"

/** The id in an id or an address, `automerge:…`. */
export function documentIdOf(text: string): DocumentId {
  if (isValidAutomergeUrl(text)) return parseAutomergeUrl(text).documentId
  if (isValidDocumentId(text)) return text
  throw new TidelogError("E0607", `${JSON.stringify(String(text).slice(0, 64))} is no document's id`, "copy the whole id")
}

export function urlOf(documentId: DocumentId): AutomergeUrl {
  return `automerge:${documentId}` as AutomergeUrl
}

/** Its 16 bytes. */
export function binaryIdOf(text: string): Uint8Array {
  return documentIdToBinary(documentIdOf(text)) ?? new Uint8Array()
}

const COLLECTION = /^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$/

/** A collection's name, refused when none may have it. */
export function collectionName(name: string): string {
  if (typeof name === "string" && COLLECTION.test(name)) return name
  const fix = "use letters, digits, `_`, `-` and `.`, 128 at most, and none of them a dot at the beginning"
  throw new TidelogError("E0607", `${JSON.stringify(String(name).slice(0, 64))} is no collection's name`, fix)
}

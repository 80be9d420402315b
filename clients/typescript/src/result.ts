// The result of a query: what the server told last, and over it what is here and has not reached it yet.

import type { DocumentId } from "@automerge/automerge-repo/slim"
import type { Held, Holdings } from "./holdings.js"
import type { Place, Shape } from "./shape.js"
import type { Ranked } from "./changes.js"

/** A document in a result. */
export interface Shown extends Ranked<Place> {
  readonly id: DocumentId
  readonly value: unknown
  readonly name: string | null
}

/** The documents of a collection that a query finds here, in order. Without `base` all that is held is looked at. */
export function resultOf(holdings: Holdings, collection: string, shape: Shape, base: ReadonlySet<DocumentId> | undefined): Shown[] {
  const shown: Shown[] = []
  const seen = new Set<DocumentId>()
  const look = (held: Held, isTold: boolean) => {
    if (seen.has(held.documentId)) return
    seen.add(held.documentId)
    const standing = held.standing()
    if (!standing) return
    // The server has found what it told; what is newer here is asked again.
    const place = isTold && standing.isTold
      ? shape.placeOf(held.documentId, standing.value)
      : shape.find(held.documentId, standing.value)
    if (!place) return
    const { heads, value, isPending } = standing
    shown.push({ id: held.documentId, heads, value, isPending, place, name: held.name })
  }
  for (const id of base ?? []) {
    const held = holdings.find(id)
    if (held) look(held, true)
  }
  for (const held of base ? holdings.lively(collection) : holdings.of(collection)) look(held, false)
  shown.sort((a, b) => shape.compare(a.place, b.place))
  return shape.cut(shown)
}

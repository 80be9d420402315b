// What listeners are given and queries answer, in Firestore's words.

import type { DocumentId, AutomergeUrl } from "@automerge/automerge-repo/slim"
import { stepsBetween } from "./changes.js"
import { urlOf } from "./ids.js"
import { stepsOf } from "./path.js"
import type { DocumentReference } from "./reference.js"
import type { Shown } from "./result.js"
import type { Place, Shape } from "./shape.js"
import type { FieldPath, FieldValue } from "./types.js"
import { valueAt } from "./values.js"

/** How sure a snapshot is. */
export interface SnapshotMetadata {
  /** There is no word from the server behind it, so that there may be more to know. */
  readonly fromCache: boolean
  /** It has edits of this client that are not on the server's disk yet. */
  readonly hasPendingWrites: boolean
}

/** How sure a result is, and where it stands. */
export interface QueryMetadata extends SnapshotMetadata {
  /** The server's position, from which its feed can be read on; undefined before it said one. */
  readonly position: string | undefined
}

/** One document as it is at one moment. */
export class DocumentSnapshot<T> {
  constructor(
    readonly ref: DocumentReference<T>,
    /** The name it was created by, if it was. */
    readonly name: string | null,
    readonly exists: boolean,
    private readonly value: unknown,
    readonly metadata: SnapshotMetadata,
  ) {}

  get id(): DocumentId {
    return this.ref.id
  }

  get url(): AutomergeUrl {
    return urlOf(this.id)
  }

  /** Its value, which is to be read only; undefined when there is no such document. */
  data(): T | undefined {
    return this.exists ? (this.value as T) : undefined
  }

  /** One field of it. */
  get<P extends FieldPath<T>>(field: P): FieldValue<T, P> | undefined {
    return valueAt(this.value, stepsOf(field)) as FieldValue<T, P> | undefined
  }
}

/** A document in a result: it is there. */
export class QueryDocumentSnapshot<T> extends DocumentSnapshot<T> {
  override data(): T {
    return super.data() as T
  }
}

/** One step from a result to the next. */
export interface DocumentChange<T> {
  readonly type: "added" | "modified" | "removed"
  readonly doc: QueryDocumentSnapshot<T>
  /** Where it was when all changes before this one are applied; -1 when it was added. */
  readonly oldIndex: number
  /** Where it is when all changes up to this one are applied; -1 when it was removed. */
  readonly newIndex: number
}

/** The result of a query at one moment. */
export class QuerySnapshot<T> {
  readonly docs: readonly QueryDocumentSnapshot<T>[]
  readonly metadata: QueryMetadata
  readonly #before: readonly Shown[]
  readonly #now: readonly Shown[]
  readonly #shape: Shape
  readonly #document: (shown: Shown) => QueryDocumentSnapshot<T>

  /** @internal */
  constructor(options: {
    before: readonly Shown[]
    now: readonly Shown[]
    shape: Shape
    fromCache: boolean
    position: string | undefined
    refOf: (id: DocumentId) => DocumentReference<T>
  }) {
    const { before, now, shape, fromCache, position, refOf } = options
    this.#before = before
    this.#now = now
    this.#shape = shape
    this.#document = ({ id, name, value, isPending }) =>
      new QueryDocumentSnapshot(refOf(id), name, true, value, { fromCache, hasPendingWrites: isPending })
    this.docs = now.map(this.#document)
    this.metadata = { fromCache, hasPendingWrites: now.some(({ isPending }) => isPending), position }
  }

  get size(): number {
    return this.docs.length
  }

  get empty(): boolean {
    return this.docs.length === 0
  }

  forEach(callback: (doc: QueryDocumentSnapshot<T>) => void): void {
    this.docs.forEach(doc => callback(doc))
  }

  /**
   * What changed since the snapshot before; in the first everything was added. Applied one after the other to the
   * documents before, they make `docs`.
   */
  docChanges(options: { includeMetadataChanges?: boolean } = {}): DocumentChange<T>[] {
    const compare = (a: Place, b: Place) => this.#shape.compare(a, b)
    const steps = stepsBetween(this.#before, this.#now, compare, options.includeMetadataChanges ?? false)
    return steps.map(({ type, doc, oldIndex, newIndex }) => ({ type, doc: this.#document(doc), oldIndex, newIndex }))
  }
}

// Queries, in Firestore's words.

import type { Client } from "./client.js"
import { TidelogError } from "./error.js"
import { documentIdOf } from "./ids.js"
import { Listener, type ListenOptions, type Told } from "./listener.js"
import { check, condition, EVERYTHING, limited, specToJson, type Edge, type Filter, type QuerySpec } from "./query-spec.js"
import { resultOf } from "./result.js"
import { Shape } from "./shape.js"
import { DocumentSnapshot, QuerySnapshot } from "./snapshot.js"
import { malformed } from "./error.js"
import type { ToldDocument } from "./holdings.js"
import type { Direction, FieldPath, FieldValue, Operand, Operator } from "./types.js"

/** A condition on its own, for `and()` and `or()`. */
export function where(field: string, op: Operator, value: unknown): Filter {
  return condition(field, op, value)
}

/** All of them hold. */
export function and(...parts: Filter[]): Filter {
  return { kind: "and", parts }
}

/** One of them holds. */
export function or(...parts: Filter[]): Filter {
  return { kind: "or", parts }
}

/** What listens beside a function. */
export interface Observer<S> {
  next: (snapshot: S) => void
  error?: (error: TidelogError) => void
}

/** The documents of a collection that meet conditions, in an order. Never changed: each call gives another one. */
export class Query<T> {
  /** @internal */
  constructor(
    readonly client: Client,
    /** The collection's name. */
    readonly name: string,
    /** @internal */
    readonly spec: QuerySpec = EVERYTHING,
  ) {}

  /** What also meets a condition. */
  where<P extends FieldPath<T>, O extends Operator>(field: P, op: O, value: Operand<FieldValue<T, P>, O>): Query<T>
  where(filter: Filter): Query<T>
  where(first: string | Filter, op?: Operator, value?: unknown): Query<T> {
    const filter = typeof first === "object" ? first : condition(first, op ?? "", value)
    return this.#with({ filters: [...this.spec.filters, filter] })
  }

  /** Ordered by one field more. What does not have it is not in the result. */
  orderBy<P extends FieldPath<T>>(field: P, direction: Direction = "asc"): Query<T> {
    if (direction !== "asc" && direction !== "desc") throw malformed(`${JSON.stringify(direction)} is no direction`, "use asc or desc")
    return this.#with({ order: [...this.spec.order, { field, direction }] })
  }

  /** The first so many: 1 to 10,000. */
  limit(limit: number): Query<T> {
    return this.#with({ limit: limited(limit), isFromEnd: false })
  }

  /** The last so many: 1 to 10,000. */
  limitToLast(limit: number): Query<T> {
    return this.#with({ limit: limited(limit), isFromEnd: true })
  }

  /** From these values of what is ordered by, or from a document. */
  startAt(...edge: [DocumentSnapshot<T>] | unknown[]): Query<T> {
    return this.#with({ start: this.#edge(edge, true) })
  }

  startAfter(...edge: [DocumentSnapshot<T>] | unknown[]): Query<T> {
    return this.#with({ start: this.#edge(edge, false) })
  }

  endAt(...edge: [DocumentSnapshot<T>] | unknown[]): Query<T> {
    return this.#with({ end: this.#edge(edge, true) })
  }

  endBefore(...edge: [DocumentSnapshot<T>] | unknown[]): Query<T> {
    return this.#with({ end: this.#edge(edge, false) })
  }

  /**
   * Tells the result, and again whenever it changed. Edits made here are in it at once. The returned function ends it;
   * so does an error, which is the last that is told.
   */
  onSnapshot(next: (snapshot: QuerySnapshot<T>) => void, error?: (error: TidelogError) => void): () => void
  onSnapshot(observer: Observer<QuerySnapshot<T>>): () => void
  onSnapshot(
    options: ListenOptions,
    next: ((snapshot: QuerySnapshot<T>) => void) | Observer<QuerySnapshot<T>>,
    error?: (error: TidelogError) => void,
  ): () => void
  onSnapshot(...words: unknown[]): () => void {
    const hasOptions = typeof words[0] === "object" && words[0] !== null && !("next" in words[0])
    const options = hasOptions ? (words.shift() as ListenOptions) : {}
    const [first, second] = words as [((snapshot: QuerySnapshot<T>) => void) | Observer<QuerySnapshot<T>>, ((error: TidelogError) => void)?]
    const observer = typeof first === "function" ? { next: first, error: second } : first
    check(this.spec)
    this.client.assertOpen()
    const told = ({ before, now, fromCache, position }: Told) => {
      const refOf = (id: string) => this.client.reference<T>(this.name, documentIdOf(id))
      observer.next(new QuerySnapshot<T>({ before, now, shape: listener.shape, fromCache, position, refOf }))
    }
    // An error that nobody asked for must not go unnoticed.
    const failed = observer.error ?? ((error: TidelogError) => console.error(`tidelog: a listener on ${this.name} ended`, error))
    const listener: Listener = new Listener(this.client, this.name, this.spec, options, told, failed)
    return listener.stop
  }

  /** The result now: the server's, and this client's edits over it; without the server, of what is held here. */
  async get(): Promise<QuerySnapshot<T>> {
    const { client, name } = this
    check(this.spec)
    await client.holdings.ready
    const shape = new Shape(this.spec)
    const told = await this.#ask<{ documents: ToldDocument[]; position: string; from_cache?: boolean }>({})
    const base = told && new Set(told.documents.filter(({ heads }) => heads.length > 0).map(document => {
      const id = documentIdOf(document.id)
      client.holdings.tell(name, id, document, false)
      return id
    }))
    const now = resultOf(client.holdings, name, shape, base)
    const refOf = (id: string) => client.reference<T>(name, documentIdOf(id))
    const fromCache = told === undefined || told.from_cache === true
    return new QuerySnapshot<T>({ before: [], now, shape, fromCache, position: told?.position, refOf })
  }

  /** How many documents there are in the result: as the server counts, or without it of what is held here. */
  async count(): Promise<number> {
    check(this.spec)
    await this.client.holdings.ready
    const told = await this.#ask<{ count: number }>({ count: true })
    return told?.count ?? resultOf(this.client.holdings, this.name, new Shape(this.spec), undefined).length
  }

  /** What the server answers; undefined when it does not. */
  async #ask<A>(more: object): Promise<A | undefined> {
    const body = JSON.stringify({ ...specToJson(this.spec), ...more })
    const headers = { "content-type": "application/json" }
    try {
      const response = await this.client.connection.request(`/v1/collections/${this.name}/query`, { method: "POST", body, headers })
      return (await response.json()) as A
    } catch (error) {
      if (error instanceof TidelogError && error.code !== "E0501") throw error
      return undefined
    }
  }

  #with(more: Partial<QuerySpec>): Query<T> {
    return new Query<T>(this.client, this.name, { ...this.spec, ...more })
  }

  #edge(words: unknown[], isIncluded: boolean): Edge {
    const [first] = words
    if (!(first instanceof DocumentSnapshot)) return { values: words, isIncluded }
    const values = new Shape(this.spec).edgeOf(first.data())
    if (values.includes(undefined)) throw malformed("the document has not every field that is ordered by", "start at one of the result, or at values")
    return { values, id: first.url, isIncluded }
  }
}

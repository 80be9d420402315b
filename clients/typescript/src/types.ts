// The types of fields, operators and what they compare with.

import type { Counter, ImmutableString } from "@automerge/automerge/slim"

/** What a condition asks of a field; docs/queries.md says what each means. */
export type Operator =
  | "==" | "!=" | "<" | "<=" | ">" | ">=" | "in" | "not-in" | "array-contains" | "array-contains-any" | "exists"

/** What a map or a list is not: it has no fields that a path leads to. */
type Leaf = string | number | bigint | boolean | null | undefined | Date | Uint8Array | Counter | ImmutableString

type Depth = [never, 0, 1, 2, 3, 4]

/** The paths of a document's fields: `"author.name"`. Texts of any form where the type of documents says nothing. */
export type FieldPath<T, D extends number = 4> =
  unknown extends T ? string
  : [D] extends [0] ? never
  : T extends Leaf | readonly unknown[] ? never
  : T extends object ? string extends keyof T ? string : {
      [K in keyof T & string]: K | `${K}.${FieldPath<NonNullable<T[K]>, Depth[D] & number>}`
    }[keyof T & string]
  : never

/** The value that a path leads to. */
export type FieldValue<T, P extends string> =
  unknown extends T ? unknown
  : P extends keyof T ? unknown extends T[P] ? unknown : NonNullable<T[P]> | Extract<T[P], null>
  : P extends `${infer K}.${infer Rest}` ? K extends keyof T ? FieldValue<NonNullable<T[K]>, Rest> : unknown
  : unknown

/** What a value is compared with: counters with numbers, texts with texts. */
type Compared<V> = V extends Counter ? number : V extends ImmutableString ? string : V

type Element<V> = V extends readonly (infer E)[] ? E : unknown extends V ? unknown : never

/** What an operator takes on its other side. */
export type Operand<V, O extends Operator> =
  O extends "exists" ? boolean
  : O extends "in" | "not-in" ? readonly (Compared<V> | null)[]
  : O extends "array-contains" ? Compared<Element<V>>
  : O extends "array-contains-any" ? readonly Compared<Element<V>>[]
  : O extends "==" | "!=" ? Compared<V> | null
  : Compared<V>

export type Direction = "asc" | "desc"

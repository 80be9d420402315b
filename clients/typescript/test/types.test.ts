// What the compiler refuses. That this file compiles is the test.

import { test } from "node:test"
import type { Collection } from "../src/index.js"

interface Message {
  text: string
  room: string
  at: number
  author: { name: string }
  tags: string[]
}

/** Never called: only its types are of interest. */
export function typed(messages: Collection<Message>, free: Collection<Record<string, unknown>>): void {
  messages.where("room", "==", "lobby").orderBy("at", "desc")
  messages.where("author.name", "!=", null)
  messages.where("tags", "array-contains", "urgent")
  messages.where("at", "in", [1, 2])
  messages.where("at", "exists", false)
  free.where("whatever.it.is", ">=", 5)
  // @ts-expect-error There is no such field.
  messages.where("rooom", "==", "lobby")
  // @ts-expect-error A number is no text.
  messages.where("room", "==", 5)
  // @ts-expect-error There is no such operator.
  messages.where("room", "like", "lobby")
  // @ts-expect-error There is no such field inside.
  messages.orderBy("author.nam")
  // @ts-expect-error Elements are texts.
  messages.where("tags", "array-contains", 5)
  // @ts-expect-error A message has more than that.
  void messages.add({ text: "hi" })
}

test("what is mistyped does not compile", () => {})

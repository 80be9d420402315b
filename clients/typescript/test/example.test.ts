// The examples run as they are.

import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import { after, before, test } from "node:test"
import { promisify } from "node:util"
import { Server, skip } from "./server.js"

let server: Server
before(async () => {
  if (!skip) server = await Server.start()
})
after(async () => {
  if (!skip) await server.close()
})

test("the first example prints what it says", { skip }, async () => {
  const example = new URL("../examples/messages.js", import.meta.url).pathname
  const { stdout } = await promisify(execFile)(process.execPath, [example, server.url], { timeout: 60_000 })
  const lines = stdout.trim().split("\n")
  assert.deepEqual(lines.sort(), [
    "New message: Hello",
    "New message: The tide comes twice a day.",
    "On the server: 2 Hello",
  ])
})

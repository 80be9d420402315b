// What a listener makes of a server that behaves badly: one played here, which says what it is told to.

import assert from "node:assert/strict"
import { once } from "node:events"
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"
import { after, test } from "node:test"
import { tidelog, type Client, type QuerySnapshot, type TidelogError } from "../src/index.js"
import { soon, Watch } from "./server.js"

const IDS = ["4NMNnkMhL8jXrdJ9jamS58PAVdXu", "2BPznxouiRjKL41a1okgAB11oFnV", "XDF6waazwBPXmAqNuummBfhY7f6"]
const servers: Server[] = []
const clients: Client[] = []
after(async () => {
  await Promise.all(clients.map(client => client.close()))
  for (const server of servers) {
    server.closeAllConnections()
    server.close()
  }
})

/** A server that answers requests for a stream one after the other as `answers` say, and nothing else. */
async function play(answers: ((response: ServerResponse, request: IncomingMessage) => void)[]): Promise<{ url: string; asked: IncomingMessage[] }> {
  const asked: IncomingMessage[] = []
  const server = createServer((request, response) => {
    asked.push(request)
    const answer = answers[asked.length - 1]
    if (answer) answer(response, request)
    else response.writeHead(503).end()
  })
  // Sockets it does not know at all.
  server.on("upgrade", (_, socket) => socket.destroy())
  servers.push(server)
  await once(server.listen(0, "127.0.0.1"), "listening")
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, asked }
}

const document = (which: number, n: number) =>
  ({ id: `automerge:${IDS[which]}`, name: null, heads: [String(which).repeat(63) + n], value: { n, at: { $time: n } }, position: n })

function snapshot(position: string, reset: boolean, changes: object[]): string {
  const data = JSON.stringify({ reset, size: 0, position, has_pending_writes: false, from_cache: false, changes })
  return `event: snapshot\nid: ${position}\ndata: ${data}\n\n`
}

const problem = (status: number, code: string) => (response: ServerResponse) =>
  void response.writeHead(status, { "content-type": "application/problem+json" }).end(JSON.stringify({ code, detail: `why ${code}`, fix: "mend it" }))

const stream = (response: ServerResponse) => response.writeHead(200, { "content-type": "text/event-stream" })

interface Thing { n: number; at: Date }

function listen(url: string, more: { token?: () => string } = {}) {
  const client = tidelog({ url, retryMs: 10, ...more })
  clients.push(client)
  const seen = new Watch<QuerySnapshot<Thing>>()
  const failed = new Watch<TidelogError>()
  const stop = client.collection<Thing>("things").orderBy("n").onSnapshot(seen.take, failed.take)
  return { seen, failed, stop, client }
}

const numbers = (snap: QuerySnapshot<Thing>) => snap.docs.map(doc => doc.data().n).join()
const added = (which: number, n: number) => ({ type: "added", oldIndex: -1, newIndex: 0, document: document(which, n) })

test("a stream that is cut in the middle goes on after what was whole, and a reset voids what was told", async () => {
  let tokens = 0
  let last: ServerResponse | undefined
  const { url, asked } = await play([
    problem(503, "E0624"),
    response => {
      const whole = Buffer.from(snapshot("p1", true, [added(0, 1), added(1, 2)]))
      stream(response).write(whole.subarray(0, 30))
      // In pieces, and the last event never whole.
      setImmediate(() => response.write(whole.subarray(30), () => response.write("event: snapshot\nid: p2\ndata: {", () => response.destroy())))
    },
    response => void stream(response).end(`:\n\n${snapshot("p3", false, [{ type: "removed", document: { id: document(0, 1).id } }, added(2, 3)])}`),
    response => void (last = stream(response)).write(snapshot("p4", true, [added(1, 2)])),
  ])
  const { seen, stop } = listen(url, { token: () => `t${(tokens += 1)}` })
  await seen.until(snap => numbers(snap) === "1,2", "the first snapshot")
  const second = await seen.until(snap => numbers(snap) === "2,3", "the second")
  assert.deepEqual(second.docChanges().map(({ type, oldIndex, newIndex }) => [type, oldIndex, newIndex]), [["removed", 0, -1], ["added", -1, 1]])
  assert.deepEqual(second.docs[0]?.data().at, new Date(2))
  const third = await seen.until(snap => numbers(snap) === "2", "after the reset")
  assert.deepEqual([third.docChanges().length, third.metadata.position], [1, "p4"])
  const since = asked.map(({ url: path }) => new URL(path ?? "", url).searchParams.get("since"))
  assert.deepEqual(since, [null, null, "p1", "p3"])
  assert.match(asked[0]?.headers.authorization ?? "", /^Bearer t\d+$/)
  assert.notEqual(asked[0]?.headers.authorization, asked[1]?.headers.authorization)
  const gone = once(last!, "close")
  stop()
  await soon(gone, "the end of the stream")
})

test("what the server refuses for good ends a listener, whenever it does", async () => {
  const early = await play([problem(422, "E0626")])
  const refused = await listen(early.url).failed.until(() => true, "the refusal")
  assert.deepEqual([refused.code, refused.message, refused.fix, refused.status], ["E0626", "why E0626", "mend it", 422])
  const late = await play([response => {
    stream(response).end(`${snapshot("p1", true, [added(0, 1)])}event: error\ndata: {"error": {"code": "E0625", "detail": "too many", "fix": "give a limit"}}\n\n`)
  }])
  const listener = listen(late.url)
  const ended = await listener.failed.until(() => true, "the end")
  assert.deepEqual([ended.code, ended.fix], ["E0625", "give a limit"])
  assert.equal(late.asked.length, 1, "it is not asked again")
  const denied = await play([problem(403, "E0315")])
  const turned = listen(denied.url)
  await turned.failed.until(error => error.status === 403, "no")
  assert.equal(turned.client.lastError?.code, "E0315")
})

test("who is asked to come later comes later, and not before", async () => {
  const times: number[] = []
  const later = (answer: (response: ServerResponse) => void) => (response: ServerResponse) => {
    times.push(performance.now())
    answer(response)
  }
  const told = JSON.stringify({ code: "E0713", detail: "too many streams", fix: "later", retry_after_ms: 400 })
  const { url } = await play([
    later(response => void response.writeHead(429, { "content-type": "application/problem+json", "retry-after": "1" }).end(told)),
    // Something between here and the server has but the header.
    later(response => void response.writeHead(503, { "retry-after": "1" }).end("busy")),
    later(response => void stream(response).write(snapshot("p1", true, [added(0, 1)]))),
  ])
  const { seen, stop } = listen(url)
  await seen.until(snap => numbers(snap) === "1", "the snapshot")
  const [first, second, third] = times as [number, number, number]
  // Timers may be a millisecond early.
  assert.ok(second - first >= 399 && third - second >= 999, `after ${second - first} and ${third - second} ms`)
  stop()
})

// Listeners on a real server.

import assert from "node:assert/strict"
import { after, before, test } from "node:test"
import { and, or, where, type QuerySnapshot } from "../src/index.js"
import { Server, skip, soon, Watch } from "./server.js"

interface Message {
  text: string
  room: string
  at: number
  tags?: string[]
}

let server: Server
before(async () => {
  if (!skip) server = await Server.start()
})
after(async () => {
  if (!skip) await server.close()
})

const texts = (snap: QuerySnapshot<Message>) => snap.docs.map(doc => doc.data().text)

test("the lesson's listener prints each message that is added", { skip }, async () => {
  const writer = server.client().collection<{ text: string }>("lesson")
  const printed = new Watch<string>()
  const stop = server.client().collection<{ text: string }>("lesson").onSnapshot(snapshot => {
    for (const change of snapshot.docChanges()) {
      if (change.type === "added") printed.take(change.doc.data().text)
    }
  })
  await writer.add({ text: "hello" })
  await printed.until(text => text === "hello", "the first message")
  await writer.add({ text: "again" })
  await printed.until(text => text === "again", "the second message")
  assert.deepEqual(printed.all, ["hello", "again"])
  stop()
})

test("two clients see one result, in order and cut, as it changes", { skip }, async () => {
  const [writer, reader] = [server.client(), server.client()]
  const mine = writer.collection<Message>("live")
  const refs = []
  for (const [at, text] of ["one", "two", "three", "four"].entries()) refs.push(await mine.add({ text, room: "lobby", at }))
  await mine.add({ text: "elsewhere", room: "attic", at: 9 })
  await soon(writer.whenSynced(), "all is on the server")
  const seen = new Watch<QuerySnapshot<Message>>()
  const query = reader.collection<Message>("live").where("room", "==", "lobby").orderBy("at", "desc").limit(3)
  const stop = query.onSnapshot(seen.take)
  await seen.until(snap => !snap.metadata.fromCache && texts(snap).join() === "four,three,two", "the first result")
  const first = seen.all[0]
  assert.deepEqual(first?.docChanges().map(({ type, newIndex }) => [type, newIndex]), [["added", 0], ["added", 1], ["added", 2]])

  await refs[3]!.change(doc => void (doc.text = "FOUR"))
  const modified = await seen.until(snap => texts(snap)[0] === "FOUR", "an edit")
  assert.deepEqual(modified.docChanges().map(({ type, oldIndex, newIndex }) => [type, oldIndex, newIndex]), [["modified", 0, 0]])

  await refs[2]!.change(doc => void (doc.room = "attic"))
  const left = await seen.until(snap => texts(snap).join() === "FOUR,two,one", "one leaves, another takes its place")
  assert.deepEqual(left.docChanges().map(({ type, oldIndex, newIndex }) => [type, oldIndex, newIndex]), [["removed", 1, -1], ["added", -1, 2]])

  await refs[1]!.delete()
  await seen.until(snap => texts(snap).join() === "FOUR,one", "one is deleted")
  stop()
  const told = seen.all.length
  await mine.add({ text: "late", room: "lobby", at: 99 })
  await soon(writer.whenSynced(), "the last is on the server")
  assert.equal(seen.all.length, told, "nobody is told after the end")
})

test("an edit shows at once with hasPendingWrites, and without when it is on the server", { skip }, async () => {
  const client = server.client()
  const notes = client.collection<{ text: string; n: number }>("pending")
  const seen = new Watch<QuerySnapshot<{ text: string; n: number }>>()
  notes.orderBy("n").onSnapshot({ includeMetadataChanges: true }, seen.take)
  await seen.until(snap => !snap.metadata.fromCache, "an answer")
  const ref = await notes.add({ text: "a", n: 1 })
  await seen.until(snap => snap.size === 1, "the document")
  await seen.until(snap => snap.size === 1 && !snap.metadata.hasPendingWrites, "it is saved")
  const history = seen.all.filter(snap => snap.size === 1).map(snap => snap.metadata.hasPendingWrites)
  assert.deepEqual(history, [true, false])
  const states = seen.all.at(-1)!.docChanges({ includeMetadataChanges: true })
  assert.deepEqual([states.map(({ type }) => type), seen.all.at(-1)!.docChanges().length], [["modified"], 0])
  assert.ok(seen.all.every(snap => snap.size < 2), "it is never there twice")
  await ref.change(doc => void (doc.text = "b"))
  await soon(ref.whenSynced(), "the edit is on the server")
  const got = await soon(notes.get(), "an answer")
  assert.deepEqual([got.size, got.docs[0]?.data(), got.metadata.hasPendingWrites], [1, { text: "b", n: 1 }, false])
  assert.equal(await notes.count(), 1)
})

test("what was added is in the collection that was named, with conditions of all kinds", { skip }, async () => {
  const client = server.client()
  const all = client.collection<Message>("kinds")
  for (const at of [1, 2, 3, 4, 5]) await all.add({ text: `m${at}`, room: at % 2 ? "odd" : "even", at, tags: at > 3 ? ["late"] : [] })
  await soon(client.whenSynced(), "all is on the server")
  const ask = async (query: { get(): Promise<QuerySnapshot<Message>> }) => texts(await query.get()).join()
  assert.equal(await ask(all.where("at", ">", 2).where("at", "<=", 4)), "m3,m4")
  assert.equal(await ask(all.where("tags", "array-contains", "late").orderBy("at", "desc")), "m5,m4")
  assert.equal(await ask(all.where(or(where("at", "==", 1), and(where("room", "==", "even"), where("at", ">=", 4)))).orderBy("at")), "m1,m4")
  assert.equal(await ask(all.orderBy("at").limitToLast(2)), "m4,m5")
  assert.equal(await ask(all.orderBy("at").startAfter(2).endAt(4)), "m3,m4")
  const page = await all.orderBy("at").limit(2).get()
  assert.equal(await ask(all.orderBy("at").startAfter(page.docs[1]!).limit(2)), "m3,m4")
  assert.equal(await all.where("room", "in", ["odd"]).count(), 3)
  const answer = await fetch(`${server.url}/v1/collections/kinds/documents`)
  assert.equal(((await answer.json()) as { documents: unknown[] }).documents.length, 5)
})

test("a document that another deletes is gone here, takes no edits, and comes back when it is restored", { skip }, async () => {
  const [one, other] = [server.client(), server.client()]
  const ref = await one.collection<Message>("deleted").add({ text: "a", room: "x", at: 1 })
  await soon(ref.whenSynced(), "it is on the server")
  const seen = new Watch<QuerySnapshot<Message>>()
  const single = new Watch<boolean>()
  one.collection<Message>("deleted").onSnapshot(seen.take)
  ref.onSnapshot(doc => single.take(doc.exists))
  await seen.until(snap => snap.size === 1, "the document")
  await other.collection<Message>("deleted").doc(ref.id).delete()
  await seen.until(snap => snap.size === 0, "it is gone")
  await single.until(exists => !exists, "its own listener says so")
  const edited = ref.change(doc => void (doc.text = "too late")).then(() => ref.whenSynced())
  await soon(assert.rejects(edited, { code: "E0602" }), "the edit is refused")
  assert.equal((await one.collection<Message>("deleted").get()).size, 0)
  await soon(one.whenSynced(), "nothing waits")
  await server.run("restore", ref.url)
  await seen.until(snap => snap.size === 1, "it is back")
})

test("one document has listeners too, and can be opened by its address", { skip }, async () => {
  const [writer, reader] = [server.client(), server.client()]
  const ref = await writer.collection<Message>("single").add({ text: "a", room: "x", at: 1 })
  await soon(ref.whenSynced(), "it is on the server")
  const theirs = reader.collection<Message>("single").doc(ref.url)
  const seen = new Watch<string | undefined>()
  const stop = theirs.onSnapshot(doc => seen.take(doc.data()?.text))
  await seen.until(text => text === "a", "the document")
  await ref.change(doc => void (doc.text = "b"))
  await seen.until(text => text === "b", "the edit")
  await theirs.change(doc => void (doc.text = "c"))
  await soon(theirs.whenSynced(), "the answer is on the server")
  const back = new Watch<string | undefined>()
  ref.onSnapshot(doc => back.take(doc.data()?.text))
  await back.until(text => text === "c", "the answer comes back")
  assert.equal((await ref.get()).data()?.text, "c")
  stop()
  const absent = await soon(reader.collection("single").doc("4NMNnkMhL8jXrdJ9jamS58PAVdXu").get(), "an answer about nothing")
  assert.equal(absent.exists, false)
})

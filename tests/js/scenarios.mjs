// What stock clients do with a server: node scenarios.mjs <name> <generations> <websocket address> <folder> [more]
//
// The generations are of the first and of every further client: 2,2 or 1,2. The folder is for clients with a store.

import { mkdirSync } from "node:fs"
import { ask, check, run, same, soon, say } from "./harness.mjs"
import { connect, heads, offline, read, saved, stock, until } from "./client.mjs"

const [name, generations, address, folder, ...more] = process.argv.slice(2)
const [one, other] = generations.split(",")
const { Automerge } = await stock(one)
const { Automerge: OtherAutomerge } = await stock(other)

const url = path => new URL(path ?? "", address).href
const store = name => {
  mkdirSync(`${folder}/${name}`, { recursive: true })
  return `${folder}/${name}`
}
const text = doc => doc?.text
const append = (handle, words, automerge = Automerge) =>
  handle.change(doc => automerge.splice(doc, ["text"], doc.text.length, 0, words))

const scenarios = {
  /** A document is made by one, found by another and edited by both. */
  async edits() {
    const anna = await connect(one, address)
    const ben = await connect(other, address)
    const mine = anna.create({ text: "ebb", list: [] })
    await saved(anna, mine)
    const his = await ben.find(mine.url)
    same(read(his), read(mine), "what is found is what was made")
    append(mine, " and flow")
    his.change(doc => OtherAutomerge.splice(doc, ["text"], 0, 0, "the "))
    his.change(doc => doc.list.push({ moon: "full" }))
    for (const handle of [mine, his]) {
      await until(handle, doc => text(doc) === "the ebb and flow" && doc.list[0]?.moon === "full", "both edits")
    }
    for (let n = 0; n < 50; n++) {
      append(mine, ` ${n}`)
      his.change(doc => doc.list.push(n))
    }
    for (const handle of [mine, his]) {
      await until(handle, doc => doc.list.length === 51 && text(doc).endsWith(" 49"), "a hundred edits")
    }
    same(heads(anna, mine), heads(ben, his), "the last changes")
    await saved(anna, mine)
    await saved(ben, his)
    const carl = await connect(other, address)
    same(read(await carl.find(mine.url)), read(mine), "one who comes later finds all of it")
  },

  /** Both edit while neither is connected. */
  async offline() {
    const anna = await connect(one, address, { folder: store("anna") })
    const ben = await connect(other, address)
    const mine = anna.create({ text: "a rope", knots: {} })
    await saved(anna, mine)
    const his = await ben.find(mine.url)
    for (let round = 0; round < 3; round++) {
      await Promise.all([anna.offline(), ben.offline()])
      append(mine, ` A${round}`)
      mine.change(doc => (doc.knots[`anna ${round}`] = round))
      his.change(doc => OtherAutomerge.splice(doc, ["text"], 0, 0, `B${round} `))
      his.change(doc => (doc.knots[`ben ${round}`] = round))
      await anna.online()
      await ben.online()
      for (const handle of [mine, his]) {
        await until(handle, doc => Object.keys(doc.knots).length === 2 * (round + 1), "both sides' edits")
        await until(handle, doc => text(doc).startsWith(`B${round} `) && text(doc).endsWith(` A${round}`), "the words")
      }
      await saved(anna, mine)
      await saved(ben, his)
    }
    same(heads(anna, mine), heads(ben, his), "the last changes")
    // One that comes back with its own store and nothing new is told all the same that the server has everything.
    await anna.repo.flush?.()
    await anna.offline()
    const again = await connect(one, address, { folder: store("anna") })
    const found = await again.find(mine.url)
    same(read(found), read(his), "what was in the store")
    await saved(again, found)
  },

  /** A document that nobody has, and that then comes. */
  async unavailable() {
    const asking = [await connect(one, address), await connect(other, address), await connect(other, address)]
    const anna = await offline(one, address)
    const late = anna.create({ text: "late" })
    const found = await Promise.all(asking.map(client => client.look(late.url)))
    for (const handle of found) same(handle.state, "unavailable", "a document that nobody has")
    await anna.online()
    await saved(anna, late)
    for (const handle of found) await until(handle, doc => text(doc) === "late", "it appears")
    append(late, "r")
    for (const handle of found) await until(handle, doc => text(doc) === "later", "and is followed")
    // They may write to it as to any other.
    found[1].change(doc => (doc.by = "the second"))
    await until(late, doc => doc.by === "the second", "an edit by one who waited for it")
  },

  /** Ephemeral messages: to everybody who has the document open, and to nobody else. */
  async ephemeral() {
    const anna = await connect(one, address)
    const mine = anna.create({ text: "here" })
    const apart = anna.create({ text: "there" })
    await saved(anna, mine)
    await saved(anna, apart)
    const readers = await Promise.all([1, 2, 3].map(() => connect(other, address)))
    const stranger = await connect(other, address)
    const elsewhere = await stranger.find(apart.url)
    const handles = await Promise.all(readers.map(reader => reader.find(mine.url)))
    const heard = handles.map(handle => listen(handle))
    const own = listen(mine)
    for (let n = 1; n <= 20; n++) mine.broadcast({ cursor: n, word: "ü", bytes: new Uint8Array([n]), big: 2 ** 40 })
    for (const hearing of heard) {
      const got = await hearing.count(20)
      same(got.map(({ message }) => message.cursor), [...Array(20).keys()].map(n => n + 1), "all of them, in order")
      same([got[0].senderId, got[0].message.word], [anna.network.peerId, "ü"], "as they were sent")
      same([...got[0].message.bytes, got[0].message.big], [1, 2 ** 40], "as they were sent")
    }
    // A reader speaks, the others hear it, and the connections that sent all those echoes live.
    handles[0].broadcast({ cursor: 100 })
    for (const hearing of [heard[1], heard[2]]) same((await hearing.count(21))[20].message.cursor, 100, "a reader's")
    same((await own.count(1))[0].senderId, readers[0].network.peerId, "the author's name")
    // The stranger's connection is asked something, so that whatever was sent before has come.
    await stranger.look(anna.packages.generateAutomergeUrl())
    const strays = stranger.messages.filter(({ type }) => type === "ephemeral")
    same(strays, [], "what those who do not have the document open are sent")
    check(elsewhere.isReady(), "and they have theirs")
    append(mine, "!")
    for (const handle of handles) await until(handle, doc => text(doc) === "here!", "edits go on")
    same([own.got.length, heard[0].got.length], [1, 20], "nobody hears himself")
  },

  /** Presence, as the package makes it of ephemeral messages. */
  async presence() {
    const anna = await connect("2", address)
    const ben = await connect("2", address)
    const mine = anna.create({ text: "" })
    await saved(anna, mine)
    const his = await ben.find(mine.url)
    const [hers, theirs] = await Promise.all([anna, ben].map(async (client, at) => {
      const presence = new client.packages.Presence({ handle: at === 0 ? mine : his })
      presence.start({ initialState: { cursor: at } })
      return presence
    }))
    const sees = (presence, client, cursor) =>
      soon(new Promise(done => {
        const look = () => {
          const states = Object.values(presence.getPeerStates().value)
          if (states.some(({ peerId, value }) => peerId === client.network.peerId && value?.cursor === cursor)) done()
        }
        for (const event of ["snapshot", "update"]) presence.on(event, look)
        look()
      }), `the other's cursor at ${cursor}`)
    hers.broadcast("cursor", 7)
    await sees(theirs, anna, 7)
    theirs.broadcast("cursor", 9)
    await sees(hers, ben, 9)
    const gone = soon(new Promise(done => hers.on("goodbye", done)), "a goodbye")
    theirs.stop()
    await gone
  },

  /** What a client knows to be on the server is there after a kill. The test kills and starts. */
  async saved() {
    const all = []
    for (let round = 0; round < 5; round++) {
      const anna = await connect(one, address)
      const fresh = anna.create({ text: `round ${round}` })
      const old = round > 0 ? await anna.find(all[round - 1].url) : undefined
      for (let n = 0; n < 20; n++) append(fresh, " splash")
      if (old) append(old, " and again")
      await Promise.all([fresh, old].filter(Boolean).map(handle => saved(anna, handle)))
      if (old) all[round - 1].heads = heads(anna, old)
      all.push({ url: fresh.url, heads: heads(anna, fresh) })
      anna.hold()
      lost(anna)
      await ask("kill and start")
      const ben = await connect(other, address)
      for (const { url, heads: last } of all) {
        const found = await ben.find(url)
        check(found, `${url} is there after kill ${round + 1}`)
        same(heads(ben, found), last, `all of ${url} is there after kill ${round + 1}`)
      }
      await ben.offline()
    }
  },

  /** The server's store has one name, from the first connection on and whatever happens. */
  async storage() {
    const stayed = await connect(one, address, { retry: 500 })
    const names = stayed.server
    const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/
    check(uuid.test(names.storageId), `a UUID: ${names.storageId}`)
    for (const question of ["kill and start", "stop and start", "kill and start"]) {
      // A server that ends in order does not frighten clients, which in node die of anything but a clean end.
      if (question.startsWith("kill")) lost(stayed)
      stayed.server = undefined
      await ask(question)
      await stayed.connected()
      same(stayed.server, names, `its names after it was told to ${question}, to one who comes back`)
      const fresh = await connect(other, address)
      same(fresh.server, names, `its names after it was told to ${question}`)
      await fresh.offline()
    }
  },

  /** Two clients of one name: the newer has it. */
  async twice() {
    const peerId = `twin-${generations}-${process.pid}`
    const old = await connect(one, address, { peerId })
    const mine = old.create({ text: "old" })
    await saved(old, mine)
    old.hold()
    const replaced = soon(new Promise(done => old.network.once("peer-disconnected", done)), "the older is closed")
    const young = await connect(other, address, { peerId })
    await replaced
    const his = await young.find(mine.url)
    append(his, " and new", OtherAutomerge)
    await saved(young, his)
    const fresh = young.create({ text: "fresh" })
    await saved(young, fresh)
    const reader = await connect(one, address)
    same(read(await reader.find(mine.url)).text, "old and new", "what the newer wrote")
    append(await reader.find(fresh.url), "er")
    await until(fresh, doc => text(doc) === "fresher", "the newer hears of edits")
    same(text(read(mine)), "old", "the older hears nothing any more")
  },

  /** What one client's store has, told to another. */
  async gossip() {
    const anna = await connect(one, address, { gossip: true, folder: store("anna") })
    const ben = await connect(other, address, { gossip: true, folder: store("ben") })
    const hers = await anna.repo.storageId()
    const mine = anna.create({ text: "told" })
    await saved(anna, mine)
    const his = await ben.find(mine.url)
    ben.repo.subscribeToRemotes([hers])
    await saved(ben, his, hers, "what is known already of her store")
    append(mine, " again")
    await until(his, doc => text(doc) === "told again", "the edit")
    await saved(ben, his, hers, "her store has the edit")
    his.change(doc => (doc.by = "ben"))
    await until(mine, doc => doc.by === "ben", "his edit")
    await saved(ben, his, hers, "her store has his edit")
    await anna.offline()
    append(mine, " alone")
    await anna.online()
    await until(his, doc => text(doc) === "told again alone", "what was written alone")
    await saved(ben, his, hers, "her store has what was written alone")
  },

  /** A path of one collection serves that one. */
  async collections() {
    const notes = await connect(one, url("sync/notes"))
    const everything = await connect(other, url("sync"))
    const note = notes.create({ text: "a note" })
    await saved(notes, note)
    const loose = everything.create({ text: "in no named collection" })
    await saved(everything, loose)
    const reader = await connect(other, url("sync/notes"))
    same((await reader.look(loose.url)).state, "unavailable", "a document of another collection")
    same(text(read(await reader.find(note.url))), "a note", "one of this collection")
    const seen = await everything.find(note.url)
    append(seen, " for all", OtherAutomerge)
    await until(note, doc => text(doc) === "a note for all", "an edit by one who is served everything")
    same((await ask(["ls", "notes", "-q"])).lines, [note.url], "what the server has in the collection")
  },

  /** The command line and a client on one document. */
  async command() {
    const [id] = (await ask(["add", "notes", '{"text": "by hand"}', "-q"])).lines
    const anna = await connect(one, address)
    const mine = await anna.find(id)
    same(text(read(mine)), "by hand", "what was added by hand")
    await ask(["set", id, "depth", "3"])
    await until(mine, doc => doc.depth === 3, "what was set by hand")
    append(mine, " and by a client")
    await saved(anna, mine)
    const [seen] = (await ask(["get", id, "--json"])).lines
    same(JSON.parse(seen), { depth: 3, text: "by hand and by a client" }, "what is read")
    await ask(["rm", id])
    const ben = await connect(other, address)
    const his = await ben.look(id)
    same(his.state, "unavailable", "a deleted document")
    await ask(["restore", id])
    await until(his, doc => doc.depth === 3, "it is restored")
  },

  /** The folder that a stock store has written, by anybody or by a sync server, is taken over. */
  async takeover() {
    const folder = store("theirs")
    const theirs = await offline(one, address, { folder })
    const handles = [theirs.create({ text: "ebb" }), theirs.create({ text: "", list: [{ moon: "new" }] })]
    // Parts as well as whole documents, some of them put together by the store itself.
    for (let round = 0; round < 30; round++) {
      for (const handle of handles) append(handle, ` and flow ${round}`)
      if (round % 5 === 0) await theirs.repo.flush()
    }
    await theirs.repo.flush()
    await ask(["import", "automerge-repo", folder])
    const anna = await connect(other, address)
    for (const handle of handles) {
      const found = await anna.find(handle.url)
      same(read(found), read(handle), "what was in the folder")
      same(heads(anna, found), heads(theirs, handle), "the last changes")
    }
  },

  /** A long history, from nothing: it is whole when it is found. */
  async history() {
    const [id, length] = more
    const begun = performance.now()
    const anna = await connect(one, address)
    const mine = await soon(anna.find(id), "the document", 60)
    say({ milliseconds: Math.round(performance.now() - begun) })
    // Whoever came before wrote a letter more.
    const letters = text(read(mine)).length
    check(letters >= Number(length), `all its letters at the first look, not ${letters} of ${length}`)
    append(mine, ".")
    await saved(anna, mine)
  },
}

/** Collects what a handle hears. */
function listen(handle) {
  const got = []
  let look = () => {}
  handle.on("ephemeral-message", message => {
    got.push(message)
    look()
  })
  const count = number =>
    soon(new Promise(done => {
      look = () => got.length >= number && done(got)
      look()
    }), `${number} ephemeral messages`)
  return { got, count }
}

/** The server is killed under this client, which in node throws what a socket says then. */
function lost(client) {
  client.adapter.socket.removeEventListener("error", client.adapter.onError)
  client.adapter.socket.addEventListener("error", () => {})
}

await run(name, () => {
  check(scenarios[name], `there is a scenario ${name}`)
  return scenarios[name]()
})

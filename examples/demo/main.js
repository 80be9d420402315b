// Two panes, each a whole client: its own Repo, its own database in this browser, its own connection.
// The document is plain: { note: text, todos: [{ id, title, done }] }.

import * as Automerge from "@automerge/automerge/slim"
import { Repo, decodeHeads, initializeWasm, isValidAutomergeUrl } from "@automerge/automerge-repo/slim"
import { WebSocketClientAdapter } from "@automerge/automerge-repo-network-websocket"
import { IndexedDBStorageAdapter } from "@automerge/automerge-repo-storage-indexeddb"

const SERVER = new URL("/sync", location.href)
SERVER.protocol = location.protocol === "https:" ? "wss:" : "ws:"
/** How long after a lost connection the next is tried, in milliseconds. */
const RETRY = 1000

/** The connection of one pane, with a switch. */
class Connection {
  constructor(repo, changed) {
    this.repo = repo
    this.changed = changed
    this.state = "offline"
    /** The name of the server's store: what it has is told under it. */
    this.server = undefined
    repo.networkSubsystem.on("peer", ({ peerMetadata }) => {
      this.server = peerMetadata?.storageId ?? this.server
      this.become("connected")
    })
    repo.networkSubsystem.on("peer-disconnected", () => {
      if (this.state === "connected") this.become("connecting")
    })
  }

  online() {
    this.adapter = new WebSocketClientAdapter(SERVER.href, RETRY)
    this.become("connecting")
    this.repo.networkSubsystem.addNetworkAdapter(this.adapter)
  }

  offline() {
    const { adapter } = this
    this.become("offline")
    // A retry may be on its way already, and would connect in spite of the switch.
    adapter.connect = () => {}
    if (adapter.socket) this.repo.networkSubsystem.removeNetworkAdapter(adapter)
  }

  become(state) {
    this.state = state
    this.changed()
  }
}

/** One device. */
class Pane {
  constructor(name) {
    this.name = name
    this.repo = new Repo({ storage: new IndexedDBStorageAdapter(`tidelog-demo-${name.toLowerCase()}`) })
    this.build()
    this.connection = new Connection(this.repo, () => this.showState())
    this.connection.online()
  }

  build() {
    this.root = document.getElementById("pane").content.firstElementChild.cloneNode(true)
    const part = selector => this.root.querySelector(selector)
    part("h2").textContent = this.name
    this.root.setAttribute("aria-label", this.name)
    this.note = part(".note")
    this.todos = part(".todos")
    this.fields = part("fieldset")
    this.item = part(".item")

    part(".switch input").addEventListener("change", event => {
      if (event.target.checked) this.connection.online()
      else this.connection.offline()
    })
    // While a letter is being composed, the field belongs to the keyboard.
    this.note.addEventListener("compositionstart", () => (this.composing = true))
    this.note.addEventListener("compositionend", () => {
      this.composing = false
      this.writeNote()
    })
    this.note.addEventListener("input", () => this.composing || this.writeNote())
    part("form").addEventListener("submit", event => {
      event.preventDefault()
      this.add(this.item.value.trim())
    })
    document.getElementById("panes").append(this.root)
  }

  /** Shows a document, now or as soon as it is found. */
  open(handle) {
    this.handle = handle
    handle.on("change", ({ patches }) => this.show(patches))
    handle.on("remote-heads", () => this.showState())
    this.show([])
  }

  writeNote() {
    const text = this.note.value
    this.handle.change(doc => Automerge.updateText(doc, ["note"], text))
    this.show([])
  }

  add(title) {
    if (!title) return
    this.item.value = ""
    this.handle.change(doc => doc.todos.push({ id: crypto.randomUUID(), title, done: false }))
  }

  edit(id, change) {
    this.handle.change(doc => {
      const at = doc.todos.findIndex(todo => todo.id === id)
      if (at >= 0) change(doc.todos, at)
    })
  }

  show(patches) {
    const doc = this.handle.isReady() ? this.handle.doc() : undefined
    // A document that has the shape of another application is left alone.
    const ours = typeof doc?.note === "string" && Array.isArray(doc.todos)
    this.note.disabled = !ours
    this.fields.disabled = !ours
    if (ours) {
      this.showNote(doc.note, patches)
      this.showTodos(doc.todos)
    }
    this.showState()
  }

  showNote(text, patches) {
    if (this.composing || this.note.value === text) return
    const { selectionStart, selectionEnd } = this.note
    const focused = document.activeElement === this.note
    this.note.value = text
    if (focused) this.note.setSelectionRange(moved(selectionStart, patches), moved(selectionEnd, patches))
  }

  /** Rows stay the elements they are, so that the focus stays where it is. */
  showTodos(todos) {
    const rows = new Map([...this.todos.children].map(row => [row.dataset.id, row]))
    todos.forEach((todo, at) => {
      const row = rows.get(todo.id) ?? this.row(todo.id)
      rows.delete(todo.id)
      row.querySelector("input").checked = todo.done
      row.querySelector("span").textContent = todo.title
      row.querySelector("button").setAttribute("aria-label", `Remove ${todo.title}`)
      if (this.todos.children[at] !== row) this.todos.insertBefore(row, this.todos.children[at] ?? null)
    })
    for (const row of rows.values()) row.remove()
  }

  row(id) {
    const row = document.getElementById("todo").content.firstElementChild.cloneNode(true)
    row.dataset.id = id
    const box = row.querySelector("input")
    box.addEventListener("change", () => this.edit(id, (todos, at) => (todos[at].done = box.checked)))
    row.querySelector("button").addEventListener("click", () => this.edit(id, (todos, at) => todos.splice(at, 1)))
    return row
  }

  showState() {
    const { state } = this.connection
    const words = { connected: "Connected", connecting: "Connecting…", offline: "Offline" }
    this.root.dataset.connection = state
    tell(this.root.querySelector(".connection"), words[state])
    const [saved, text] = this.saved()
    this.root.dataset.saved = saved
    tell(this.root.querySelector(".saved"), text)
  }

  /** Whether everything here is on the server's disk: "yes", "no" or "unknown", and in words. */
  saved() {
    if (!this.handle?.isReady()) return ["unknown", this.handle?.isUnavailable() ? "Not found yet" : "Loading…"]
    const { server } = this.connection
    const known = server && this.handle.getSyncInfo(server)?.lastHeads
    if (!known) return ["no", "Saved in this browser, not yet on the server"]
    const doc = this.handle.doc()
    const heads = decodeHeads(known)
    // What the server has and this pane has not yet is on its way here.
    const ahead = !Automerge.hasHeads(doc, heads)
    const waiting = ahead ? 0 : Automerge.getChangesMetaSince(doc, heads).length
    if (ahead) return ["no", "Receiving changes…"]
    if (waiting === 0) return ["yes", "Saved on the server"]
    return ["no", `${waiting} ${waiting === 1 ? "change waits" : "changes wait"} for the server`]
  }
}

/** Where a position in the note is after others' edits. */
function moved(position, patches) {
  for (const { action, path, value, length = 1 } of patches) {
    if (path[0] !== "note" || path.length !== 2) continue
    const at = path[1]
    if (action === "splice" && at < position) position += value.length
    if (action === "del" && at < position) position -= Math.min(length, position - at)
  }
  return position
}

/** A screen reader speaks a status again when it is set again. */
function tell(element, text) {
  if (element.textContent !== text) element.textContent = text
}

async function start() {
  await initializeWasm(fetch(new URL("automerge.wasm", import.meta.url)))
  const panes = ["Left", "Right"].map(name => new Pane(name))
  let url = decodeURIComponent(location.hash.slice(1))
  if (isValidAutomergeUrl(url)) {
    await Promise.all(panes.map(pane => open(pane, url)))
  } else {
    const handle = panes[0].repo.create({ note: "", todos: [] })
    url = handle.url
    history.replaceState(null, "", `#${url}`)
    panes[0].open(handle)
    await open(panes[1], url)
  }
}

async function open(pane, url) {
  const handle = await pane.repo.find(url, { allowableStates: ["ready", "unavailable"] })
  pane.open(handle)
  // One that appears later has its changes just before it is called ready, and is shown then.
  if (!handle.isReady()) handle.once("heads-changed", () => handle.whenReady().then(() => pane.show([])))
}

function share() {
  const link = document.getElementById("link")
  link.value = location.href
  link.addEventListener("focus", () => link.select())
  document.getElementById("copy").addEventListener("click", async () => {
    link.select()
    const copied = await navigator.clipboard?.writeText(link.value).then(() => true, () => false)
    notice(copied ? "Copied. Open it in another window." : "Selected: copy it with the keyboard.")
  })
  document.getElementById("fresh").addEventListener("click", () => {
    history.replaceState(null, "", location.pathname)
    location.reload()
  })
  window.addEventListener("hashchange", () => location.reload())
}

function notice(text) {
  tell(document.getElementById("notice"), text)
}

start().then(share, error => notice(`This page could not start: ${error.message}`))

// A listener on "messages" that prints each message that is added.
//
//     tidelog serve &
//     node dist-test/examples/messages.js http://127.0.0.1:4780

import { tidelog } from "../src/index.js"

interface Message {
  text: string
}

const client = tidelog({ url: process.argv[2] ?? "http://127.0.0.1:4780" })
const messages = client.collection<Message>("messages")

const stop = messages.onSnapshot(snapshot => {
  for (const change of snapshot.docChanges()) {
    if (change.type === "added") console.log("New message:", change.doc.data().text)
  }
})

const hello = await messages.add({ text: "Hello" })
await messages.add({ text: "The tide comes twice a day." })
await client.whenSynced()
console.log("On the server:", (await messages.get()).size, (await hello.get()).data()?.text)
stop()
await client.close()

// Fields of documents: `author.name`, or a JSON Pointer, as everywhere in tidelog.

/** The steps from the root of a document to a value. Every text is a path. */
export function stepsOf(path: string): string[] {
  if (path.startsWith("/")) {
    return path.slice(1).split("/").map(step => step.replaceAll("~1", "/").replaceAll("~0", "~"))
  }
  if (path === "") return []
  const steps: string[] = []
  let step = ""
  for (let at = 0; at < path.length; at += 1) {
    const sign = path[at]
    const next = path[at + 1]
    if (sign === ".") {
      steps.push(step)
      step = ""
    } else if (sign === "\\" && (next === "." || next === "\\" || next === "/")) {
      step += next
      at += 1
    } else {
      step += sign
    }
  }
  return [...steps, step]
}

/** The steps as a JSON Pointer. */
export function pointerOf(steps: readonly string[]): string {
  return steps.map(step => `/${step.replaceAll("~", "~0").replaceAll("/", "~1")}`).join("")
}

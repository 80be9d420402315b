// Writes dist/: the page as `tidelog serve` holds it, each file compressed with gzip. The same sources give the same
// bytes on every machine: everything is pinned, and the compressor is JavaScript and not the system's zlib.

import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs"
import { createRequire } from "node:module"
import { fileURLToPath } from "node:url"
import { build } from "esbuild"
import { gzipSync } from "fflate"

const here = fileURLToPath(new URL(".", import.meta.url))
/** Another folder may be named, to compare with what is there. */
const out = process.argv[2] ?? `${here}dist`

const { outputFiles, metafile } = await build({
  absWorkingDir: here,
  entryPoints: ["main.js", "main.css"],
  outdir: "dist",
  bundle: true,
  minify: true,
  write: false,
  metafile: true,
  format: "esm",
  target: "es2022",
  legalComments: "none",
  // The page may not make code from text, and this build of the library does not try.
  alias: { "cbor-x": "cbor-x/index-no-eval" },
  define: { "process.env.NODE_ENV": '"production"' },
})
const wasm = createRequire(import.meta.url).resolve("@automerge/automerge/automerge.wasm")
const files = [
  ["index.html", readFileSync(`${here}index.html`)],
  ["icon.svg", readFileSync(`${here}icon.svg`)],
  ...outputFiles.map(({ path, contents }) => [path.slice(path.lastIndexOf("/") + 1), contents]),
  ["automerge.wasm", readFileSync(wasm)],
  ["licenses.txt", Buffer.from(licenses(Object.keys(metafile.inputs)))],
]

rmSync(out, { recursive: true, force: true })
mkdirSync(out, { recursive: true })
for (const [name, contents] of files) {
  writeFileSync(`${out}/${name}.gz`, gzipSync(contents, { level: 9, mem: 12, mtime: "1980-01-01T00:00:00Z" }))
}
console.log(readdirSync(out).join(" "))

/** The licences of the packages that files of the bundle are from, as their authors wrote them. */
function licenses(inputs) {
  const folders = inputs.map(path => path.match(/^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//)?.[1])
  const texts = [...new Set(folders.filter(Boolean))].sort().map(folder => {
    const { name, version, license, author } = JSON.parse(readFileSync(`${here}${folder}/package.json`))
    const file = readdirSync(`${here}${folder}`).sort().find(file => /^licen[cs]e/i.test(file))
    // One that has no such file says in a line which licence it is under, and who wrote it.
    const text = file
      ? readFileSync(`${here}${folder}/${file}`, "utf8").trim()
      : `Licence: ${license}\nAuthor: ${author?.name ?? author ?? "the contributors to " + name}`
    return `${name} ${version}\n\n${text}\n`
  })
  if (texts.length === 0) throw new Error("no package of the bundle was found")
  const head = "The page at /demo is built from these packages; automerge.wasm is part of @automerge/automerge.\n"
  return [head, ...texts].join(`\n${"-".repeat(80)}\n\n`)
}

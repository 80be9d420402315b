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

const { outputFiles } = await build({
  absWorkingDir: here,
  entryPoints: ["main.js", "main.css"],
  outdir: "dist",
  bundle: true,
  minify: true,
  write: false,
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
]

rmSync(out, { recursive: true, force: true })
mkdirSync(out, { recursive: true })
for (const [name, contents] of files) {
  writeFileSync(`${out}/${name}.gz`, gzipSync(contents, { level: 9, mem: 12, mtime: "1980-01-01T00:00:00Z" }))
}
console.log(readdirSync(out).join(" "))

// Which test shows which row of docs/protocol.md: writes docs/conformance.md, or with --check fails when that file is
// stale, a row has no test, or a tag names no row.
//
//   node tests/conformance.mjs [--check | --rows]
//
// A row is named by its section, its table when the section has several, and its place: 2.9#4, 4.4/1#2. Transcripts are
// A.1 to A.5, checklist items B#1 to B#11. A test names what it covers in a comment right above it:
//
//   // covers: 2.11#2, A.4                        (Node)          /* covers: 4.4/1#1 4.4/1#2 */      (C)
//   test('a parked trigger is bound when ...'                     Test(update, set_at_the_root)
import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const out = join(root, 'docs/conformance.md')

// Rows that describe something else than weir, or something weir does not have; the reason is printed in their place.
const exempt = [
  [/^4\.5#/, "the iii engine's Redis script; weir follows 4.4 with every adapter"],
  [/^9#/, 'the redis adapter is not part of this version'],
  [/^10\.2#[23]$/, 'not part of this version: an error at start'],
]

function protocolRows() {
  const rows = []
  let section = ''
  let table = null
  const tables = new Map()
  const text = readFileSync(join(root, 'docs/protocol.md'), 'utf8')
  for (const line of text.split('\n')) {
    const heading = /^#{2,3} (?:Appendix )?([0-9AB]+(?:\.[0-9]+)?)\.? /.exec(line)
    if (heading) section = heading[1]
    if (!line.startsWith('|')) table = null
    if (line.startsWith('|')) {
      if (table === null) {
        table = { section, header: true, rows: [] }
        tables.set(section, [...(tables.get(section) ?? []), table])
      } else if (/^\|[-| :]+\|$/.test(line)) {
        table.header = false
      } else {
        const cells = line.slice(1, -1).split(/(?<!\\)\|/).map((cell) => cell.trim())
        table.rows.push(cells.slice(0, 2).filter(Boolean).join(' — '))
      }
    }
    const transcript = section === 'A' && /^(A\.[0-9]+) (.*?):?$/.exec(line)
    if (transcript) rows.push({ id: transcript[1], section: 'A', text: transcript[2] })
    const item = section === 'B' && /^([0-9]+)\. (.*)$/.exec(line)
    if (item) rows.push({ id: `B#${item[1]}`, section: 'B', text: item[2] })
  }
  for (const [name, list] of tables) {
    list.forEach((each, index) => {
      each.rows.forEach((text, row) => {
        rows.push({ id: `${name}${list.length > 1 ? `/${index + 1}` : ''}#${row + 1}`, section: name, text })
      })
    })
  }
  const order = ({ id, section }) => {
    const [, table = 0, row = 0] = /(?:\/(\d+))?#(\d+)$/.exec(id) ?? []
    const parts = (section === 'A' ? id : section).replace(/^[AB]/, '99$&').split('.')
    return [parts[0], parts[1] ?? 0, table, row].map((part) => String(part).padStart(4, '0')).join(' ')
  }
  return rows.sort((a, b) => (order(a) < order(b) ? -1 : 1))
}

function* sources(directory) {
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    if (entry.name === 'node_modules' || entry.name === 'corpus') continue
    const path = join(directory, entry.name)
    if (entry.isDirectory()) yield* sources(path)
    else if (/\.(c|h|mjs)$/.test(entry.name) && path !== fileURLToPath(import.meta.url)) yield path
  }
}

function covers() {
  const found = []
  for (const path of sources(join(root, 'tests'))) {
    const lines = readFileSync(path, 'utf8').split('\n')
    lines.forEach((line, at) => {
      const tag = /covers: ([^*]*)/.exec(line)
      if (!tag) return
      let list = tag[1]
      let next = at + 1
      // The list may go on in the comment's next lines.
      while (next < lines.length && !line.includes('*/') && /^\s*(\/\/|\*)\s+[0-9AB]/.test(lines[next])) list += ` ${lines[next++].replace(/^[\s/*]+/, '')}`
      for (; next < Math.min(lines.length, at + 30); next++) {
        const test = /\bTest\((\w+),\s*(\w+)/.exec(lines[next]) ?? /\b(?:test|it)\((['"`])(.*?)\1,/.exec(lines[next])
        if (!test) continue
        const name = test[0].startsWith('Test') ? `${test[1]}::${test[2]}` : test[2]
        const file = relative(root, path)
        for (const id of list.match(/[0-9AB][0-9.]*(?:\/[0-9]+)?(?:#[0-9]+)?/g) ?? []) found.push({ id, name, file })
        return
      }
      throw new Error(`${relative(root, path)}:${at + 1}: no test follows this tag`)
    })
  }
  return found
}

const rows = protocolRows()
if (process.argv.includes('--rows')) {
  for (const row of rows) console.log(`${row.id.padEnd(12)} ${row.text.slice(0, 140)}`)
  process.exit(0)
}
const tags = covers()
const known = new Set(rows.map((row) => row.id))
const problems = tags.filter((tag) => !known.has(tag.id)).map((tag) => `${tag.file}: ${tag.name} covers ${tag.id}, which is no row`)
let text = `# Conformance

Every row of the tables, transcripts and checklist of [protocol.md](protocol.md), and the tests that show it. Written by
\`node tests/conformance.mjs\` from the \`covers:\` comments above the tests; \`./dev test\` fails when a row is without a test.
`
let section = null
for (const row of rows) {
  if (row.section !== section) text += `\n## ${row.section}\n\n| row | says | shown by |\n|---|---|---|\n`
  section = row.section
  const exemption = exempt.find(([pattern]) => pattern.test(row.id))
  const shown = tags.filter((tag) => tag.id === row.id).map((tag) => `\`${tag.name.replaceAll('|', '\\|')}\` (${tag.file.replace('tests/', '')})`)
  if (shown.length === 0 && !exemption) problems.push(`row ${row.id} has no test: ${row.text}`)
  text += `| ${row.id} | ${row.text} | ${shown.length > 0 ? [...new Set(shown)].join('<br>') : exemption ? `*${exemption[1]}*` : '—'} |\n`
}
if (process.argv.includes('--check')) {
  if (readFileSync(out, 'utf8') !== text) problems.push('docs/conformance.md is stale: run node tests/conformance.mjs')
} else {
  writeFileSync(out, text)
}
for (const problem of problems) console.error(problem)
const count = rows.filter((row) => tags.some((tag) => tag.id === row.id)).length
console.log(`${rows.length} rows, ${count} with tests, ${problems.length} problems`)
process.exit(problems.length > 0 && process.argv.includes('--check') ? 1 : 0)

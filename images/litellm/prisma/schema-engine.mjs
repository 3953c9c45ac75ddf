#!/usr/bin/env node
// Prisma's schema engine, which its command line starts: JSON-RPC on stdin and stdout.
// The official one is a binary; this runs the WebAssembly of npm's @prisma/schema-engine-wasm. It is of a later version
// than the command line: what that leaves to the engine (reading files, the database's address) is done here.
import fs from 'node:fs'
import path from 'node:path'
import readline from 'node:readline'
import { createRequire } from 'node:module'

if (process.argv.includes('--version')) {
  console.log('schema-engine-cli of @prisma/schema-engine-wasm 7.10.0')
  process.exit(0)
}
if (process.argv.includes('can-connect-to-database')) {
  console.error(JSON.stringify({ timestamp: '', level: 'INFO', fields: { message: 'ok' }, target: '' }))
  process.exit(0)
}

const here = path.dirname(fs.realpathSync(process.argv[1]))
const require = createRequire(path.join(here, 'schema-engine.mjs'))
const engines = await import(path.join(here, 'node_modules/@prisma/schema-engine-wasm/schema_engine_bg.js'))
const { PrismaPg } = require('schema-adapter-pg')
const { Client } = require('pg')
const Result = require('pg/lib/result')
const { bindMigrationAwareSqlAdapterFactory } = require('schema-driver-adapter-utils')

const OF_PRISMA = ['connect_timeout', 'connection_limit', 'pgbouncer', 'pool_timeout', 'schema', 'socket_timeout']
const EVERYTHING = { externalTables: [], externalEnums: [] }
const FILTERED = ['applyMigrations', 'createMigration', 'devDiagnostic', 'diagnoseMigrationHistory', 'evaluateDataLoss', 'schemaPush']
const PRINT_ID = 1_000_000 // of this program's own messages; the command line counts its own from 1

// Types of Postgres that the adapter does not know, and what they are to it: name[] and "char", of the catalog.
const SAME_AS = { 1003: 1009, 18: 1042 }
const { addFields } = Result.prototype
Result.prototype.addFields = function (fields) {
  for (const each of fields) each.dataTypeID = SAME_AS[each.dataTypeID] ?? each.dataTypeID
  return addFields.call(this, fields)
}

// LiteLLM holds Prisma's lock itself, and says so by this variable, which the binary knows.
if (process.env.PRISMA_SCHEMA_DISABLE_ADVISORY_LOCK) {
  const { query } = Client.prototype
  Client.prototype.query = function (asked, ...rest) {
    const locks = /pg_(try_)?advisory_lock/.test(typeof asked === 'string' ? asked : asked?.text)
    if (!locks) return query.call(this, asked, ...rest)
    return query.call(this, typeof asked === 'string' ? 'SELECT true' : { ...asked, text: 'SELECT true', values: [] }, ...rest)
  }
}

// The adapter cuts a script at each semicolon, also within the body of a DO block. Postgres takes it whole.
class Scripts extends PrismaPg {
  async connect() {
    const connected = await super.connect()
    connected.executeScript = async script => {
      await connected.underlyingDriver().query(script).catch(error => connected.onError(error))
    }
    return connected
  }
}

/** A schema without what this engine takes from elsewhere or does not know any more. */
const understood = text => text.replace(/^\s*(url|binaryTargets|recursive_type_depth)\s*=.*$/gm, '')
const schemaFile = file => ({ path: file, content: understood(fs.readFileSync(file, 'utf8')) })

function option(...names) {
  const index = process.argv.findIndex(each => names.includes(each))
  return index < 0 ? undefined : process.argv[index + 1]
}

const datamodel = option('-d', '--datamodels')
const url = new URL(process.env.DATABASE_URL)
for (const each of OF_PRISMA) url.searchParams.delete(each)
const wasm = fs.readFileSync(path.join(here, 'node_modules/@prisma/schema-engine-wasm/schema_engine_bg.wasm'))
const { instance } = await WebAssembly.instantiate(wasm, { './schema_engine_bg.js': engines })
engines.__wbg_set_wasm(instance.exports)
instance.exports.__wbindgen_start()
const engine = await engines.SchemaEngine.new(
  { datamodels: datamodel ? [[datamodel, schemaFile(datamodel).content]] : undefined },
  () => {},
  bindMigrationAwareSqlAdapterFactory(new Scripts({ connectionString: url.href, application_name: 'litellm' })),
)

function read(file) {
  try {
    return { tag: 'ok', value: fs.readFileSync(file, 'utf8') }
  } catch (error) {
    return { tag: 'error', value: String(error) }
  }
}

function migrationsIn(folder) {
  const baseDir = path.resolve(folder)
  const lock = path.join(baseDir, 'migration_lock.toml')
  const entries = fs.existsSync(baseDir) ? fs.readdirSync(baseDir, { withFileTypes: true }) : []
  const names = entries.filter(each => each.isDirectory()).map(each => each.name).sort()
  return {
    baseDir,
    lockfile: { path: './migration_lock.toml', content: fs.existsSync(lock) ? fs.readFileSync(lock, 'utf8') : null },
    shadowDbInitScript: '',
    migrationDirectories: names.map(name => ({
      path: name,
      migrationFile: { path: 'migration.sql', content: read(path.join(baseDir, name, 'migration.sql')) },
    })),
  }
}

/** One side of a `diff`. Whatever names the database means the one of DATABASE_URL. */
function side(target) {
  if (['url', 'schemaDatasource'].includes(target.tag)) {
    const content = 'datasource client {\n  provider = "postgresql"\n}\n'
    return { tag: 'schemaDatasource', configDir: '.', files: [{ path: 'database.prisma', content }] }
  }
  if (target.tag === 'schemaDatamodel') return { tag: 'schemaDatamodel', files: [schemaFile(target.schema ?? target.files[0].path)] }
  if (target.tag === 'migrations') return { tag: 'migrations', ...migrationsIn(target.path) }
  return target
}

const send = message => process.stdout.write(`${JSON.stringify({ jsonrpc: '2.0', ...message })}\n`)

async function call(method, given) {
  let { migrationsDirectoryPath, ...parameters } = given ?? {}
  if (method === 'getDatabaseVersion') return engine.version()
  if (method === 'createDatabase') return { databaseName: url.pathname.slice(1) } // it is there
  if (method === 'listMigrationDirectories') {
    return { migrations: migrationsIn(migrationsDirectoryPath).migrationDirectories.map(each => each.path) }
  }
  if (method === 'diff') {
    const sides = { from: side(parameters.from), to: side(parameters.to) }
    const { stdout, exitCode } = await engine.diff({ ...parameters, ...sides, filters: EVERYTHING, shadowDatabaseUrl: null })
    if (stdout) send({ method: 'print', params: { content: stdout }, id: PRINT_ID })
    return { exitCode }
  }
  if (migrationsDirectoryPath) parameters.migrationsList = migrationsIn(migrationsDirectoryPath)
  if (typeof parameters.schema === 'string') {
    parameters.schema = { files: [{ path: datamodel ?? 'schema.prisma', content: understood(parameters.schema) }] }
  } else if (parameters.schema?.files) {
    parameters.schema = { files: parameters.schema.files.map(each => ({ ...each, content: understood(each.content) })) }
  }
  if (FILTERED.includes(method)) parameters.filters = EVERYTHING
  return engine[method](parameters)
}

// One after the other, as the binary works.
for await (const line of readline.createInterface({ input: process.stdin })) {
  const { id, method, params } = JSON.parse(line)
  if (!method) continue // an answer to what was printed
  try {
    send({ id, result: (await call(method, params)) ?? null })
  } catch (error) {
    const message = String(error.message || error)
    const data = { is_panic: false, message, meta: {}, error_code: error.code }
    send({ id, error: { code: 4466, message, data } })
  }
}
process.exit(0)

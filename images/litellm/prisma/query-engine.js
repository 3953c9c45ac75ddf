#!/usr/bin/env node
// Prisma's query engine, which LiteLLM's Python client starts: a program that answers GraphQL over HTTP on loopback.
// The official one is a binary; this runs the same engine as the WebAssembly in npm's @prisma/client, over `pg`.
'use strict'
const fs = require('node:fs')
const http = require('node:http')
const path = require('node:path')

if (process.argv.some(each => ['--version', '-V'].includes(each))) {
  console.log('query-engine of @prisma/client 5.17.0')
  process.exit(0)
}

const RUNTIME = path.join(__dirname, 'node_modules/@prisma/client/runtime')
const engines = require(path.join(RUNTIME, 'query_engine_bg.postgresql.js'))
const graphql = require('graphql')
const pg = require('pg')
const Result = require('pg/lib/result')
const { PrismaPg } = require('@prisma/adapter-pg')
const { bindAdapter } = require('@prisma/driver-adapter-utils')

// Of the Python client: releases before 0.13 want the rows of a raw query in another form.
const ROWS_BY_NAME = /^0\.([0-9]|1[0-2])\./.test(fs.readFileSync(path.join(__dirname, 'python-client'), 'utf8'))
// Types of Postgres that the adapter does not know, and what they are to it: name[] and "char", of the catalog.
const SAME_AS = { 1003: 1009, 18: 1042 }
const DEFAULT_CONNECTIONS = 10
const DEFAULT_WAIT_MS = 10_000
// Parameters of a URL that are Prisma's and not libpq's.
const OF_PRISMA = ['connect_timeout', 'connection_limit', 'pgbouncer', 'pool_timeout', 'schema', 'socket_timeout']
const ACTIONS = [
  'findUniqueOrThrow', 'findUnique', 'findFirstOrThrow', 'findFirst', 'findMany', 'createOne', 'createMany',
  'updateOne', 'updateMany', 'upsertOne', 'deleteOne', 'deleteMany', 'aggregate', 'groupBy',
]
const RAW = ['queryRaw', 'executeRaw']
const NO_TRACE = '{}'

const datamodel = fs
  .readFileSync(process.env.PRISMA_DML_PATH, 'utf8')
  .replace(
    /generator\s+\w+\s*\{[^}]*\}/,
    'generator client {\n provider = "prisma-client-js"\n previewFeatures = ["driverAdapters"]\n}',
  )

/** The type of each field, by model. */
const fieldTypes = {}
for (const [, model, body] of datamodel.matchAll(/^model\s+(\w+)\s*\{([\s\S]*?)^\}/gm)) {
  fieldTypes[model] = {}
  for (const [, field, type] of body.matchAll(/^\s*(\w+)\s+(\w+)/gm)) fieldTypes[model][field] = type
}

const { addFields } = Result.prototype
Result.prototype.addFields = function (fields) {
  for (const each of fields) each.dataTypeID = SAME_AS[each.dataTypeID] ?? each.dataTypeID
  return addFields.call(this, fields)
}

function connection() {
  const overwritten = JSON.parse(process.env.OVERWRITE_DATASOURCES || '[]')[0]?.url
  const url = new URL(overwritten || process.env.DATABASE_URL)
  const { searchParams } = url
  const schema = searchParams.get('schema') || 'public'
  const max = Number(searchParams.get('connection_limit')) || DEFAULT_CONNECTIONS
  const wait = Number(searchParams.get('pool_timeout')) * 1000 || DEFAULT_WAIT_MS
  for (const each of OF_PRISMA) searchParams.delete(each)
  const pool = new pg.Pool({
    connectionString: url.href, max, connectionTimeoutMillis: wait, application_name: 'litellm',
  })
  // A connection that is lost is an event of its own, in the middle of a transaction too: the next query connects anew.
  pool.on('connect', client => client.on('error', error => console.error(`Postgres: ${error.message}`)))
  pool.on('error', () => {}) // of one that waits: told already
  const at = `\`${url.hostname}:${url.port || 5432}\``
  return { adapter: bindAdapter(new PrismaPg(pool, { schema })), at, first: () => pool.query('SELECT 1') }
}

const database = connection()

function start() {
  const wasm = new WebAssembly.Module(fs.readFileSync(path.join(RUNTIME, 'query_engine_bg.postgresql.wasm')))
  const instance = new WebAssembly.Instance(wasm, { './query_engine_bg.js': engines })
  engines.__wbg_set_wasm(instance.exports)
  const options = {
    datamodel, env: process.env, logQueries: false, logLevel: 'error', ignoreEnvVarErrors: true,
    datasourceOverrides: {}, configDir: __dirname, engineProtocol: 'json',
  }
  return new engines.QueryEngine(options, () => {}, database.adapter)
}

// From GraphQL, as the Python client writes it, to the engine's JSON.

function value(node) {
  switch (node.kind) {
    case 'IntValue':
      return Number.isSafeInteger(Number(node.value)) ? Number(node.value) : { $type: 'BigInt', value: node.value }
    case 'FloatValue':
      return Number(node.value)
    case 'StringValue':
    case 'EnumValue':
    case 'BooleanValue':
      return node.value
    case 'NullValue':
      return null
    case 'ListValue':
      return node.values.map(value)
    case 'ObjectValue':
      return Object.fromEntries(node.fields.map(field => [field.name.value, value(field.value)]))
    default:
      throw new Error(`a ${node.kind} cannot be an argument`)
  }
}

const argumentsOf = node =>
  Object.fromEntries((node.arguments || []).map(each => [each.name.value, value(each.value)]))

function selectionOf(node) {
  const fields = (node.selectionSet?.selections || []).map(each => [
    each.name.value,
    each.selectionSet || each.arguments?.length
      ? { arguments: argumentsOf(each), selection: selectionOf(each) }
      : true,
  ])
  return Object.fromEntries(fields)
}

const isObject = it => it !== null && typeof it === 'object' && !Array.isArray(it)

/** The same, with what is JSON marked so: GraphQL leaves that to the schema. */
function withJsonMarked(model, it) {
  if (Array.isArray(it)) return it.map(each => withJsonMarked(model, each))
  if (!isObject(it) || '$type' in it) return it
  return Object.fromEntries(
    Object.entries(it).map(([name, each]) => {
      const type = fieldTypes[model]?.[name]
      return [name, type === 'Json' ? json(each) : withJsonMarked(fieldTypes[type] ? type : model, each)]
    }),
  )
}

function json(it) {
  if (typeof it === 'string') return { $type: 'Json', value: it }
  if (Array.isArray(it)) return it.map(json)
  if (!isObject(it) || '$type' in it) return it
  return Object.fromEntries(
    Object.entries(it).map(([name, each]) => [name, ['path', 'mode'].includes(name) ? each : json(each)]),
  )
}

function fromGraphql(query) {
  const field = graphql.parse(query, { noLocation: true }).definitions[0].selectionSet.selections[0]
  const name = field.name.value
  if (RAW.includes(name)) return { action: name, query: { arguments: argumentsOf(field), selection: {} } }
  let action = ACTIONS.find(each => name.startsWith(each) && !each.endsWith('OrThrow'))
  let modelName = name.slice(action?.length)
  const orThrow = name.match(/^(find(?:Unique|First))(.*)OrThrow$/)
  if (orThrow) [action, modelName] = [`${orThrow[1]}OrThrow`, orThrow[2]]
  if (!action) throw new Error(`${name} is no query`)
  const given = withJsonMarked(modelName, argumentsOf(field))
  return { modelName, action, query: { arguments: given, selection: selectionOf(field) } }
}

// And back.

function plain(it) {
  if (Array.isArray(it)) return it.map(plain)
  if (!isObject(it)) return it
  if ('$type' in it) return it.value
  return Object.fromEntries(Object.entries(it).map(([name, each]) => [name, plain(each)]))
}

function cell(type, it) {
  if (it === null) return { prisma__type: 'null', prisma__value: null }
  if (type.endsWith('-array')) {
    return { prisma__type: 'array', prisma__value: it.map(each => cell(type.slice(0, -'-array'.length), each)) }
  }
  return { prisma__type: type, prisma__value: type === 'json' && typeof it === 'string' ? JSON.parse(it) : it }
}

const rowsByName = ({ columns, types, rows }) =>
  rows.map(row => Object.fromEntries(columns.map((column, i) => [column, cell(types[i], row[i])])))

/** What the binary says where the database cannot be reached, which LiteLLM looks for. */
function unreachable(error) {
  const message = `Can't reach database server at ${database.at}: ${error.message || error.code}`
  return { error: message, user_facing_error: { is_panic: false, message, meta: {}, error_code: 'P1001' } }
}

/** An error of the adapter's, which the engine knows by a number only. */
function told(error) {
  const { error_code, meta } = error.user_facing_error ?? {}
  if (error_code !== 'P2036') return error
  return unreachable(database.adapter.errorRegistry.consumeError(meta.id)?.error ?? error)
}

function toGraphql(answer, query) {
  if (answer.errors) return { ...answer, errors: answer.errors.map(told) }
  const [result] = Object.values(answer.data)
  if (!RAW.includes(query.action)) return { ...answer, data: { result: plain(result) } }
  return { ...answer, data: { result: ROWS_BY_NAME && result?.columns ? rowsByName(result) : result } }
}

const engine = start()
const connected = Promise.all([engine.connect(JSON.stringify({ traceparent: null })), database.first()]).then(
  () => null,
  error => {
    console.error(unreachable(error).error) // the client that asks keeps the reason to itself
    return error
  },
)

async function answer(url, transaction, body) {
  if (url === '/status') {
    const error = await connected
    return error ? { Errors: [unreachable(error)] } : { status: 'ok' }
  }
  if (url.startsWith('/metrics')) return { counters: [], gauges: [], histograms: [] }
  if (url === '/transaction/start') {
    const { max_wait = 2000, timeout = 5000, isolation_level } = JSON.parse(body)
    return JSON.parse(await engine.startTransaction(JSON.stringify({ max_wait, timeout, isolation_level }), NO_TRACE))
  }
  const end = url.match(/^\/transaction\/([^/]+)\/(commit|rollback)$/)
  if (end) return JSON.parse(await engine[`${end[2]}Transaction`](end[1], NO_TRACE))
  const asked = JSON.parse(body)
  const ask = async it => JSON.parse(await engine.query(JSON.stringify(it), NO_TRACE, transaction))
  if (!asked.batch) {
    const query = fromGraphql(asked.query)
    return toGraphql(await ask(query), query)
  }
  const batch = asked.batch.map(each => fromGraphql(each.query))
  const result = await ask({ batch, transaction: asked.transaction ? { isolationLevel: null } : undefined })
  const results = result.batchResult?.map((each, i) => toGraphql(each, batch[i]))
  return results ? { ...result, batchResult: results } : result
}

function failure(error) {
  const message = error.message || String(error)
  return { errors: [{ error: message, user_facing_error: { message } }] }
}

const server = http.createServer((request, response) => {
  let body = ''
  request.setEncoding('utf8')
  request.on('data', chunk => (body += chunk))
  request.on('end', async () => {
    let status = 200
    const said = await answer(request.url, request.headers['x-transaction-id'], body).catch(error => {
      status = 500
      return failure(error)
    })
    response.writeHead(status, { 'content-type': 'application/json' })
    response.end(JSON.stringify(said))
  })
})
const port = process.argv[process.argv.indexOf('-p') + 1]
server.listen(Number(port), '127.0.0.1')
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(0))

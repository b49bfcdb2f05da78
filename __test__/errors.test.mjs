/** Errors: classes, codes, causes, and telling them apart across two copies of the package. */
import { createRequire } from 'node:module'
import test from 'ava'
import * as trefoil from '../esm/index.js'
import { errorOf } from '../esm/failure.js'

const CODES = {
  AbortedError: 'ABORTED',
  InvalidOptionError: 'INVALID_OPTION',
  ModelLoadError: 'MODEL_LOAD',
  ContextOverflowError: 'CONTEXT_OVERFLOW',
  OutOfMemoryError: 'OUT_OF_MEMORY',
  DeviceError: 'DEVICE',
  OverloadedError: 'OVERLOADED',
  DisposedError: 'DISPOSED',
  DownloadError: 'DOWNLOAD',
  InternalError: 'INTERNAL'
}

for (const [name, code] of Object.entries(CODES)) {
  test(`${name} has its name, code and base`, (t) => {
    const cause = new Error('below')
    const error = new trefoil[name]('above', { cause })
    t.true(error instanceof trefoil.TrefoilError)
    t.true(error instanceof Error)
    t.is(error.name, name)
    t.is(error.code, code)
    t.is(error.cause, cause)
    t.is(String(error), `${name}: above`)
    t.true(trefoil.TrefoilError.isInstance(error))
    t.true(trefoil[name].isInstance(error))
  })
}

test('every kind of failure has its class', (t) => {
  for (const name of Object.keys(CODES)) {
    if (name === 'DownloadError') continue
    const error = errorOf({ kind: name.replace(/Error$/, ''), message: 'why', causes: [] })
    t.is(error.constructor, trefoil[name])
    t.is(error.message, 'why')
    t.false('cause' in error)
  }
})

test('a kind that is not known is an internal error', (t) => {
  t.is(errorOf({ kind: 'Novel', message: 'why', causes: [] }).code, 'INTERNAL')
})

test('isInstance tells classes apart and knows errors of the other copy', (t) => {
  const required = createRequire(import.meta.url)('../cjs/index.js')
  const theirs = new required.DisposedError('gone')
  t.false(theirs instanceof trefoil.DisposedError)
  t.true(trefoil.DisposedError.isInstance(theirs))
  t.true(trefoil.TrefoilError.isInstance(theirs))
  t.false(trefoil.AbortedError.isInstance(theirs))
  for (const other of [new Error('DISPOSED'), { code: 'DISPOSED' }, null, undefined, 'DISPOSED']) {
    t.false(trefoil.TrefoilError.isInstance(other))
  }
})

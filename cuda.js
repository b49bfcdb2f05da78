/**
 * The addon for CUDA: a package of its own, so that this one runs where there is no card.
 *
 * Run as a program (`node cuda.js FOLDER ORDINAL`) this file is the probe: it loads the addon at FOLDER, tries the card
 * out and prints what it found as JSON. A broken driver ends that process and no other.
 */
'use strict'

const { dirname, resolve } = require('node:path')

const PACKAGE = 'trefoil-cuda'

/** The package's folder and version: that of `TREFOIL_CUDA_PACKAGE`, or else the one installed; undefined where neither is. */
function findCuda() {
  const named = process.env.TREFOIL_CUDA_PACKAGE
  try {
    const manifest = named ? resolve(named, 'package.json') : require.resolve(`${PACKAGE}/package.json`)
    return { folder: dirname(manifest), version: String(require(manifest).version) }
  } catch {
    return undefined
  }
}

/** Loads the addon at `folder`. */
function cuda(folder) {
  return require(folder)
}

function found(folder, ordinal) {
  try {
    return cuda(folder).probe(ordinal)
  } catch (error) {
    return { error: String(error?.message ?? error) }
  }
}

if (require.main === module) {
  const [, , folder, ordinal] = process.argv
  // Drivers have threads that keep a process from ending by itself.
  process.stdout.write(JSON.stringify(found(folder, Number(ordinal))), () => process.exit())
}

exports.PROBE = __filename
exports.findCuda = findCuda
exports.cuda = cuda

/** The file to run as the probe: `node PROBE FOLDER ORDINAL`. */
export const PROBE: string
/** The package's folder and version: that of `TREFOIL_CUDA_PACKAGE`, or else the one installed; undefined where neither is. */
export function findCuda(): { folder: string; version: string } | undefined
/** Loads the addon at `folder`. */
export function cuda(folder: string): unknown

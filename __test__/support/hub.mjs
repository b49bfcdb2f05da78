/**
 * A model hub on this machine: answers a HEAD with a file's hash, as the real one does, and sends its content from
 * another path after a redirect, with ranges.
 */
import { createHash } from 'node:crypto'
import { createServer } from 'node:http'

const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex')

/**
 * @param {Record<string, Buffer>} files content by `owner/name/path`
 * @returns the hub, its address, and the requests it has seen; `behave` can be set by a test
 */
export async function startHub(files) {
  const requests = []
  const hub = { requests, behave: {}, files }
  const server = createServer((request, response) => {
    const { method, url, headers } = request
    requests.push({ method, url, range: headers.range })
    const [, key, path] = /^\/(?:store\/)?([^/]+\/[^/]+)\/(?:resolve\/main\/)?(.+)$/.exec(decodeURI(url)) ?? []
    const content = hub.files[`${key}/${path}`]
    const { status, lie, cutAt, silentAt, noRange, location = `/store/${key}/${path}`, size = content?.length } = hub.behave
    if (status) return response.writeHead(status).end('no')
    if (!content) return response.writeHead(404).end('not found')
    if (!url.startsWith('/store/')) {
      const hash = lie ? sha256(Buffer.from('something else')) : sha256(content)
      return response
        .writeHead(302, { location, 'x-linked-etag': `"${hash}"`, ...(size > 0 && { 'x-linked-size': size }) })
        .end()
    }
    const from = noRange ? 0 : Number(/^bytes=(\d+)-$/.exec(headers.range ?? '')?.[1] ?? 0)
    if (from >= content.length) return response.writeHead(416).end()
    const part = content.subarray(from)
    response.writeHead(from > 0 ? 206 : 200, { 'content-length': part.length })
    if (cutAt !== undefined && from < cutAt) {
      hub.behave = {}
      return response.write(part.subarray(0, cutAt - from), () => response.destroy())
    }
    if (silentAt !== undefined) return response.write(part.subarray(0, silentAt))
    response.end(part)
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  hub.url = `http://127.0.0.1:${server.address().port}`
  hub.close = () => {
    server.closeAllConnections()
    return new Promise((resolve) => server.close(resolve))
  }
  return hub
}

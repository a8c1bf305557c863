// Drives @segment/analytics-node as an application would: node send.cjs NODE_MODULES SETTINGS CALLS [wait]
// Prints one line per call, in order: the event as the SDK made it and the error if it gave up.
const { createRequire } = require('node:module')

const [folder, settings, calls, wait] = process.argv.slice(2)
const { Analytics } = createRequire(`${folder}/`)('@segment/analytics-node')

async function main() {
  const analytics = new Analytics(JSON.parse(settings))
  const done = JSON.parse(calls).map(
    ([call, event]) =>
      new Promise((resolve) =>
        analytics[call](event, (error, context) =>
          resolve({ error: error ? String(error.reason ?? error) : null, event: context.event })
        )
      )
  )
  // 'wait' leaves the delivery to flushAt and flushInterval; without it closeAndFlush sends what is there.
  if (wait) await Promise.all(done)
  await analytics.closeAndFlush({ timeout: 20000 })
  for (const line of await Promise.all(done)) console.log(JSON.stringify(line))
}

main()

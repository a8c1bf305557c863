// Tells a Headrace collector what a visitor sees and does. ES2017, no dependency, one global: `headrace`.
//
// The collector serves this file in short, see tracker.py: a name with a $ is the file's own and becomes a letter, what
// stands in the page, on the wire or in the language has none. A comment has its line to itself; a text stands in "".
(() => {
  const $script = document.currentScript
  const $calls = window.headrace || []
  // Included twice, it would count everything twice.
  if ($calls.visitor) return

  const $prefix = "data-headrace-"
  const $lists = "[" + $prefix + "list]"
  const $items = $lists + " [" + $prefix + "item]"
  const $cookie = "headrace_visitor"
  const $login = "headrace_user"
  // An event is known by its id and the write key, so each key has queues of its own.
  const $waiting = "headrace_queue_" + $script.dataset.key + " "

  // Plain http has no randomUUID, but for the machine itself.
  const $makeId = () =>
    crypto.randomUUID ? crypto.randomUUID() : crypto.getRandomValues(new Uint32Array(4)).join("-")

  // A browser may forbid cookies and storage, or have no room: then nothing outlives the page, and nothing breaks.
  const $attempt = ($act) => {
    try {
      return $act()
    } catch ($error) {}
  }
  const $recall = ($name) => $attempt(() => localStorage[$name])
  const $keep = ($name, $value) => $attempt(() => (localStorage[$name] = $value))

  // What the page's server hands in wins, then the cookie, which that server can read.
  const $visitor =
    $script.dataset.visitor ||
    $attempt(() => decodeURIComponent(document.cookie.match("(?:^|; )" + $cookie + "=([^;]+)")[1])) ||
    $recall($cookie) ||
    $makeId()
  // Who logged in did so as the visitor that stands beside in storage, and as no other.
  let $user
  const $know = ($id) => $keep($login, ($user = "" + ($id || "")))
  $know($recall($cookie) == $visitor && $recall($login))
  $keep($cookie, $visitor)
  $attempt(() => {
    document.cookie =
      $cookie + "=" + encodeURIComponent($visitor) + ";path=/;max-age=31536000;samesite=lax" +
      (location.protocol == "https:" ? ";secure" : "")
  })

  // What waits for its 200, by messageId; storage has a copy under a name of this page's own.
  const $queue = {}
  const $own = $waiting + $makeId()
  const $flying = new Set()
  let $failures = 0
  let $timer

  // Returns how many wait: the newest 500 at most.
  const $save = () => {
    const $ids = Object.keys($queue)
    $ids.splice(0, $ids.length - 500).forEach(($id) => delete $queue[$id])
    $keep($own, JSON.stringify($queue))
    return $ids.length
  }

  const $later = ($wait) => {
    clearTimeout($timer)
    $timer = setTimeout(() => {
      $timer = 0
      $send()
    }, $wait)
  }
  const $soon = () => $timer || $later(1e3)

  // At most 20 events, and 20,000 characters: 60 kB at worst, as keepalive and beacon take no more than 64.
  const $take = () => {
    const $batch = []
    let $size = 0
    for (const $id in $queue) {
      const $event = $queue[$id]
      // The settler remembers an id for a day at least: an older event could count twice.
      if (new Date() - new Date($event.timestamp) > 8e7) delete $queue[$id]
      else if (!$flying.has($event)) {
        $size += JSON.stringify($event).length
        if ($batch[19] || ($batch[0] && $size > 2e4)) break
        $batch.push($event)
      }
    }
    return $batch
  }

  const $post = ($batch, $leaving) => {
    const $url = new URL("v1/batch", $script.src)
    // A body that is text needs no preflight.
    const $body = JSON.stringify({ batch: $batch, sentAt: new Date(), writeKey: $script.dataset.key })
    // Nobody learns what became of a beacon: its events wait on, for this page or the next.
    return $leaving && navigator.sendBeacon && navigator.sendBeacon($url, $body)
      ? Promise.reject()
      : fetch($url, { body: $body, method: "POST", credentials: "include", keepalive: $body.length < 21e3 })
  }

  // One batch after the other; `$all` sends them at once, `$leaving` by beacon.
  const $send = ($all, $leaving) => {
    $report()
    const $batch = $flying.size && !$all ? [] : $take()
    if (!$batch[0]) return
    $batch.forEach($flying.add, $flying)
    $post($batch, $leaving)
      .then(({ status, headers }) => {
        if (status > 499 || status == 429 || status == 408) throw headers.get("retry-after")
        $batch.forEach(({ messageId }) => delete $queue[messageId])
        $save()
        return ($failures = 0)
      })
      .catch(($wait) => Math.max($wait * 1e3 || 0, 2 ** Math.min($failures++, 6) * (1 + Math.random()) * 500))
      .then(($wait) => {
        $batch.forEach($flying.delete, $flying)
        $later($wait)
      })
    if ($all) $send($all, $leaving)
  }

  const $add = ($type, $properties) => {
    const $id = $makeId()
    $queue[$id] = Object.assign($properties, {
      type: $type,
      messageId: $id,
      anonymousId: $visitor,
      userId: $user || undefined,
      timestamp: new Date(),
      context: {
        library: { name: "headrace.js", version: "0.1.0" },
        locale: navigator.language,
        page: { url: location.href, path: location.pathname, referrer: document.referrer, title: document.title },
      },
    })
    if ($save() > 19 && !$failures) $send()
    else $soon()
  }
  const $track = ($event, $properties) => $add("track", { event: $event, properties: $properties })

  // Impressions: the items half in view with their timers, what was seen, and what is not reported yet, by list.
  const $shown = new Map()
  const $seen = new Set()
  let $views = {}

  const $see = ($item) => {
    const $list = $item.closest($lists)
    // Taken out of the page.
    if (!$list) return
    const $read = ($from, $name) => $from.getAttribute($prefix + $name) || undefined
    const $id = $read($item, "item")
    const $product = {
      product_id: $id,
      position: +$read($item, "position") || undefined,
      category: $read($item, "category"),
    }
    const $place = { list_id: $read($list, "list"), recommendation_id: $read($list, "recommendation") }
    const $key = JSON.stringify($place)
    if (!$seen.has($key + $id)) {
      $seen.add($key + $id)
      $views[$key] = $views[$key] || Object.assign({ products: [] }, $place)
      $views[$key].products.push($product)
      $soon()
    }
    return Object.assign($place, $product)
  }

  const $report = () => {
    const $ready = $views
    $views = {}
    for (const $key in $ready) $track("Product List Viewed", $ready[$key])
  }

  const $start = ($item) => $shown.set($item, document.hidden ? 0 : setTimeout($see, 1e3, $item))
  const $stop = ($item) => {
    clearTimeout($shown.get($item))
    $shown.delete($item)
  }

  const $observer = new IntersectionObserver(
    ($entries) =>
      $entries.forEach(({ target, intersectionRatio }) => {
        $stop(target)
        if (intersectionRatio >= 0.5) $start(target)
      }),
    { threshold: 0.5 }
  )

  const $find = ($records) => {
    // An element that shows another item begins its second again.
    if ($records.some(({ attributeName }) => attributeName)) {
      $observer.disconnect()
      $shown.forEach(($wait, $item) => $stop($item))
    }
    document.querySelectorAll($items).forEach(($item) => $observer.observe($item))
  }
  new MutationObserver($find).observe(document, {
    attributeFilter: [$prefix + "item", $prefix + "recommendation"],
    childList: true,
    subtree: true,
  })
  $find([])

  const $click = ({ target, button }) => {
    const $item = target.closest && target.closest($items)
    if (!$item || button > 1) return
    const $product = $see($item)
    $report()
    $track("Product Clicked", $product)
  }
  // Before the page's own listeners, which may stop it; a middle click opens a link as well.
  addEventListener("click", $click, true)
  addEventListener("auxclick", $click, true)

  document.addEventListener("visibilitychange", () => {
    $shown.forEach(($wait, $item) => {
      clearTimeout($wait)
      $start($item)
    })
    if (document.hidden && !$failures) $send(true)
  })
  addEventListener("pagehide", () => $send(true, true))

  // What earlier pages could not deliver, and other tabs may still be trying to: its ids stay the same.
  $attempt(() =>
    Object.keys(localStorage).forEach(($name) => {
      if ($name.startsWith($waiting)) {
        Object.assign($queue, JSON.parse(localStorage[$name]))
        localStorage.removeItem($name)
      }
    }))
  $save()
  $soon()

  const $headrace = (window.headrace = {
    visitor: $visitor,
    track: $track,
    page: ($name, $properties) => $add("page", { name: $name, properties: $properties }),
    identify: ($id, $properties) => {
      $know($id)
      $add("identify", { traits: $properties })
    },
    push: ([$name, ...$rest]) => $headrace[$name](...$rest),
  })
  $calls.forEach($headrace.push)
})()

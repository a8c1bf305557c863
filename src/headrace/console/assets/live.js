// Keeps the page Live as it is: swaps the parts that changed, and draws what comes in.
(() => {
  const box = document.getElementById("plot")
  const state = document.getElementById("live-link")
  const pause = document.getElementById("pause")
  const data = JSON.parse(box.dataset.points)
  const shown = {}
  let plot

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim()
  const utc = (seconds) => new Date(seconds * 1000).toISOString().slice(11, 19)
  const size = () => ({ width: box.clientWidth, height: 240 })

  function draw() {
    if (plot) plot.destroy()
    const axis = { stroke: colour("--soft"), font: "13px sans-serif", grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } }
    plot = new uPlot(
      {
        ...size(),
        legend: { show: false },
        cursor: { y: false, points: { show: false } },
        scales: { y: { range: (_, __, most) => [0, Math.max(most * 1.1, 1)] } },
        axes: [{ ...axis, grid: { show: false }, space: 90, incrs: [1, 2, 5, 10, 15, 30, 60, 120, 300], values: (_, times) => times.map(utc) }, { ...axis, size: 56 }],
        series: [
          {},
          { stroke: colour("--stroke"), width: 2, fill: colour("--stroke") + "22", points: { show: false } },
          { stroke: colour("--control"), width: 2, points: { show: false } },
        ],
      },
      data,
      box,
    )
  }

  function tell(kind, text) {
    const badge = document.createElement("span")
    badge.className = "badge " + kind
    badge.textContent = text
    state.replaceChildren(badge)
  }

  function take(message) {
    if (pause.getAttribute("aria-pressed") === "true") return
    const { parts, points } = JSON.parse(message.data)
    for (const [name, html] of Object.entries(parts)) {
      const place = document.getElementById("live-" + name)
      // What the reader points at or has focused stays until it is left.
      if (shown[name] !== html && !place.contains(document.activeElement)) place.innerHTML = shown[name] = html
    }
    if (!points[0].length || points[0][0] <= data[0].at(-1)) return
    data.forEach((column, number) => {
      column.push(points[number][0])
      if (column.length > 600) column.shift()
    })
    plot.setData(data)
  }

  const source = new EventSource("/live/stream")
  source.onmessage = take
  source.onopen = () => tell("good", "live")
  source.onerror = () => {
    // Refused rather than interrupted: whoever was logged in is so no more, and is asked to by the page.
    if (source.readyState === EventSource.CLOSED) location.reload()
    else tell("warn", "the console does not answer, trying again")
  }
  pause.onclick = () => {
    const paused = pause.getAttribute("aria-pressed") !== "true"
    pause.setAttribute("aria-pressed", paused)
    pause.textContent = paused ? "Go on" : "Pause"
    tell(paused ? "warn" : "good", paused ? "paused" : "live")
  }
  new ResizeObserver(() => plot && plot.setSize(size())).observe(box)
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw)
  draw()
})()

// What the page of one title tells: that it is played, and every ten seconds that it still is.
(() => {
  const player = document.getElementById("player")
  const { item, session, recommendation } = player.dataset
  const button = player.querySelector("button")
  const told = player.querySelector("p")
  let seconds = 0
  let beats = 0
  let playing = true

  const tell = (event, properties) =>
    headrace.push(["track", event, { session_id: session, position: seconds, recommendation_id: recommendation, ...properties }])
  const show = () => {
    player.querySelector("progress").value = seconds % 10
    player.querySelector("time").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`
    told.textContent = `${playing ? "Playing" : "Paused"} · ${beats} heartbeat${beats == 1 ? "" : "s"} sent, one every ten seconds`
    button.textContent = playing ? "Pause" : "Resume"
  }

  button.addEventListener("click", () => {
    playing = !playing
    tell(playing ? "Video Playback Resumed" : "Video Playback Paused", { content_asset_ids: [item] })
    show()
  })
  setInterval(() => {
    if (!playing) return
    seconds += 1
    if (seconds % 10 == 0) {
      beats += 1
      tell("Video Content Playing", { asset_id: item })
    }
    show()
  }, 1000)
  tell("Video Playback Started", { content_asset_ids: [item] })
  show()
})()

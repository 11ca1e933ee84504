"use strict";
// One player at a time, and a line in the spectrogram that shows where it is.
const players = [...document.querySelectorAll("audio")];
for (const player of players) {
  const line = player.closest(".sound").querySelector(".now");
  const draw = () => {
    line.hidden = player.currentTime === 0 || player.ended;
    line.style.left = `${(100 * player.currentTime) / player.duration}%`;
    if (!player.paused) requestAnimationFrame(draw);
  };
  player.addEventListener("play", () => {
    for (const other of players) if (other !== player) other.pause();
    draw();
  });
  for (const event of ["seeked", "pause", "ended"]) player.addEventListener(event, draw);
}

const root = document.documentElement;
const players = [...document.querySelectorAll("audio")];

document.getElementById("theme").onclick = () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};

for (const player of players) {
  const mel = player.parentNode.querySelector(".mel");
  const head = mel.querySelector(".head");
  const draw = () => {
    head.style.opacity = 0.9;
    head.style.left = (100 * player.currentTime) / player.duration + "%";
    if (!player.paused) requestAnimationFrame(draw);
  };
  player.onplay = () => {
    for (const other of players) if (other !== player) other.pause();
    draw();
  };
  player.onseeked = draw;
  mel.onclick = (event) => {
    const box = mel.getBoundingClientRect();
    player.currentTime = (player.duration * (event.clientX - box.left)) / box.width;
    player.play();
  };
}


"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const start = (video) => video.play().catch(() => {}); // a browser may refuse; then it stands

  // Videos in a folded part have controls for readers without scripts; here they play when seen.
  for (const video of all("video[controls]")) video.controls = false;
  for (const part of all("details"))
    part.addEventListener("toggle", () => {
      for (const video of all("video", part)) part.open && !still ? start(video) : video.pause();
    });
  if (still) for (const video of all("video")) { video.autoplay = false; video.pause(); }

  // Commands can be copied.
  for (const code of all("pre code")) {
    const button = document.createElement("button");
    button.textContent = "Copy";
    button.type = "button";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch { // not allowed here: the text is selected, to be copied by hand
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    code.parentElement.parentElement.append(button);
  }

  // A click on a video enlarges all of its card, frame by frame.
  document.body.append(document.getElementById("viewer").content);
  const dialog = document.querySelector("dialog.viewer");
  const [stage, title, slider, output] =
    [".stage", ".title", "input", "output"].map((name) => dialog.querySelector(name));
  const play = dialog.querySelector("[data-do=play]");
  let videos = [], frame = 0, frames = 1, fps = 8, notes = [], timer = 0;

  const show = (wanted) => {
    frame = (wanted + frames) % frames;
    for (const video of videos) video.currentTime = (frame + 0.5) / fps;
    slider.value = frame;
    const note = notes[frame] ? ` · ${notes[frame]}` : "";
    output.textContent = `frame ${frame + 1} of ${frames} · ${(frame / fps).toFixed(2)} s${note}`;
  };
  const pause = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
  const step = (by) => { pause(); show(frame + by); };
  const toggle = () => {
    if (timer) return pause();
    timer = setInterval(() => show(frame + 1), 1000 / fps);
    play.textContent = "Pause";
  };
  const open = (clicked) => {
    const shown = all("video", clicked.closest(".clips"));
    fps = Number(clicked.dataset.fps);
    frames = Math.max(1, Math.min(...shown.map((video) => Number(video.dataset.frames))));
    notes = JSON.parse(clicked.dataset.notes || "[]");
    stage.replaceChildren(...shown.map((video) => video.closest("figure").cloneNode(true)));
    videos = all("video", stage);
    for (const video of videos) {
      video.autoplay = video.controls = false;
      video.preload = "auto";
      video.pause();
    }
    title.textContent = clicked.getAttribute("aria-label");
    slider.max = frames - 1;
    dialog.showModal();
    step(Math.floor(clicked.currentTime * fps) - frame);
  };
  const buttons = { previous: () => step(-1), next: () => step(1), play: toggle };
  buttons.close = () => dialog.close();
  for (const button of all("button", dialog))
    button.addEventListener("click", buttons[button.dataset.do]);
  slider.addEventListener("input", () => step(Number(slider.value) - frame));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { pause(); stage.replaceChildren(); });
  dialog.addEventListener("keydown", (event) => {
    const act = { ArrowLeft: buttons.previous, ArrowRight: buttons.next, " ": toggle }[event.key];
    if (!act || (event.key === " " && event.target.tagName === "BUTTON")) return;
    event.preventDefault();
    act();
  });
  for (const video of all("main video")) {
    video.tabIndex = 0;
    video.setAttribute("role", "button");
    video.title = "Enlarge, and step through the frames";
    video.addEventListener("click", () => open(video));
    video.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(video); }
    });
  }
})();

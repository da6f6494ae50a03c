
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const start = (video) => video.play().catch(() => {}); // a browser may refuse; then it stands

  // Videos play while they are in sight; those in a folded part have controls for readers without
  // scripts.
  const sight = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries)
      if (isIntersecting && !still) start(target); else target.pause();
  }, { rootMargin: "100px" });
  for (const video of all("main video")) { video.controls = false; sight.observe(video); }

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

  // A click on a video, or on pictures of one, enlarges all of its card, frame by frame.
  document.body.append(document.getElementById("viewer").content);
  const dialog = document.querySelector("dialog.viewer");
  const [stage, title, slider, output, play] =
    [".stage", ".title", "input", "output", "[data-do=play]"].map((x) => dialog.querySelector(x));
  let videos = [], pictures = [], frame = 0, frames = 1, fps = 0, notes = [], timer = 0;

  const show = (wanted) => {
    frame = (wanted + frames) % frames;
    for (const video of videos) video.currentTime = (frame + 0.5) / fps;
    pictures.forEach((picture, i) => { picture.hidden = i !== frame; });
    slider.value = frame;
    const time = videos.length ? [`${(frame / fps).toFixed(2)} s`] : [];
    output.textContent =
      [`frame ${frame + 1} of ${frames}`, ...time, notes[frame]].filter(Boolean).join(" · ");
  };
  const pause = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
  const step = (by) => { pause(); show(frame + by); };
  const toggle = () => {
    if (timer) return pause();
    timer = setInterval(() => show(frame + 1), 1000 / fps);
    play.textContent = "Pause";
  };
  const open = (clicked) => {
    const { fps: rate = 2, notes: texts = "[]" } = clicked.dataset; // pictures at two a second
    const card = clicked.closest(".clips, .strip");
    stage.replaceChildren(...[...card.children].map((part) => part.cloneNode(true)));
    for (const part of all("[tabindex]", stage))
      for (const name of ["tabindex", "role", "title"]) part.removeAttribute(name);
    [videos, pictures] = [all("video", stage), all(".stage > img", dialog)];
    fps = Number(rate);
    notes = JSON.parse(texts);
    frames = pictures.length || Math.min(...videos.map((video) => Number(video.dataset.frames)));
    for (const video of videos) {
      video.autoplay = false;
      video.preload = "auto";
      video.pause();
    }
    const words = card.parentElement.querySelector(".words p");
    title.textContent = words ? words.textContent : clicked.getAttribute("aria-label");
    slider.max = frames - 1;
    frame = pictures.length ? [...card.children].indexOf(clicked)
      : Math.floor(clicked.currentTime * fps);
    dialog.showModal();
    dialog.querySelector("[data-do=next]").focus();
    step(0);
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
  for (const part of all("main video, main .strip img")) {
    part.tabIndex = 0;
    part.setAttribute("role", "button");
    part.title = "Enlarge, and step through the frames";
    part.addEventListener("click", () => open(part));
    part.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(part); }
    });
  }
})();

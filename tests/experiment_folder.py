"""Folders of experiments, as runs and evaluations write them."""

import json
import math

import av
import numpy as np

EVIL = "<script>alert(\"x\")</script> a red circle & 'friends' src=https://evil.example/x"


def write_video(path, width=32, seed=0):
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, 32, "yuv420p"
        for _ in range(3):
            image = np.repeat(
                np.repeat(rng.integers(0, 256, (4, width // 8, 3), np.uint8), 8, 0), 8, 1
            )
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                )
            )
        container.mux(stream.encode())


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_run(folder, steps=60):
    config = {
        "seed": 0,
        "model": {"width": 96, "note": "<b>bold</b>", "patch": [1, 2, 2]},
        "optimiser": {},
    }
    write_json(folder / "config.json", config)
    run = {
        "device": "CPU <2 cores>",
        "host": "lab",
        "parameters": 801_792,
        "wall_s": 245.0,
        "compile_s": 12.5,
    }
    write_json(folder / "run.json", {"versions": {"jax": "0.10.2", "xgen_jax": "0.1.0"}, **run})
    rows = [
        {"step": s, "time_s": 0.5 * s, "loss": 5 * math.exp(-s / 9), "steps_per_s": 2.0}
        for s in range(1, steps)
    ]
    rows[3] |= {"loss": None, "nonfinite": {"loss": "nan"}}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_captions(folder, count=3):
    wanted = {
        "shape": "circle",
        "color": "red",
        "direction": "left",
        "size": "small",
        "background": "black",
    }
    samples = []
    for index in range(count):
        write_video(folder / f"{index:03d}.mp4", seed=index)
        right = index != 1
        samples.append(
            {
                "file": f"{index:03d}.mp4",
                "prompt": EVIL if index == 0 else f"prompt {index}",
                "wanted": wanted,
                "read": wanted | ({} if right else {"shape": "square"}),
                "correct": {"shape": right, "color": True, "all": right},
            }
        )
    settings = {"steps": 10, "guidance_scale": 3.0, "sampler": "euler", "seed": 7}
    accuracy = {"all": 0.93, "shape": 0.97, "color": 1.0}
    write_json(
        folder / "captions.json",
        {
            "prompts": 200,
            "accuracy": accuracy,
            "confusions": {"shape": {"circle": {"circle": 2, "square": 1}}},
            "settings": settings,
            "samples": samples,
        },
    )


def write_reconstruction(folder):
    rows = [
        {"file": f"{i:03d}.mp4", "name": f"clip <{i}>", "psnr_db": 30.0 + i, "ssim": 0.95}
        for i in range(2)
    ]
    for index, row in enumerate(rows):
        write_video(folder / row["file"], width=64, seed=index)
    mean = {"psnr_db": 30.53, "ssim": 0.951, "mse": 0.0035, "sharpness": 0.876, "blockiness": 1.042}
    shapes = [{"shape": "9x32x32", "clips": 2, "mean": mean, "videos": rows}]
    write_json(folder / "reconstruction.json", {"shapes": shapes})


def write_experiment(root):
    for stage in ("vidvae", "vdit"):
        write_run(root / stage)
    write_captions(root / "evaluation" / "captions")
    write_reconstruction(root / "evaluation" / "reconstruction")
    write_json(root / "timings.json", {"train vidvae": 70.0, "train vdit": 230.0})
    return root

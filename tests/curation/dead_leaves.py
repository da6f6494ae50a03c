"""Pictures with the statistics of photographs, made from a seed: opaque leaves of all sizes that
cover each other (Lee, Mumford and Huang, "Occlusion models for natural images", 2001)."""

import cv2
import numpy as np


def dead_leaves(rng, height, width, largest=0.2):
    """A picture, uint8 (H, W, 3). Leaves are shaded ellipses with a faint texture; their radii
    follow a power law from 0.02 to `largest` of the width."""
    scale = 2  # drawn at twice the size, so that borders are soft by a pixel
    size = scale * height, scale * width
    picture = np.full((*size, 3), 127, np.uint8)
    least, most = 0.02 * scale * width, largest * scale * width
    radii = least / np.sqrt(rng.uniform((least / most) ** 2, 1, 1500))
    grays = rng.integers(20, 236, (len(radii), 1))
    colors = np.clip(grays + rng.integers(-30, 31, (len(radii), 3)), 0, 255)
    for radius, color in zip(radii, colors):
        center = int(rng.integers(size[1])), int(rng.integers(size[0]))
        axes = int(radius), int(radius * rng.uniform(0.4, 1))
        turned = float(rng.uniform(0, 180))
        cv2.ellipse(picture, center, axes, turned, 0, 360, color.tolist(), -1)
    shading = sum(
        cv2.resize(rng.standard_normal((n, n)), (width, height), interpolation=cv2.INTER_CUBIC) * a
        for n, a in ((3, 12), (24, 7), (width // 4, 5), (width // 2, 3))
    )
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return np.clip(picture + shading[..., None], 0, 255).astype(np.uint8)


def pan(picture, frames, height, width, step=3):
    """A window that slides over a picture, uint8 (T, H, W, 3)."""
    return np.stack([picture[step * i :, step * i :][:height, :width] for i in range(frames)])

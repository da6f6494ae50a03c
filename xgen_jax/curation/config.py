"""The configuration of a curation: one class a stage, and nothing else.

A stage measures first and decides afterwards. Fields named in `MEASURED` decide what is measured; a
change of one of them, or of `VERSION`, measures again. All other fields are thresholds: a change
costs no decoding.
"""

import dataclasses
import hashlib
import json
from typing import ClassVar

from xgen_jax.data.buckets import parse_shapes
from xgen_jax.errors import UserError


class Stage:
    """What the configuration of a stage that measures has in common.

    Attributes:
      MEASURED: names of the fields that decide what is measured.
      VERSION: raised with every change of code that changes what is measured.
    """

    MEASURED: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1

    def key(self) -> str:
        """Return a hex digest of what decides the measurements."""
        return _digest([self.VERSION, *((name, getattr(self, name)) for name in self.MEASURED)])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def _above(config: object, **least: float) -> None:
    """Raise UserError for fields below their least value."""
    for name, value in least.items():
        given = getattr(config, name)
        if given is not None and not given >= value:
            raise UserError(f"{name} must be {value:g} or more, not {given}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShotsConfig(Stage):
    """Where a video is cut into shots, and shots into clips.

    Attributes:
      cut_threshold: change of a frame in hue, saturation and brightness, 0 to 255, that may be a
        cut (PySceneDetect's ContentDetector); a third of it where twice that of the frames around.
      dissolve_lag_s: seconds between the two frames that are compared to find dissolves and fades.
      dissolve_ratio: how many times its usual value, within 2.5 s, their difference must be.
      dissolve_dip: part of the contrast that is lost in the middle of a dissolve; 0.3 for two
        unlike pictures of equal contrast, 1 for a fade.
      trim_s: seconds left out at each border between two shots.
      min_s, max_s: seconds of a clip; a longer shot is divided equally, a shorter one dropped.
      min_side: pixels of the shorter side of the video.
      min_fps: frames a second of the video.
    """

    MEASURED: ClassVar[tuple[str, ...]] = ("dissolve_lag_s",)

    cut_threshold: float = 27.0
    dissolve_lag_s: float = 0.6
    dissolve_ratio: float = 2.0
    dissolve_dip: float = 0.12
    trim_s: float = 0.25
    min_s: float = 1.5
    max_s: float = 8.0
    min_side: int = 256
    min_fps: float = 12.0

    def __post_init__(self):
        _above(self, cut_threshold=1, dissolve_lag_s=0.1, dissolve_ratio=1, trim_s=0, min_s=0.1)
        _above(self, min_side=1, min_fps=0)
        if self.max_s < 2 * self.min_s:
            raise UserError(
                f"max_s={self.max_s:g} must be at least twice min_s={self.min_s:g}, so that every "
                "longer shot can be divided"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DuplicatesConfig(Stage):
    """Which clips show the same.

    Attributes:
      every_s: seconds between the frames that are hashed. Two copies are seldom sampled at the
        same moments, and in quick motion frames that are 0.25 s apart are not the same.
      min_quality: PDQ's quality, 0 (flat) to 100, of frames that are compared; its authors advise
        50.
      max_bits: of the 256 of a PDQ hash, in which two frames that are the same may differ.
      min_matched: part of the shorter clip's frames that must be the same, at the best offset.
      similarity: cosine of two clips' mean CLIP features from which on they are duplicates, where
        `aesthetics.clip_dir` is given (0.9 in arXiv 2408.12590, section 3); None to compare hashes
        alone.
    """

    MEASURED: ClassVar[tuple[str, ...]] = ("every_s",)

    every_s: float = 0.125
    min_quality: int = 50
    max_bits: int = 31
    min_matched: float = 0.7
    similarity: float | None = 0.9

    def __post_init__(self):
        _above(self, every_s=0.1, min_quality=0, max_bits=0, min_matched=0.1)
        if self.max_bits > 64:
            raise UserError(f"max_bits must be 64 or less, not {self.max_bits}: others match too")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityConfig(Stage):
    """Technical quality, without any weights; it is no measure of beauty.

    Attributes:
      every_s: seconds between the frames that are measured.
      max_piqe: mean PIQE of a clip at most, 0 (clean) to 100 (blurred, blocky or noisy).
    """

    MEASURED: ClassVar[tuple[str, ...]] = ("every_s",)

    every_s: float = 5.0
    max_piqe: float = 65.0

    def __post_init__(self):
        _above(self, every_s=0.1, max_piqe=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AestheticsConfig(Stage):
    """LAION's aesthetic predictor on CLIP features, where its weights are available.

    Attributes:
      clip_dir: folder of a CLIP ViT-L/14 (config.json and safetensors); None for none.
      head: safetensors file of the predictor; None for CLIP features without a score.
      every_s: seconds between the frames that are measured.
      min_score: mean score of a clip, 0 to 10; the paper drops those below 4.5.
    """

    MEASURED: ClassVar[tuple[str, ...]] = ("clip_dir", "head", "every_s")

    clip_dir: str | None = None
    head: str | None = None
    every_s: float = 4.0
    min_score: float = 4.5

    def __post_init__(self):
        _above(self, every_s=0.1, min_score=0)
        if self.head and not self.clip_dir:
            raise UserError("head needs the CLIP network that it was trained on: give clip_dir")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(Stage):
    """Text in the picture.

    Attributes:
      every_s: seconds between the frames that are searched.
      side: pixels of the longer side at which a frame is searched.
      max_area: part of the frame that text may cover; the paper's 20,000 pixels of 720p are 0.022.
    """

    MEASURED: ClassVar[tuple[str, ...]] = ("every_s", "side")

    every_s: float = 2.5
    side: int = 320
    max_area: float = 0.02

    def __post_init__(self):
        _above(self, every_s=0.1, side=64, max_area=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionConfig(Stage):
    """How much moves, and jumps that no cut explains.

    Attributes:
      side: pixels of the longer side at which frames are compared.
      difference: of a pixel's brightness, 0 to 255, from which on it has changed.
      flow_every_s: seconds between the frames that are compared to see slow movement, and between
        those whose optical flow from the frame before is measured.
      min_motion: how many times the noise of a still camera must move; clips below are static. See
        `motion.motion_scores`.
      max_flow: mean optical flow a second between neighbouring frames, as part of the frame's
        diagonal; clips above are too wild.
      max_changed: mean part of the picture that changes from one frame to the next; clips above are
        too wild, movement too fast for optical flow among them.
      jump: peak of the changed part, and of its excess over both neighbours, at which a clip is
        cut again; the longer part is kept.
    """

    MEASURED: ClassVar[tuple[str, ...]] = ("side", "difference", "flow_every_s")

    side: int = 256
    difference: int = 10
    flow_every_s: float = 0.5
    min_motion: float = 1.0
    max_flow: float = 0.8
    max_changed: float = 0.85
    jump: float = 0.5

    def __post_init__(self):
        _above(self, side=64, difference=1, flow_every_s=0.05, min_motion=0, max_flow=0)
        _above(self, max_changed=0, jump=0)


class Captions(Stage):
    """What kinds of captions have in common.

    Attributes:
      WANTED: whether clips without a caption are left out.
      OF_FILES: whether captions cost nothing, and may be corrected.
    """

    WANTED: ClassVar[bool] = True
    OF_FILES: ClassVar[bool] = False

    def pictures(self) -> tuple[int, int]:
        """Return how many frames of a clip are looked at, and the pixels of their longer side."""
        return 0, 0

    def most_requests(self) -> int | None:
        """Return the requests of the whole curation at most; None for no bound."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoCaptions(Captions):
    """No captions: clips are packed without.

    Attributes:
      kind: `none`.
    """

    WANTED: ClassVar[bool] = False

    kind: str = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileCaptions(Captions):
    """The captions of the videos' folder (captions.jsonl, captions.csv or text files).

    Attributes:
      kind: `file`.
    """

    OF_FILES: ClassVar[bool] = True

    kind: str = "file"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FunctionCaptions(Captions):
    """A Python function on this machine.

    Attributes:
      kind: `function`.
      function: `module:name` of f(frames uint8 (T, H, W, 3), times_s (T,)) -> caption.
      frames: of a clip that it is given, equally spaced.
      side: pixels of their longer side.
      key_variable: environment variable with a key that the function uses; the key is kept out of
        what is stored.
    """

    MEASURED: ClassVar[tuple[str, ...]] = ("function", "frames", "side")

    kind: str = "function"
    function: str
    frames: int = 4
    side: int = 512
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self):
        _above(self, frames=1, side=64)
        if ":" not in self.function:
            raise UserError(f"function={self.function!r} must be MODULE:NAME")

    def pictures(self) -> tuple[int, int]:
        """See `Captions.pictures`."""
        return self.frames, self.side


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointCaptions(Captions):
    """A server that speaks OpenAI's chat completions.

    Attributes:
      kind: `endpoint`.
      url: of the endpoint, up to and without "/chat/completions".
      model: its name for the endpoint.
      prompt: what the endpoint is asked.
      frames: of a clip that are sent, equally spaced.
      side: pixels of their longer side.
      max_tokens: of an answer; one that is cut off there is not taken.
      concurrency: requests at the same time.
      timeout_s: of a request.
      retries: of a request that fails.
      budget: requests of the whole curation at most; None for no bound.
      key_variable: environment variable that holds the endpoint's key.
    """

    MEASURED: ClassVar[tuple[str, ...]] = ("model", "prompt", "frames", "side", "max_tokens")

    kind: str = "endpoint"
    url: str
    model: str
    prompt: str = (
        "Describe this video in 50 to 120 words: what is seen, what moves and how, the setting, "
        "the camera. Do not begin with 'The video'."
    )
    frames: int = 4
    side: int = 512
    max_tokens: int = 256
    concurrency: int = 8
    timeout_s: float = 60.0
    retries: int = 5
    budget: int | None = None
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self):
        _above(self, frames=1, side=64, max_tokens=1, concurrency=1, timeout_s=0.1, retries=0)
        _above(self, budget=0)

    def pictures(self) -> tuple[int, int]:
        """See `Captions.pictures`."""
        return self.frames, self.side

    def most_requests(self) -> int | None:
        """See `Captions.most_requests`."""
        return self.budget


CaptionsConfig = NoCaptions | FileCaptions | FunctionCaptions | EndpointCaptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackConfig(Stage):
    """How kept clips are written.

    Attributes:
      tiers: shorter sides, in pixels, at which a clip is stored: those that its video nearly fills,
        never enlarged, and always the smallest.
      fps: frames a second at most; a faster video is stored at a whole fraction of its rate.
      gop_s: seconds between key frames; short groups make random access cheap.
      crf: of x264, 0 (lossless) to 51.
      held_out_fraction: part of the videos whose clips training never sees, by a hash of their
        content.
      buckets: FRAMESxHEIGHTxWIDTH, comma-separated: shapes of which each clip is given the largest
        that it fills.
    """

    # Of the bytes of one file; a tier that is added costs only its own files.
    MEASURED: ClassVar[tuple[str, ...]] = ("fps", "gop_s", "crf")

    tiers: tuple[int, ...] = (256, 480, 720)
    fps: float = 30.0
    gop_s: float = 1.0
    crf: int = 20
    held_out_fraction: float = 0.05
    buckets: str = (
        "1x240x424,17x240x424,65x240x424,1x480x848,17x480x848,65x480x848,1x720x1280,17x720x1280,"
        "65x720x1280"
    )

    def __post_init__(self):
        if not self.tiers or any(tier < 16 or tier % 2 for tier in self.tiers):
            raise UserError(f"tiers must be even numbers of 16 or more, not {self.tiers}")
        _above(self, fps=1, gop_s=0.05, crf=0, held_out_fraction=0)
        if self.crf > 51 or self.held_out_fraction >= 1:
            raise UserError(
                f"crf must be 51 or less (it is {self.crf}), held_out_fraction below 1 (it is "
                f"{self.held_out_fraction:g})"
            )
        parse_shapes(self.buckets.split(","))  # now, and not when all is packed


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What one untrusted file may take.

    Attributes:
      seconds_per_second: of processor time for each second of its video.
      seconds: of processor time besides.
      memory_gb: of the worker, in 1e9 bytes.
      pixels: of a frame.
      hours: of video; what is longer is not read.
    """

    seconds_per_second: float = 4.0
    seconds: float = 60.0
    memory_gb: float = 4.0
    pixels: int = 8192 * 4320
    hours: float = 12.0

    def __post_init__(self):
        _above(self, seconds_per_second=0.1, seconds=1, memory_gb=0.5, pixels=1, hours=0.001)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurationConfig:
    """A curation: arXiv 2408.12590, section 3.

    Attributes:
      shots, duplicates, aesthetics, quality, text, motion, captions, pack, limits: see their
        classes.
      videos_per_shard: videos that are one unit of work, and one output shard.
      thumbnail_every_s: seconds between the small pictures that the page shows.
    """

    shots: ShotsConfig = ShotsConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    aesthetics: AestheticsConfig = AestheticsConfig()
    quality: QualityConfig = QualityConfig()
    text: TextConfig = TextConfig()
    motion: MotionConfig = MotionConfig()
    captions: CaptionsConfig = NoCaptions()
    pack: PackConfig = PackConfig()
    limits: LimitsConfig = LimitsConfig()
    videos_per_shard: int = 16
    thumbnail_every_s: float = 4.0

    def __post_init__(self):
        _above(self, videos_per_shard=1, thumbnail_every_s=0.5)

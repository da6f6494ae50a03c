"""From raw videos to training shards, as arXiv 2408.12590, section 3, did for 13 million clips.

config        what each stage measures, and the thresholds
measure       one decoding of a video, which feeds every `meter`
shots text motion quality aesthetics duplicates    a stage each: its meter, its score of a clip
clips         a video's clips with their scores, from what was measured
clip_table    the clips of all shards, and the duplicates among them
selection     which clips are kept, and why the others are not
captions      by an endpoint, a file or a function; `caption_endpoint` asks, `caption_transport`
              speaks HTTP, `caption_text` decides what is a caption
kept          the kept clips of a shard: their captions, and their packing
encode, pack  clips as small files, and these as ArrayRecord shards; `shard_index` writes the index
              and the manifest of all
webdataset    the same as tar files, and tar files as a folder of videos
store         tables on disk, each written whole or not at all, under a key of what decides it
isolation     a worker process with limits, for files that cannot be trusted
engines       the shards of videos one after another, with Ray, or over an array of jobs
"""

import importlib.util

from xgen_jax.errors import UserError

PACKAGES = ("cv2", "onnxruntime", "pdqhash", "rapidocr", "shapely")  # of the extra


def check_installed() -> None:
    """Raise UserError if a package of the extra `curation` is missing."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"curation needs {', '.join(missing)}: pip install 'xgen_jax[curation]', in the "
            "repository pip install -e '.[curation]'"
        )

"""Hook of mkdocs.yml: links from a page to files of the repository outside of docs/.

In the repository they are relative (`../configs/vdit/240p.py`). On the site they lead to the
repository's address, REPOSITORY_URL, or are plain text where none is given.
"""

import pathlib
import re
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
_OUTSIDE = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<path>\.\./[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_page_markdown(markdown: str, config: Any, page: Any, **_: Any) -> str:
    """Rewrite the links of a page that leave docs/.

    Raises:
      FileNotFoundError: a link to a file that the repository does not have.
    """

    def link(match: re.Match) -> str:
        file = (ROOT / "docs" / match["path"]).resolve()
        if not file.exists():
            raise FileNotFoundError(f"{page.file.src_uri}: {match['path']} does not exist")
        address = config.extra["repository"].rstrip("/")
        if not address:
            return match["text"]
        path = file.relative_to(ROOT).as_posix()
        return f"[{match['text']}]({address}/blob/main/{path}{match['anchor'] or ''})"

    return _OUTSIDE.sub(link, markdown)

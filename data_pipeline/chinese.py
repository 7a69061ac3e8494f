"""jieba, which cuts Chinese text into words.

It keeps its dictionary in a cache that it reads by `marshal`, usually in the folder for temporary files,
where any user of the machine could plant another. So it is put into the user's own cache folder.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path
from types import ModuleType


@cache
def segmenter() -> ModuleType:
    """The module `jieba`."""
    import jieba
    import jieba.posseg

    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jieba"
    folder.mkdir(parents=True, exist_ok=True)
    jieba.dt.tmp_dir = str(folder)
    jieba.setLogLevel(logging.WARNING)  # else it tells of its dictionary
    return jieba

"""The C++ compiler of this machine."""

import os
import shlex
import shutil


def compiler() -> list[str] | None:
    """The words that call it, `$CXX` (as `ccache g++`) or `c++`; None where there is none."""
    try:
        words = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    except ValueError:  # a quotation without an end
        return None
    return words if shutil.which(words[0]) else None

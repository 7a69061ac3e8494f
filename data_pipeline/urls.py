"""File systems behind URLs, through fsspec; local paths never come here."""

from __future__ import annotations

from typing import Any


def is_url(path: str) -> bool:
    """Whether a path is a URL such as s3://bucket/folder."""
    return "://" in path


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. Raises ValueError where there is none."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"{url}: {error}; pip install -e '.[urls]' in Distillery's folder") from None
    except ValueError as error:
        raise ValueError(f"{url} can't be opened: {error}") from None

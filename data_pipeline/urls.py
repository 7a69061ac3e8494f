"""File systems behind URLs, through fsspec; local paths never come here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from data_pipeline.outage import Outage


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


@contextmanager
def url_told(named: str, url: str) -> Iterator[None]:
    """Turn errors of a protocol's library into ValueErrors, or Outage; `named` begins their messages."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{named}: {url} does not exist; give an existing URL") from None
    except PermissionError:
        raise ValueError(
            f"{named}: {url} may not be read; let this user read it, or give the store's keys"
        ) from None
    except ValueError as error:  # such as that a server answers no byte ranges
        raise ValueError(f"{named}: {url} can't be read: {error}") from None
    except Exception as error:  # each protocol's library has errors of its own
        raise Outage(f"{named}: {url} can't be read: {error}; try again later") from None

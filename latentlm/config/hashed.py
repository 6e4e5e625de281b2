"""Small JSON records that carry a hash of their own, by which a change since they were written is found.

A right hash says that a record is as it was written, not who wrote it: what is in it is still checked as anyone's is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentlm.config.reading import read_json
from latentlm.errors import UserError

_HASH = "sha256"


def hash_record(record: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of a record without its hash."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def with_hash(record: Mapping[str, Any]) -> str:
    """The text of a file that `read_hashed` turns back into `record`."""
    return json.dumps({**record, _HASH: hash_record(record)}, indent=1) + "\n"


def read_hashed(path: Path) -> dict[str, Any]:
    """A record as it was written, without its hash. Raises UserError for a file that is no record, or has been changed."""
    record = read_json(path)
    if not isinstance(record, dict) or _HASH not in record:
        raise UserError(f"{path.name} is no record with a hash of its own.")
    promised = record.pop(_HASH)
    try:
        intact = promised == hash_record(record)
    except RecursionError:  # reading bears a little more than writing
        intact = False
    if not intact:
        raise UserError(f"{path.name} has been changed.")
    return record

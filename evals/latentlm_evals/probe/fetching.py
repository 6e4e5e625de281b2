"""Rated snippets of movie reviews, fetched from the source distribution of the PyPI package vaderSentiment (MIT), 3.3.2.

    reviews = fetch(progress=print)      # pip downloads it, its hash is checked, three members are read out of it
    reviews.texts                        # reviews.jsonl: {"text": ..., "rating": ...}, -4 to 4, the mean of about 20 raters

The sentences are Hutto and Gilbert's (ICWSM 2014, after Pang and Lee 2005). Everything goes into the user's cache
($XDG_CACHE_HOME/latentlm/reviews), with the package's lexicon and licence. Nothing is ever unpacked by the names in an archive:
members are asked for by name, must be plain files of at most so many bytes, and are written under names of ours.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from latentlm.config.reading import open_plain, why_not
from latentlm.config.writing import atomic_folder, check_replaceable
from latentlm.errors import UserError

PACKAGE, VERSION = "vaderSentiment", "3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
"""Of the source distribution."""
ARCHIVE = f"{PACKAGE}-{VERSION}.tar.gz"
_ROOT = f"{PACKAGE}-{VERSION}"
_INNER = f"{_ROOT}/additional_resources/hutto_ICWSM_2014.tar.gz"
_SNIPPETS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_LEXICON, _LICENCE = f"{_ROOT}/vaderSentiment/vader_lexicon.txt", f"{_ROOT}/LICENSE.txt"
_MOST = 16 * 2**20
"""Bytes of a member, at most; the largest has 1.9 MB."""
_MOST_ARCHIVE = 64 * 2**20
"""Bytes of what may be the archive, which has 3 MB."""
_TIMEOUT = 600


@dataclass(frozen=True)
class Reviews:
    """The folder in the cache."""

    folder: Path

    @property
    def texts(self) -> Path:
        """{"text": ..., "rating": ...} in each line: what `latentlm train data.path=` reads."""
        return self.folder / "reviews.jsonl"

    @property
    def lexicon(self) -> Path:
        """A word, a tab, its mean valence."""
        return self.folder / "lexicon.tsv"  # no .txt: as a folder of texts this one has none but the reviews

    @property
    def licence(self) -> Path:
        """Of the package."""
        return self.folder / "LICENSE"

    @property
    def complete(self) -> bool:
        """Whether it has been fetched; the folder appears whole or not at all."""
        return self.texts.is_file() and self.lexicon.is_file()


def cached() -> Reviews:
    """Where the reviews are, or would be."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Reviews(Path(base) / "latentlm" / "reviews")


def fetch(
    *, archive: Path | None = None, anew: bool = False, progress: Callable[[str], None] = lambda said: None
) -> Reviews:
    """The reviews, from the cache where they are there. `archive`: the source distribution, where it lies here already; `anew`:
    whatever is there. Raises UserError without a network, for another archive than the pinned one, and for one of another
    layout; nothing is then written."""
    found = cached()
    if found.complete and not anew and archive is None:
        return found
    check_replaceable(found.folder, _is_ours, kind=_KIND, folder=True)
    with tempfile.TemporaryDirectory() as folder:
        if archive is None:
            progress(f"pip downloads {PACKAGE} {VERSION}")
            archive = download(Path(folder))
        data = _checked(archive)
    progress("reading the archive")
    rated = _rated(_member(_member(data, _INNER), _SNIPPETS))
    lexicon, licence = _member(data, _LEXICON), _member(data, _LICENCE)
    with atomic_folder(found.folder, ours=_is_ours, kind=_KIND) as written:
        made = Reviews(written)
        made.texts.write_text(rated, encoding="utf-8")
        made.lexicon.write_bytes(lexicon)
        made.licence.write_bytes(licence)
    return found


_KIND = "a folder of these reviews with nothing else in it"


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds nothing but what `fetch` writes."""
    own = Reviews(folder)
    return {*folder.iterdir()} <= {own.texts, own.lexicon, own.licence}


def download(folder: Path) -> Path:
    """The source distribution, by pip, which checks the hash as well, before it runs anything. Raises UserError."""
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--require-hashes", "--quiet",
        "--disable-pip-version-check", "--dest", str(folder), "-r", str(pinned),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        said = done.stderr.strip().splitlines()[-3:]
    except subprocess.TimeoutExpired:
        said = [f"no answer within {_TIMEOUT} seconds"]
    path = folder / ARCHIVE
    if not path.is_file():
        raise UserError(
            f"pip could not download {PACKAGE} {VERSION}: {' '.join(said) or 'it wrote nothing'}. It needs the network or an "
            f"index that has the package; or get {ARCHIVE} elsewhere and give it: latentlm reviews --archive {ARCHIVE}."
        )
    return path


def _checked(path: Path) -> bytes:
    """The bytes of the pinned archive. Raises UserError for anything else."""
    try:
        with open_plain(path) as file:
            if os.fstat(file.fileno()).st_size > _MOST_ARCHIVE:
                raise UserError(f"{path} is larger than {ARCHIVE} is, and is not opened. Give the file {ARCHIVE} of PyPI.")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            data: bytes = file.read() if digest == SHA256 else b""
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{why_not(path, error)} Give the file {ARCHIVE}.") from None
    if digest != SHA256:
        raise UserError(
            f"{path.name} has the SHA-256 {digest}, not {SHA256}: it is not the file that was pinned, and is not opened. Get "
            f"{ARCHIVE} from PyPI."
        )
    return data


def _member(archive: bytes, name: str) -> bytes:
    """One plain file out of an archive, by its exact name. Raises UserError."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            found = tar.getmember(name)
            if not found.isfile() or found.size > _MOST:
                raise UserError(f"{name} in the archive is no plain file of at most {_MOST // 2**20} MiB: it is not read.")
            file = tar.extractfile(found)
            assert file is not None, "a plain file"
            return file.read()
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        raise UserError(f"{name} cannot be read from the archive: {error}. Get {ARCHIVE} from PyPI anew.") from None


def _rated(table: bytes) -> str:
    """JSON lines from lines of number, rating, text. Raises UserError."""
    lines = []
    for number, line in enumerate(table.decode("utf-8", errors="replace").rstrip().split("\n"), 1):
        try:
            _, rating, text = line.split("\t", 2)
            lines.append(json.dumps({"text": text.strip(), "rating": round(float(rating), 4)}, ensure_ascii=False))
        except ValueError:
            raise UserError(f"{_SNIPPETS}, line {number}: not a number, a rating and a text, between tabs.") from None
    return "\n".join(lines) + "\n"

"""The text of the 51M study: Python sources of packages that the environment has, test suites left out.

Run: ``python studies/51m/corpus.py FOLDER``; then ``latentlm train studies/51m/vanilla.yaml data.path=FOLDER``. Under the
versions of VERSIONS the documents are those of docs/gpu.md; others are reported.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

VERSIONS = {
    "torch": "2.13.0+cpu", "transformers": "5.24.0", "scipy": "1.17.1", "sympy": "1.14.0", "pandas": "3.1.1",
    "scikit-learn": "1.9.1", "networkx": "3.6.1", "numpy": "2.4.6", "matplotlib": "3.11.2", "nltk": "3.10.4",
    "datasets": "5.2.0",
}  # fmt: skip
FOLDERS = {"scikit-learn": "sklearn"}


def main() -> None:
    """Copy the sources, keeping their paths."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    target, library = Path(sys.argv[1]), Path(sysconfig.get_path("purelib"))
    for package, measured in VERSIONS.items():
        if (found := version(package)) != measured:
            print(f"{package} is {found}; the page was measured on {measured}", file=sys.stderr)
        root = library / FOLDERS.get(package, package)
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(library)
            if not {"tests", "test"} & set(inside.parts[:-1]):
                (target / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / inside)


if __name__ == "__main__":
    main()

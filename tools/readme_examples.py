"""Run the Python of the READMEs' section Example, each in a folder and a process of its own.

python tools/readme_examples.py PACKAGE_FOLDER...
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path


def example(text: str) -> str:
    """Return the Python blocks of the section Example, joined."""
    section = text.partition("\n## Example")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", section, re.S))


def main(*folders: str) -> int:
    """Run the examples; return how many failed."""
    failed = 0
    for folder in map(Path, folders):
        code = example((folder / "README.md").read_text())
        with tempfile.TemporaryDirectory() as place:
            done = subprocess.run([sys.executable, "-c", code], cwd=place, check=False)
        failed += done.returncode != 0 or not code
        print(
            f"{folder.name}: README example {'ran' if code and not done.returncode else 'FAILED'}"
        )
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Run the shell blocks of Markdown files, one after the other: `python .ci/readme_commands.py README.md docs/using.md`.

They run in this folder, with the `python` of this process. A block that a comment marks, as
`<!-- not run: needs a download -->` on the line before it, is left out, and its reason is printed.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

_BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^\n]*) -->\n)?```sh\n(?P<code>.*?)```", re.DOTALL)


def main(*paths: str) -> None:
    """Run the files' blocks; the first that fails ends it."""
    make_photos(Path("photos"))
    for path in paths:
        run(path)


def run(path: str) -> None:
    """Run a file's blocks."""
    ran = 0
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for block in _BLOCK.finditer(Path(path).read_text(encoding="utf-8")):
        if block["why"]:
            print(f"--- not run, {block['why']}: {block['code'].splitlines()[0]} ...", flush=True)
            continue
        begun = time.perf_counter()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block["code"]],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{path}: {block['code']}\nended with {done.returncode}:\n{done.stdout[-4000:]}")
        first = block["code"].splitlines()[0]
        print(f"--- {time.perf_counter() - begun:.0f} s: {first} ...\n{done.stdout[-400:]}", flush=True)
        ran += 1
    if not ran:
        sys.exit(f"{path} has no block that runs")


def make_photos(folder: Path) -> None:
    """Make what a reader has: photos/{train,val}/{cat,dog}/N.jpg, of other sizes."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 6)):
        for label, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                height, width = draw.integers(90, 160, 2)
                pixels = draw.integers(0, 128, (height, width, 3)) + 100 * np.eye(3, dtype=int)[label]
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{number}.jpg")


if __name__ == "__main__":
    main(*sys.argv[1:])

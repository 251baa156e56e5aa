"""What several test files use."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"


def nested(npz: Any, prefix: str = "") -> dict[str, Any]:
    """Return the arrays whose names begin with ``prefix``, as a tree."""
    flat = {name.removeprefix(prefix): npz[name] for name in npz.files if name.startswith(prefix)}
    return traverse_util.unflatten_dict(flat, sep="/")


def assert_close(found: Any, expected: Any, relative: float = 1e-5) -> None:
    """Assert that trees agree, leaf by leaf, relative to the largest value of the leaf.

    A leaf whose values are all below a hundredth of the tree's largest is compared relative to
    that: some gradients are zero but for rounding.
    """
    found, expected = (traverse_util.flatten_dict({"": tree}, sep="/") for tree in (found, expected))
    assert found.keys() == expected.keys()
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        scale = max(np.abs(value).max(), largest / 100)
        np.testing.assert_allclose(found[name], value, rtol=0, atol=relative * scale, err_msg=name)


def assert_same(found: Any, expected: Any) -> None:
    """Assert that trees agree to the bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def command(*args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run ``python -m vit_jax_mixer.ARGS`` from the root of the project."""
    line = [sys.executable, "-m", f"vit_jax_mixer.{args[0]}", *map(str, args[1:])]
    return subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, **kwargs)


def blocks(page: str) -> dict[str, str]:
    """Return the Python of a page of the documentation, each block by the last name of a file before it."""
    before, *parts = (ROOT / page).read_text().split("```python\n")
    found = {}
    for part in parts:
        code, _, after = part.partition("```")
        found[re.findall(r"`(\w+\.py)`", before)[-1]] = code
        before = after
    return found


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def assert_one_sentence(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Assert that a command failed with one sentence that has all the parts, and no traceback."""
    assert result.returncode != 0, result.stdout
    assert "Traceback" not in result.stderr, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert re.search(re.escape(part), lines[0]), f"{part!r} is not in {lines[0]!r}"

import os

import pytest

from vit_jax_mixer.data.skipped import Skipped
from vit_jax_mixer.errors import UserError


def test_a_list_that_is_no_file_is_one_sentence(tmp_path):
    path = tmp_path / "skipped_examples.txt"
    os.mkfifo(path)  # which reading would wait for
    with pytest.raises(UserError, match="is a pipe, not a regular file"):
        Skipped(tmp_path, 0, print)
    path.unlink()
    path.write_bytes(b"a\xff\n")
    assert Skipped(tmp_path, 0, print).summary().startswith("1 bad examples")

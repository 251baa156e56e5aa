import pytest

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run.trace import Trace


@pytest.mark.parametrize("steps", ["1", "0:5", "5:1", "1:" + "9" * 5000, "\u0661:\u0662", "-1:5", "1:5:9"])
def test_steps_that_cannot_be_traced_are_one_short_sentence(tmp_path, steps):
    with pytest.raises(UserError, match="name the first and the last step to trace") as error:
        Trace(steps, tmp_path, 0, 10)
    assert len(str(error.value)) < 300

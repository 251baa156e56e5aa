"""The embedded dataset: 1,797 handwritten digits of 8x8 pixels, which scikit-learn ships.

A TFDS builder as any other; it needs neither network nor TensorFlow.
"""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class SklearnDigits(tfds.core.GeneratorBasedBuilder):
    """Every fifth digit is a test example: 1,437 for training and 360 for test.

    Origin: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, 1998 (CC BY 4.0), by way of `sklearn.datasets.load_digits`.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples(test=False), "test": self._generate_examples(test=True)}

    def _generate_examples(self, test: bool):  # pyright: ignore[reportIncompatibleMethodOverride] # TFDS's own way
        from sklearn.datasets import load_digits

        rows, labels = load_digits(return_X_y=True)  # counts 0..16: [1797, 64], and digits
        for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
            if (i % 5 == 0) == test:
                pixels = (row.reshape(8, 8) * 255 / 16).round().astype(np.uint8)
                png = io.BytesIO()  # TFDS would need TensorFlow to encode an array
                Image.fromarray(pixels).save(png, "PNG")
                png.seek(0)
                yield i, {"image": png, "label": int(label)}

"""JPEGs to batches by tf.data: decode, sampled crop, resize, flip, normalise, one-hot, AUTOTUNE."""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers import timing

BATCH = 128
SIZE = 224


def packed_of(folder: Path) -> Path:
    """Return where the same photographs are packed."""
    return folder.with_name(f"{folder.name}_packed")


def tf_data(fused: bool, packed: bool = False) -> Callable[[Path], Iterator[int]]:
    """Return what gives the sizes of batches of a folder's photos, endlessly; ``fused`` decodes the crop alone."""

    def contestant(folder: Path) -> Iterator[int]:
        tf = importlib.import_module("tensorflow")

        paths = [str(path) for path in sorted(folder.glob("*/*.jpg"))]
        classes = sorted({Path(path).parent.name for path in paths})
        labels = [classes.index(Path(path).parent.name) for path in paths]

        def read(path, label):
            return tf.io.read_file(path), label

        def parse(record):
            kinds = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
            found = tf.io.parse_single_example(record, kinds)
            return found["image"], found["label"]

        def example(data, label):
            shape = tf.io.extract_jpeg_shape(data)
            begin, size, _ = tf.image.sample_distorted_bounding_box(
                shape,
                tf.zeros([0, 0, 4], tf.float32),
                area_range=(0.05, 1.0),
                min_object_covered=0,
                use_image_if_no_bounding_boxes=True,
            )
            if fused:
                box = tf.stack([begin[0], begin[1], size[0], size[1]])
                image = tf.image.decode_and_crop_jpeg(data, box, channels=3)
            else:
                image = tf.slice(tf.image.decode_jpeg(data, channels=3), begin, size)
            image = tf.image.random_flip_left_right(tf.image.resize(image, [SIZE, SIZE]))
            return image / 127.5 - 1, tf.one_hot(label, len(classes))

        if packed:
            data = tf.data.TFRecordDataset(tf_records(tf, packed_of(folder)))
            data = data.shuffle(2048).repeat().map(parse, tf.data.AUTOTUNE)
        else:
            data = tf.data.Dataset.from_tensor_slices((paths, labels)).shuffle(len(paths)).repeat()
            data = data.map(read, tf.data.AUTOTUNE)
        data = data.map(example, tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)
        for batch, _ in data:
            yield len(batch)

    return contestant


def tf_records(tf: Any, folder: Path) -> str:
    """Return the file that has the records of a packed dataset as tf.data reads them best; made if it is not there."""
    path = folder / "all.tfrecord"
    if not path.exists():
        reader = importlib.import_module("array_record.python.array_record_module").ArrayRecordReader
        with tf.io.TFRecordWriter(f"{path}.tmp") as writer:
            for shard in sorted(folder.glob("*.array_record-*")):
                for record in reader(str(shard)).read_all():
                    writer.write(record)
        Path(f"{path}.tmp").replace(path)
    return str(path)


def pipeline(settings: dict[str, Any]) -> timing.Measured:
    """The original's way: the whole photo is decoded, then cropped."""
    return {"rate": timing.rate_of(tf_data(fused=False)(Path(settings["photos"])), settings["seconds"])}


if __name__ == "__main__":
    timing.main({"pipeline": pipeline}, {"TensorFlow": importlib.import_module("tensorflow").__version__})

"""Random-access examples of one split, by the dataset's name, ``KIND:PLACE``.

=================================  ===============================================================
``tfds:NAME[/CONFIG][:VERSION]``   a TFDS dataset prepared as ArrayRecord or TFRecord, in
                                   $TFDS_DATA_DIR or ~/tensorflow_datasets;
                                   ``tfds:sklearn_digits`` is prepared on first use
``tfds:/DIR``                      the same, by the folder that holds its ``dataset_info.json``
``folder:DIR``                     ``DIR/SPLIT/CLASS/**/image``, or ``DIR/CLASS/**/image`` as the
                                   split `all`; a class is a folder that holds images (.jpg, .jpeg,
                                   .png, .webp, .bmp, .gif), as cat or animals/cat; folders of the
                                   system, as @eaDir, and hidden ones count for nothing; images in
                                   no class folder, as ``DIR/SPLIT/image`` or ``DIR/image``, have no
                                   labels
``manifest:FILE``                  a .csv, .tsv or .parquet file with the columns path (from the
                                   file's folder), label, if there are any, and, if there are several,
                                   split; without that column the split is `all`
``idx:DIR``                        MNIST's four files, gzipped or not; the splits are train, test
``hf:NAME[:CONFIG]``               a dataset of the Hugging Face hub, as hf:cifar10, hf:USER/NAME
``hf:/DIR``, ``hf:/FILE.parquet``  a dataset that `save_to_disk` wrote, or Parquet files
``table:FILE``                     rows of a .csv, .tsv, .txt or .parquet file, as the split `all`, or by the words
                                   of a column, as table:rows.csv,split=part; another delimiter than , ; | and tab
                                   is named, as table:rows.csv,delimiter=:
``table:DIR``                      the same for the files in DIR, a split each, as train and test
``text:FILE``                      pairs of sentences, a line each with a tab between, gzipped or not, as the
                                   split `all`
``text:SOURCE,TARGET``             the same of two files, line by line
``text:DIR``, ``text:DIR,en,es``   a folder's files, a split each: train.tsv.gz, test.tsv; or train.en and train.es
``numbers:COUNT``                  numbers below a million and their English names, as numbers:20000; the splits are
                                   train and test
``sklearn:NAME``                   a table that scikit-learn ships: breast_cancer, diabetes, iris or wine
``blank:CLASSES[,HxWxC]``          grey images, as blank:1000 or blank:10,28x28x1: a dataset's shape
                                   without its pictures; 0 for one without labels
``blank_pairs:PIECES,LENGTH``      sentences of that length, as blank_pairs:32000,256, with the vocabulary
                                   word(PIECES)
``MODULE:NAME[:PLACE]``            a user's own function from PLACE to splits; see docs/extending.md
=================================  ===============================================================

Fields of ``tfds:`` and ``hf:`` go by their types and usual names (image, img, pixel_values; label, labels,
fine_label, ...); others are named at the end, as in ``hf:cifar100,label=coarse_label``.

Examples without labels are for tasks that need none; who needs them says which field lacks.

A split may be cut and joined: ``train[:98%]``, ``train[-500:]``, ``train+test``; see `slices`. Where
there is one other usual name for it, that is read: Training for train, val or dev for validation.

Images of folders and manifests, rows of tables and pairs of sentences come in an order that is as good as random
and always the same, so a slice is a fair part of all classes. Their classes are in the order of names, or, where
``classes.txt`` lies in DIR or beside FILE, in that of its lines, a class each.
"""

import importlib
from collections.abc import Callable, Mapping

from vit_jax_mixer import plugins, specs
from vit_jax_mixer.data.sources.base import RandomAccess, Source, Splits
from vit_jax_mixer.data.sources.idx import read_idx
from vit_jax_mixer.data.sources.slices import open_expression
from vit_jax_mixer.errors import UserError

__all__ = ["KINDS", "RandomAccess", "Source", "Splits", "open_source", "open_splits", "read_idx"]


def _of(module: str, opener: str) -> Callable[[str], Splits]:
    """Return a function of a module here that is loaded when it is called: their libraries take a while."""
    return lambda place: getattr(importlib.import_module(f"{__name__}.{module}"), opener)(place)


KINDS: Mapping[str, Callable[[str], Splits]] = {
    "tfds": _of("tfds", "open_tfds"),
    "folder": _of("folder", "open_folder"),
    "manifest": _of("manifest", "open_manifest"),
    "idx": _of("idx", "open_idx"),
    "hf": _of("hf", "open_hf"),
    "table": _of("table", "open_table"),
    "sklearn": _of("table", "open_sklearn"),
    "text": _of("text", "open_text"),
    "numbers": _of("text", "open_numbers"),
    "blank": _of("blank", "open_blank"),
    "blank_pairs": _of("blank", "open_blank_pairs"),
}


def open_splits(name: str) -> Splits:
    """Return all splits of the dataset ``KIND:PLACE``; see the table above.

    Raises:
        UserError: no such kind or dataset.
    """
    kind, _, place = name.partition(":")
    where = f"data source {name!r}, before its colon"
    if kind not in KINDS and (own := plugins.NAME.match(name)) and name[own.end() : own.end() + 1] in ("", ":"):
        return specs.call(plugins.lookup(KINDS, own[0], where), {}, where, place=name[own.end() + 1 :])
    return specs.lookup(KINDS, kind, where)(place)


def open_source(name: str, split: str, skip_bad: bool = True) -> Source:
    """Open a split of the dataset ``KIND:PLACE``, or parts of splits, as ``train[:98%]+test``.

    Args:
        name: of the dataset.
        split: an expression; see `slices`.
        skip_bad: pass over what lies among the images and is none; `Source.passed_over` lists it.

    Raises:
        UserError: no such kind, dataset or split; it holds no example; without ``skip_bad``, or what is no image.
    """
    source = open_expression(open_splits(name), split, name)
    if not len(source.examples):
        raise UserError(f"{name}, split {split!r}, holds no example; name another split.")
    if source.passed_over and not skip_bad:
        raise UserError(
            f"{name}, split {split!r}: {source.passed()}; convert or remove them, or pass over them with "
            "on_bad_example='skip'."
        )
    return source

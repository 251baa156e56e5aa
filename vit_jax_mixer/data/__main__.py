"""Look into a dataset.

  python -m vit_jax_mixer.data folder:photos
  python -m vit_jax_mixer.data folder:photos --check
  python -m vit_jax_mixer.data tfds:cifar10 --build
  python -m vit_jax_mixer.data folder:photos --pack=packed --side=256

It prints the splits, classes, image sizes and the decoding speed, and draws a contact sheet of
augmented examples. With --check it reads everything, with --profile it times the pipeline. With
--pack it writes all images, reduced, to a few fast files, which `tfds:FOLDER` and TFDS itself read.
"""

from pathlib import Path

from absl import flags

from vit_jax_mixer import cli
from vit_jax_mixer.errors import UserError, printable

_FLAGS = flags.FlagValues()
_SPLIT = flags.DEFINE_string(
    "split", None, "What to look at, as train[:10%]; the first split if not given.", flag_values=_FLAGS
)
_OPS = flags.DEFINE_string(
    "ops",
    "decode_crop(224)|flip_lr",
    "Image operations, for the contact sheet and the profile; see docs/data.md.",
    flag_values=_FLAGS,
)
_SHEET = flags.DEFINE_string(
    "sheet", "contact_sheet.png", "Where the contact sheet is written; '' for none.", flag_values=_FLAGS
)
_SAMPLES = flags.DEFINE_integer("samples", 200, "How many examples are looked at.", lower_bound=1, flag_values=_FLAGS)
_CHECK = flags.DEFINE_bool(
    "check", False, "Read and decode everything: count labels, name what is bad.", flag_values=_FLAGS
)
_BUILD = flags.DEFINE_bool("build", False, "Prepare a TFDS dataset first, in a process of its own.", flag_values=_FLAGS)
_PROFILE = flags.DEFINE_bool("profile", False, "Say where the time of the pipeline goes.", flag_values=_FLAGS)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Of the profile.", lower_bound=1, flag_values=_FLAGS)
_WORKERS = flags.DEFINE_integer(
    "workers", -1, "Of the profile, config.loader.workers; of --pack, processes.", -1, 1024, flag_values=_FLAGS
)
_THREADS = flags.DEFINE_integer("threads", -1, "Of the profile: config.loader.threads.", -1, 1024, flag_values=_FLAGS)

_PACK = flags.DEFINE_string(
    "pack", "", "A folder: write the dataset there as ArrayRecord files, of all splits or --split.", flag_values=_FLAGS
)
_SIDE = flags.DEFINE_integer(
    "side", 256, "Of --pack: the shorter side of larger images, in pixels.", 1, 1 << 13, flag_values=_FLAGS
)
_QUALITY = flags.DEFINE_integer("quality", 90, "Of --pack: of the JPEGs that these become.", 1, 100, flag_values=_FLAGS)
_SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "Of --pack: leave bad examples out.", flag_values=_FLAGS)

_MANY = 20  # splits that are opened one by one


def main(argv: list[str]) -> None:
    """Describe the dataset that is named."""
    if len(argv) != 2:
        raise UserError("name one dataset, as in `python -m vit_jax_mixer.data folder:photos`.")
    # Imported here, so that a typo in a flag is answered before JAX is loaded.
    from vit_jax_mixer.data import describe, images, profiling
    from vit_jax_mixer.data.pipeline import Loader
    from vit_jax_mixer.data.sources import open_source, open_splits
    from vit_jax_mixer.data.sources.tfds import build

    name = argv[1]
    ops = images.parse(_OPS.value, "--ops")
    loader = Loader(_WORKERS.value, _THREADS.value, prefetch=2)
    if _BUILD.value:
        if not name.startswith("tfds:"):
            raise UserError(f"--build prepares datasets of TFDS, named tfds:NAME; {name} is none.")
        build(name.removeprefix("tfds:"))
    splits = open_splits(name)
    if _PACK.value:
        return _pack(name, [_SPLIT.value] if _SPLIT.value else list(splits))
    print(f"{printable(name)}: splits {describe.names(list(splits))}")
    # Of very many, as where class folders hold folders, one is looked at.
    looked_at = splits if len(splits) <= _MANY else ["all" if "all" in splits else next(iter(splits))]
    opened = {}
    for split in looked_at:
        try:
            opened[split] = source = open_source(name, split)
        except UserError as error:  # as one that is no split, or not whole; the others may do
            print(f"  {printable(split)}: {error}")
            continue
        count = f", {len(source.class_names):,} classes" if source.class_names else ""
        print(f"  {printable(split)}: {len(source.examples):,} examples{count}")
    with_classes = [name for name, one in opened.items() if one.class_names]
    split = _SPLIT.value or next(iter(with_classes or opened or splits))
    source = opened[split] if split in opened else open_source(name, split)
    known = f"classes {describe.names(source.class_names)}" if source.class_names else "no classes"
    print(f"looking at {printable(split)}: {len(source.examples):,} examples, {known}")
    for line in dict.fromkeys(line for one in (*opened.values(), source) for line in describe.remarks(one)):
        print(f"  note: {line}")
    if (table := getattr(source.examples, "table", None)) is not None:
        return _show_table(table)
    for line in describe.sizes(source, _SAMPLES.value):
        print(line)
    if _SHEET.value:
        describe.contact_sheet(source, ops, Path(_SHEET.value))
        print(f"contact sheet: {_SHEET.value}, each row an example and five views by {_OPS.value}")
    if _PROFILE.value:
        for line in profiling.report(source, _OPS.value, ops, loader, _BATCH_SIZE.value, _SAMPLES.value):
            print(line)
    if _CHECK.value:
        _check(source)


def _pack(name: str, splits: list[str]) -> None:
    from vit_jax_mixer.data.packing import Settings, pack

    folder = Path(_PACK.value).expanduser()
    settings = Settings(name, tuple(splits), _SIDE.value, _QUALITY.value, _SKIP_BAD.value)
    try:
        for line in pack(settings, folder, max(_WORKERS.value, 0)):
            print(printable(line), flush=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror or error}); choose another --pack.") from error


def _show_table(table) -> None:
    from vit_jax_mixer.data.tables import describe

    for line in describe.lines(table):
        print(line)
    if _SHEET.value:
        describe.sheet(table, Path(_SHEET.value))
        print(f"histograms: {_SHEET.value}")


def _check(source) -> None:
    from vit_jax_mixer.data import describe
    from vit_jax_mixer.data.workers import cores

    labels, bad = describe.check(source, threads=cores() + 1)
    for label, count in sorted(labels.items()) if source.class_names else ():
        print(f"  label {label} ({printable(source.class_names[label])}): {count:,}")
    for line in bad:
        print(f"  bad: {line}")
    if bad:
        raise UserError(
            f"{len(bad)} of {len(source.examples)} examples are bad; mend them, or set on_bad_example='skip'."
        )
    print(f"all {len(source.examples):,} examples can be read.")


if __name__ == "__main__":
    cli.run(main, _FLAGS)

"""From a sweep's FILE to its runs; docs/sweeps.md says what it may hold."""

import dataclasses
import hashlib
import itertools
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import jax

from vit_jax_mixer import config as config_lib
from vit_jax_mixer import config_file, files, specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run.assemble import assemble
from vit_jax_mixer.specs import Within
from vit_jax_mixer.sweep import search as search_lib
from vit_jax_mixer.sweep.search import Halving

Overrides = Mapping[str, str]  # of fields, as 'optim.learning_rate', each as a command line has it
_MOST = 10_000  # runs
_LONGEST = 100  # characters of a folder's name


@dataclasses.dataclass(frozen=True)
class Variant:
    """What differs from the config, but for the seed.

    Attributes:
        name: of its folder.
        overrides: what is its own.
        words: the command line of `main`, without seed and workdir.
    """

    name: str
    overrides: Overrides
    words: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: a variant and a seed.

    Attributes:
        variant: what differs.
        seed: ``config.seed``.
        words: the command line of `main`, without the workdir.
        fields: the whole config, as a workdir keeps it in JSON.
    """

    variant: Variant
    seed: int
    words: tuple[str, ...]
    fields: Mapping[str, Any]

    @property
    def place(self) -> str:
        """Its folder, below the sweep's."""
        return f"{self.variant.name}/seed_{self.seed}"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a FILE says.

    Attributes:
        metrics: the columns of the table; () for all of the last evaluation.
        runs: in the order in which they start: all variants with the first seed, then with the next.
        best: the metric that a search is for, as ``config.checkpoint.best`` names one; '' without a search.
        halving: which runs of a search end before others; None for none.
    """

    metrics: tuple[str, ...]
    runs: tuple[Run, ...]
    best: str = ""
    halving: Halving | None = None


def read(path: str) -> Sweep:
    """Read a FILE, and make the config of each run.

    Raises:
        UserError: the file is no TOML, a field of it or of a config is not known, or a value does not fit.
    """
    try:
        fields = tomllib.loads(files.read_text(path, 1 << 20))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no TOML ({error}); mend it.") from error
    return of(fields, path)


def of(fields: Mapping[str, Any], path: str) -> Sweep:
    """Make the config of each run from the fields of a file.

    Args:
        fields: as docs/sweeps.md says.
        path: where they are from, for errors.

    Raises:
        UserError: as `read`.
    """
    return specs.call(_sweep, fields, path, path=path)


def _sweep(
    path: str,
    config: str,
    seeds: Sequence[Annotated[int, Within(0, 2**32 - 1)]] = (0,),
    metrics: Sequence[str] = (),
    set: Mapping[str, Any] | None = None,  # the name of the table in the file
    grid: Mapping[str, Any] | None = None,
    variants: Mapping[str, Any] | None = None,
    search: Mapping[str, Any] | None = None,
) -> Sweep:
    if bad := [seed for seed in seeds if type(seed) is not int or not 0 <= seed < 2**32]:
        raise UserError(f"{path}: seeds has {bad[0]!r}; each is a whole number from 0 to {2**32 - 1}.")
    if not seeds or len({*seeds}) < len(seeds):
        raise UserError(f"{path}: seeds is {list(seeds)}; give each once, and at least one.")
    if not all(isinstance(name, str) for name in metrics):
        raise UserError(f"{path}: metrics is {list(metrics)}; give names, as 'test/accuracy'.")
    common = _flat(set or {}, f"{path}: set")
    named = {name: _flat(own, f"{path}: variants.{name}") for name, own in (variants or {"": {}}).items()}
    choices = _flat(grid or {}, f"{path}: grid", _several)
    if len(named) * len(seeds) * math.prod(map(len, choices.values())) > _MOST:
        raise UserError(f"{path} makes more than {_MOST:,} runs; leave values out.")
    made: list[Variant] = []
    several = [
        (name, own, dict(zip(choices, values, strict=True)))
        for (name, own), values in itertools.product(named.items(), itertools.product(*choices.values()))
    ]
    found, checked = None, len(several)
    if search is not None:
        if grid or variants:
            raise UserError(f"{path} has [search] and {'[grid]' if grid else '[variants]'}; leave one of them out.")
        ranges = _flat(search.get("ranges", {}), f"{path}: search.ranges", _range)
        found = specs.call(search_lib.Search, {**search, "ranges": ranges}, f"{path}: search")
        if found.halving and len(seeds) > 1:
            raise UserError(f"{path}: search.method is {found.method!r}, which compares runs of one seed; give one.")
        checked = 1  # whatever else is drawn differs in values alone
        several = [(f"trial_{i}", {}, drawn) for i, drawn in enumerate(found.draw())]
    for name, own, values in several:
        overrides = {**own, **values}
        if "seed" in {**common, **overrides}:
            raise UserError(f"{path} sets the field seed; list them as seeds = [0, 1, 2].")
        words = tuple(f"--config.{field}={text}" for field, text in {**common, **overrides}.items())
        made.append(Variant(_folder(name, values), overrides, (f"--config={config}", *words)))
    if len({variant.name for variant in made}) < len(made):
        raise UserError(f"{path} has a value of the grid, or a variant, twice; leave one out.")
    runs = tuple(
        _run(path, one, seed, seed == seeds[0] and i < checked) for seed in seeds for i, one in enumerate(made)
    )
    if found is None:
        return Sweep(tuple(metrics), runs)
    return Sweep(tuple(metrics), runs, found.metric_of(runs[0].fields), found.halving)


def _run(path: str, variant: Variant, seed: int, check: bool) -> Run:
    words = (*variant.words, f"--config.seed={seed}")
    try:
        _, _, config = config_file.take(words)
        if check:  # all that a start would find wrong, but for the devices
            run = dataclasses.replace(config_lib.Config.of(config), parallel="jit")
            assemble(run, jax.local_devices()[:1])
    except UserError as error:
        raise UserError(f"{path}, {variant.name}: {error}") from error
    return Run(variant, seed, words, config_lib.as_json(config))


def _flat(
    section: Any, where: str, read: Callable[[Any, str], Any] = lambda value, where: _text(value), prefix: str = ""
) -> dict[str, Any]:
    """Return fields by their whole names, with what ``read`` makes of their values: by default as on a command line."""
    if not isinstance(section, Mapping):
        raise UserError(f"{where} is {section!r}; it must be a table of fields.")
    found: dict[str, Any] = {}
    for name, value in section.items():
        if not re.fullmatch(r"[\w.]+", name):
            raise UserError(f"{where} has {name!r}, which is no name of a field; as optim.learning_rate.")
        if isinstance(value, Mapping):
            found |= _flat(value, where, read, f"{prefix}{name}.")
        else:
            found[prefix + name] = read(value, f"{where}.{prefix}{name}")
    return found


def _several(values: Any, where: str) -> list[str]:
    if not (isinstance(values, list) and values):
        raise UserError(f"{where} is {values!r}; it must be a list of values to try.")
    return [*map(_text, values)]


def _range(values: Any, where: str) -> search_lib.Range:
    return search_lib.range_of(values if isinstance(values, str) else _several(values, where), where)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _folder(name: str, values: Overrides) -> str:
    """Return a name for the folder of a variant, short and fit for any disk."""
    text = ",".join([*([name] if name else []), *(f"{field.split('.')[-1]}={text}" for field, text in values.items())])
    text = text or "base"
    clean = re.sub(r"[^\w.=,+-]", "_", text)
    if clean == text and len(clean) <= _LONGEST and not clean.startswith("."):
        return clean
    whole = f"{name} {sorted(values.items())}".encode("utf-8", "surrogatepass")
    return f"{clean[:_LONGEST].lstrip('.')}-{hashlib.blake2b(whole, digest_size=4).hexdigest()}"

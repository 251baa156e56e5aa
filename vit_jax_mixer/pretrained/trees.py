"""Which of the trees in a file is the model: the same rules for every format.

Training code saves a model's parameters beside an optimizer's state, a running mean and a teacher,
each under names of its own, and wrappers of modules put more before the parameters' names. All of
that comes before the names that `name_tables` knows, and is what tells one *tree* from another: its
*path*, as ``state_dict_ema.module`` of ``state_dict_ema/module.stem.proj.weight``.

- A tree is found by the names in it, so that any wrapper will do; its words only rank the trees.
- An optimizer's state has the parameters' names as well, and is never taken.
- A running mean is taken before what it is the mean of, as a workdir's is. A teacher that has its
  student's names and shapes is one.
- Among others the caller chooses, as in ``FILE#student``; what was chosen is said.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import NoReturn

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained.checks import Shape, Shapes
from vit_jax_mixer.pretrained.name_tables import CONVENTIONS

Path = tuple[str, ...]
Tree = dict[str, str]  # names in the file, by those in the tree

MEAN, RAW = "ema", "raw"  # what may be asked for, whatever the tree's own words
# Whole words of a path, in lower case: what belongs to an optimizer or the loop, and what is a running mean.
_STATE = re.compile(
    r"opt|opt_?states?|\w*optim\w*|exp_avg\w*|[mn]u|momentums?|momentum_buffers?|velocity|trace|slots?"
    r"|adam_?[mv]|param_states|\w*(grads?|gradients?)(_\w+)?|\w*schedulers?|lr|lr_\w+|\w*scaler|rng\w*|(global_)?step|epoch"
    r"|iteration|skipped|loops"
)
_MEANS = re.compile(
    r"(\w+_)?(ema|swa|averaged?|polyak|shadow|teacher)\d*(_\w+)?|avg(_(params|model|state_dict))?|(\w+_)?avg"
    r"|(target|momentum)_\w+"
)
_PARAMS = {"params", "state_dict", "model_state_dict", "model_state", "variables"}
_MODULES = {"model", "module", "net", "network", "target"}
# Of ours, no parameters but for who asks: an EMA teacher, a centre, a queue.
_ASIDE = {"extra"}

_DEPTH = 12  # of words before a parameter's name
# Any name in any table.
_KNOWN = re.compile(
    "|".join({re.sub(r"\?P<\w>", "?:", row.their_pattern.pattern) for c in CONVENTIONS.values() for row in c.rows})
)


@dataclasses.dataclass
class Chooser:
    """Chooses a tree of a file, given the shapes of all its arrays by their names; a reader calls it.

    Attributes:
        where: the file, for messages.
        wanted: 'ema', 'raw', or words of a tree's path, as 'student' or 'state_dict.module'; '' for the rule.
        ours: whether it is a run of ours, whose names are taken as they are.
        published: of a run of ours, the path of the tree that its task publishes; '' for the usual.
        said: what was chosen, where there was a choice; '' where there was none.
    """

    where: str
    wanted: str = ""
    ours: bool = False
    published: str = ""
    said: str = ""

    def __call__(self, shapes: Shapes) -> Tree:
        """Return the arrays of the model, their names in the file by those in the tree.

        Raises:
            UserError: there is none, or it is not clear which is meant.
        """
        own = self.published, self.wanted
        trees = _of_a_run(shapes, *own) if self.ours else _known(shapes) or _others(shapes)
        # Of a run of ours none is looked for by its words: a teacher may be called momentum.
        states = [path for path in trees if _is_state(path)] if not self.ours else []
        models = {path: tree for path, tree in trees.items() if path not in states}
        if not models and states:
            raise UserError(f"{self.where} holds an optimizer's state, {_listed(states)}, and no model; take another.")
        if not models:
            raise UserError(f"{self.where} holds no parameters; give a file of weights.")
        path = self._asked(models) if self.wanted else self._usual(models, shapes)
        beside = [one for one in models if one != path]
        left = _left(shapes, models, path)
        if beside or left or states:
            self.said = f"taken is {_words(path)}{_kind(path)}"
            if beside:
                self.said += f", not {_listed(beside)} (ask for {self.where}#{_short(beside, path)})"
            self.said += f"; left out: {', '.join(left)}" if left else ""
        return models[path]

    def _asked(self, models: Mapping[Path, Tree]) -> Path:
        wanted = tuple(re.split(r"[./]", self.wanted))
        found = [wanted] if wanted in models else [path for path in models if _holds(path, wanted)]
        if not found and self.wanted in (MEAN, RAW):
            found = [path for path in models if _is_mean(path) == (self.wanted == MEAN)]
        if len(found) != 1:
            why = "several of them are meant" if found else f"none of it is {self.wanted!r}"
            self._unclear(found or list(models), why)
        return found[0]

    def _usual(self, models: Mapping[Path, Tree], shapes: Shapes) -> Path:
        if self.published and "step" in shapes:
            if _path(self.published) not in models:
                self._unclear(list(models), f"none of it is what the run publishes, {self.published!r}")
            return _path(self.published)
        usual = [path for path in models if not _ASIDE & set(path)] or list(models)
        means = [path for path in usual if _is_mean(path)]
        raw = [path for path in usual if path not in means]
        if len(means) == 1 and all(_form(models[path], shapes) == _form(models[means[0]], shapes) for path in raw):
            return means[0]
        if len(usual) > 1:
            self._unclear(usual, "it is not clear which is meant")
        return usual[0]

    def _unclear(self, paths: list[Path], why: str) -> NoReturn:
        example = _short(paths, None)
        raise UserError(f"{self.where} holds {_listed(paths)}, and {why}; name one, as in {self.where}#{example}.")


def split(reference: str | os.PathLike[str]) -> tuple[str, str]:
    """Return a reference without what stands behind its last '#', and that; a path that exists is whole."""
    text = os.fspath(reference)
    if "#" not in text or os.path.exists(os.path.expanduser(text)):
        return text, ""
    plain, _, tree = text.rpartition("#")
    return plain, tree


def last(tree: str) -> tuple[int, str]:
    """Return of ``last5`` or ``last5/TREE`` how many checkpoints are to be averaged, and the tree; 0 for no such."""
    found = re.fullmatch(r"last([1-9]\d{0,3})(?:[./](.+))?", tree)
    return (int(found[1]), found[2] or "") if found else (0, tree)


def _of_a_run(shapes: Shapes, published: str, wanted: str) -> dict[Path, Tree]:
    """Return the parameters of a training state of ours and their mean; a tree without a state is all of it.

    Where the run publishes another tree, or the caller names one by its whole path, there is that too.
    """
    if "step" not in shapes:
        return {(): {name: name for name in shapes}}
    paths = dict.fromkeys(_path(text) for text in ("params", MEAN, published, wanted) if text)
    trees = {path: _below(shapes, "/".join((*path, ""))) for path in paths}
    found = {path: tree for path, tree in trees.items() if tree}
    return found or {(): {name: name for name in shapes}}


def _below(shapes: Shapes, start: str) -> Tree:
    return {name.removeprefix(start): name for name in shapes if name.startswith(start)}


def _known(shapes: Shapes) -> dict[Path, Tree]:
    """Return the trees in which names of a known family begin, by what stands before them."""
    counts: dict[Path, int] = {}
    for name in shapes:
        for start, rest in _splits(name):
            if _KNOWN.fullmatch(rest):
                path = _path(start)
                # A head and a norm are in models of any family.
                counts[path] = counts.get(path, 0) + (not rest.startswith(("head", "norm")))
    most = max(counts.values(), default=0)
    paths = [path for path, count in counts.items() if count and 2 * count >= most]
    trees: dict[Path, Tree] = {path: {} for path in paths}
    for name in shapes:
        starts = [(start, rest) for start, rest in _splits(name) if _path(start) in trees]
        if starts:
            start, rest = starts[-1]  # the innermost
            path = _path(start)
            inner = _path(name)[len(path) :]
            if not _is_state(inner[:1]):
                trees[path][rest] = name
    return trees


def _others(shapes: Shapes) -> dict[Path, Tree]:
    """Return the trees of a model that no table knows, by the words of what saves it; all names, where there are none.

    A module of the model may have any name, so that only what stands beside a state of training,
    or under "params" and the like, is looked at.
    """
    tops = {name.split("/")[0] for name in shapes}
    saves = any(top in _PARAMS or _is_state((top,)) for top in tops)
    marks = {top for top in tops if saves and (top in _PARAMS | _MODULES or _is_mean((top,)))}
    trees: dict[Path, Tree] = {}
    for name in shapes:
        top, _, rest = name.partition("/")
        if _is_state((top,)):
            trees.setdefault((top,), {})[name] = name
        elif top in marks and rest:
            trees.setdefault((top,), {})[rest] = name
        elif not marks:
            trees.setdefault((), {})[name] = name
    return trees


def _splits(name: str) -> list[tuple[str, str]]:
    """Return the ways to cut a name in two before one of its words: ('a.', 'b/c'), for one."""
    ends = [0, *(match.end() for match in re.finditer(r"[./]", name))]
    return [(name[:end], name[end:]) for end in ends if end < len(name)][:_DEPTH]


def _path(text: str) -> Path:
    return tuple(re.split(r"[./]", text.rstrip("./"))) if text else ()


def _is_state(path: Path) -> bool:
    if path[1:2] == ("target",):  # what an optimizer of Flax before 0.6 held: the parameters themselves
        path = path[2:]
    return any(_STATE.fullmatch(word.lower()) for word in path)


def _is_mean(path: Path) -> bool:
    return any(_MEANS.fullmatch(word.lower()) for word in path)


def _holds(path: Path, words: Path) -> bool:
    return any(path[i : i + len(words)] == words for i in range(len(path)))


def _form(tree: Tree, shapes: Shapes) -> dict[str, Shape]:
    return {name: tuple(shapes[theirs]) for name, theirs in tree.items()}


def _left(shapes: Shapes, models: Mapping[Path, Tree], chosen: Path) -> list[str]:
    """Return the first words of what is in no tree, and no state of a training."""
    taken = {theirs for tree in models.values() for theirs in tree.values()}
    names = [name for name in shapes if name not in taken and not _is_state(_path(name))]
    found = dict.fromkeys(".".join(_path(name)[: len(chosen) + 1][:2]) for name in names)
    return [*list(found)[:5], *(["..."] if len(found) > 5 else [])]


def _words(path: Path) -> str:
    return repr(".".join(path)) if path else "the tree without a name"


def _kind(path: Path) -> str:
    return ", a running mean" if _is_mean(path) else ""


def _listed(paths: list[Path]) -> str:
    return " and ".join([*map(_words, paths[:6]), *(["others"] if len(paths) > 6 else [])])


def _short(paths: list[Path], chosen: Path | None) -> str:
    """Return what names the first of some trees."""
    path = paths[0]
    if not path:
        return RAW
    return next((word for word in path if chosen is None or word not in chosen), ".".join(path))

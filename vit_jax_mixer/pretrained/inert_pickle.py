"""Pickles read as data: a machine of our own, which looks nothing up and calls nothing of theirs.

A pickle is a program, and the usual way to run it imports what it names and calls it with what it
likes. Here `pickletools` only cuts the bytes into opcodes; what each of them does stands below. A
name in the pickle is a key of a table that the caller gives: it stands for a function of ours, or
for nothing. A name that is not in the table ends the reading, so there is nothing that a file
could reach. That is why this is no `pickle.Unpickler` with a narrower ``find_class``: that one
keeps the rest of its powers, and takes gigabytes for a memo index of four bytes.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

MAX_OPCODES = 1_000_000  # ten optimizers' worth for the largest published model
MAX_BYTES = 1 << 26  # of the pickle itself; the weights lie beside it
MAX_ARGUMENT = 1 << 22  # bytes of one text or number
MAX_NAME = 1000  # characters of a module and a name in it


class BadPickleError(Exception):
    """The pickle is broken, or wants what data does not need; the message is the end of a sentence."""


class Opaque:
    """What the file says about itself and weights do not need, as the arguments of a training run.

    There is one such object; whatever is put into it is dropped.
    """


OPAQUE = Opaque()


@dataclasses.dataclass(frozen=True)
class StandIn:
    """What a name of the pickle stands for: a function of ours that gets the arguments, or a type's name."""

    name: str
    make: Callable[..., Any] = lambda *args: OPAQUE


def load(
    file: BinaryIO,
    known: Mapping[str, StandIn],
    persistent: Callable[[Any], Any] | None = None,
    most: int = MAX_OPCODES,
) -> Any:
    """Return what one pickle describes, and leave the file behind its end.

    Args:
        file: open at the pickle.
        known: stand-ins by "module name", as in "collections OrderedDict".
        persistent: makes an object of a persistent id; none may occur if it is None.
        most: steps that it may have.

    Returns:
        Numbers, text, bytes, None, tuples, lists, dicts (only what has text for a key), what the
        stand-ins return, and `OPAQUE` for everything else.

    Raises:
        BadPickleError: the pickle is broken, too long, or names what is not known.
    """
    machine = _Machine(known, persistent)
    try:
        for name, argument in _opcodes(_Bounded(file), most):
            if name == "STOP":
                return machine.stack.pop()
            machine.step(name, argument)
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, EOFError, RecursionError) as error:
        raise BadPickleError(f"holds a broken pickle ({type(error).__name__} on reading it)") from error
    raise BadPickleError("holds a pickle without an end")


def _opcodes(file: Any, most: int) -> Iterator[tuple[str, Any]]:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count >= most:
            raise BadPickleError(f"holds a pickle of more than {most:,} steps")
        yield opcode.name, argument


class _Bounded:
    """A file of which a length in the pickle cannot ask for more than is sane."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = MAX_BYTES

    def read(self, size: int) -> bytes:
        return self._take(size, self._file.read)

    def readline(self) -> bytes:
        return self._take(MAX_ARGUMENT, self._file.readline)

    def _take(self, size: int, read: Callable[[int], bytes]) -> bytes:
        if size > MAX_ARGUMENT or self._left <= 0:
            raise BadPickleError(f"holds a pickle of more than {MAX_BYTES:,} bytes, or a text in it of {size:,}")
        data = read(size)
        self._left -= len(data)
        return data


# Opcodes that push the argument that `pickletools` has read.
# fmt: off
_VALUES = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
})
# fmt: on
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: OPAQUE,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The stack and the memo of one pickle, and a method for each opcode that does more than push."""

    def __init__(self, known: Mapping[str, StandIn], persistent: Callable[[Any], Any] | None) -> None:
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}
        self._copied = 0  # objects that calls were given
        self._known = known
        self._persistent = persistent

    def step(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            self.stack.append(tuple(self._pop(_TUPLES[name])))
        elif name in ("BINGET", "GET", "LONG_BINGET"):
            self.stack.append(self._memo[argument])
        elif name in ("BINPUT", "PUT", "LONG_BINPUT") and 0 <= argument < 1 << 32:  # larger ones can be made to collide
            self._memo[argument] = self.stack[-1]
        else:
            method = getattr(type(self), f"_op_{name.lower()}", None)  # of the names that pickletools gives
            if method is None:
                raise BadPickleError(f"holds a pickle with the step {name}, which weights do not need")
            method(self, argument)

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError(count)
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _to_mark(self) -> list[Any]:
        taken, self.stack = self.stack, self._below.pop()
        return taken

    # --- The stack ---

    def _op_proto(self, argument: Any) -> None:
        pass

    _op_frame = _op_proto

    def _op_mark(self, argument: Any) -> None:
        self._below.append(self.stack)
        self.stack = []

    def _op_pop(self, argument: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._to_mark()

    def _op_pop_mark(self, argument: Any) -> None:
        self._to_mark()

    def _op_dup(self, argument: Any) -> None:
        self.stack.append(self.stack[-1])

    def _op_memoize(self, argument: Any) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    # --- Containers ---

    def _op_tuple(self, argument: Any) -> None:
        items = self._to_mark()
        self.stack.append(tuple(items))

    def _op_list(self, argument: Any) -> None:
        items = self._to_mark()
        self.stack.append(items)

    def _op_dict(self, argument: Any) -> None:
        items = self._to_mark()
        self.stack.append({})
        self._set(items)

    def _op_setitem(self, argument: Any) -> None:
        self._set(self._pop(2))

    def _op_setitems(self, argument: Any) -> None:
        self._set(self._to_mark())

    def _set(self, items: list[Any]) -> None:
        """Put keys and values into the dict on top; only text is ever a parameter's name."""
        if self.stack[-1] is OPAQUE:
            return
        if not isinstance(self.stack[-1], dict):
            raise BadPickleError(f"puts items into a {type(self.stack[-1]).__name__}")
        # Other keys would have to be hashed, which nested tuples and chosen numbers make slow.
        self.stack[-1].update(
            (key, value) for key, value in zip(items[::2], items[1::2], strict=True) if isinstance(key, str)
        )

    def _op_append(self, argument: Any) -> None:
        self._extend(self._pop(1))

    def _op_appends(self, argument: Any) -> None:
        self._extend(self._to_mark())

    def _extend(self, items: list[Any]) -> None:
        if self.stack[-1] is OPAQUE:
            return
        if not isinstance(self.stack[-1], list):
            raise BadPickleError(f"appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    _op_additems = _op_appends

    def _op_frozenset(self, argument: Any) -> None:
        self._to_mark()
        self.stack.append(OPAQUE)

    # --- Names, and what is made of them ---

    def _find(self, module: Any, name: Any) -> StandIn:
        if not isinstance(module, str) or not isinstance(name, str):
            raise BadPickleError("holds a pickle that computes the name of a function")
        if len(module) + len(name) > MAX_NAME:  # joining it would copy it each time
            raise BadPickleError(f"asks for {module[:40]!r}..., which is no tensor; nothing of it was run")
        if f"{module} {name}" not in self._known:
            full = f"{module}.{name}"
            raise BadPickleError(f"asks for {full[:80]!r}, which is no tensor; nothing of it was run")
        return self._known[f"{module} {name}"]

    def _op_global(self, argument: str) -> None:
        self.stack.append(self._find(*argument.split(" ", 1)))

    def _op_stack_global(self, argument: Any) -> None:
        self.stack.append(self._find(*self._pop(2)))

    def _op_reduce(self, argument: Any) -> None:
        function, arguments = self._pop(2)
        self._make(function, arguments)

    _op_newobj = _op_reduce

    def _op_newobj_ex(self, argument: Any) -> None:
        cls, arguments, keywords = self._pop(3)
        if keywords:
            raise BadPickleError("holds a pickle that makes an object with keywords, which tensors do not need")
        self._make(cls, arguments)

    def _op_inst(self, argument: str) -> None:
        arguments = self._to_mark()
        self._make(self._find(*argument.split(" ", 1)), tuple(arguments))

    def _op_obj(self, argument: Any) -> None:
        function, *arguments = self._to_mark()
        self._make(function, tuple(arguments))

    def _make(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, StandIn) or not isinstance(arguments, tuple):
            raise BadPickleError(f"calls a {type(function).__name__}, which is no function")
        # A call may copy what it is given, and the same may be given to each.
        long = [one for one in (arguments, *arguments) if isinstance(one, (tuple, list)) and len(one) > 16]
        self._copied += sum(map(len, long))
        if self._copied > MAX_OPCODES:
            raise BadPickleError(f"holds a pickle whose calls are given more than {MAX_OPCODES:,} objects")
        self.stack.append(function.make(*arguments))

    def _op_build(self, argument: Any) -> None:
        """Give an object its state; a dict's may hold PyTorch's versions of modules, and is dropped."""
        state = self.stack.pop()
        target = self.stack[-1]
        if target is OPAQUE or (isinstance(target, dict) and isinstance(state, dict) and _is_metadata(state)):
            return
        raise BadPickleError(f"sets the state of a {type(target).__name__}, which tensors do not need")

    def _op_binpersid(self, argument: Any) -> None:
        if self._persistent is None:
            raise BadPickleError("refers to a storage where there is none")
        self.stack.append(self._persistent(self.stack.pop()))


def _is_metadata(state: dict[str, Any]) -> bool:
    return len(state) <= 1 and set(state) <= {"_metadata"}

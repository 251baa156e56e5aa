"""Translate lines with an export, without vit_jax_mixer: `python run_translation.py lines.txt`.

It needs sentencepiece, and onnxruntime for encoder.onnx and step.onnx, or else jax and flatbuffers for the same as
.stablehlo. '-' is standard input. A line is printed for each line. In Python: `translate = load(folder)`, then
`translate("a line")`.

The search is the model's own, of model.json: the likeliest token each time or, with beams, fairseq's beam search.
"""

import base64
import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
PAD, BOS, EOS = 0, 2, 3
Arrays = dict[str, np.ndarray]


def load(folder: str | Path = HERE) -> Callable[[str], str]:
    """Return what translates a line with the model in the folder."""
    from sentencepiece import SentencePieceProcessor

    about = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
    pieces: Any = SentencePieceProcessor(model_proto=base64.b64decode(about["vocabulary"]))
    encoder, step = programs(Path(folder))
    search = Search(encoder, step, about["model"]["max_length"], about["beam_size"], about["penalty"])

    def translate(line: str) -> str:
        tokens = pieces.encode(line)
        if len(tokens) + 1 > search.most:
            raise ValueError(f"a line has {len(tokens) + 1} tokens, its end counted, more than {search.most}; cut it.")
        return pieces.decode(search(tokens)).strip() if tokens else ""

    return translate


def programs(folder: Path) -> tuple[Callable[[Arrays], Any], Callable[[Arrays], Any]]:
    """Return encoder and step, as ONNX if they are there and onnxruntime is, or else as StableHLO."""
    if (folder / "encoder.onnx").is_file():
        try:
            return _onnx(folder / "encoder.onnx"), _onnx(folder / "step.onnx")
        except ImportError:
            if not (folder / "encoder.stablehlo").is_file():
                raise
    load_program = importlib.import_module("run_stablehlo").load  # which is beside this file
    encoder = load_program(folder, "encoder")
    return lambda given: encoder(given["inputs"]), load_program(folder, "step")


def _onnx(path: Path) -> Callable[[Arrays], Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    takes = {one.name for one in session.get_inputs()}
    return lambda given: dict(
        zip(names, session.run(None, {n: x for n, x in given.items() if n in takes}), strict=True)
    )


class Search:
    """From the tokens of a line to those of its translation."""

    def __init__(
        self,
        encoder: Callable[[Arrays], Any],
        step: Callable[[Arrays], Any],
        most: int,
        beams: int,
        penalty: str,
    ) -> None:
        """Take both programs, the most positions, the beams, and what scores are divided by, as 'length(0.6)'."""
        self._encoder, self._step, self.most, self._beams = encoder, step, most, beams
        # Lines are translated as if with others of about their length, whose doubled length is the translation's most.
        self._lengths = sorted({-(-most * part // (4 << halved)) for halved in range(4) for part in (4, 3)})
        kind, *given = re.findall(r"[\w.+-]+", penalty)
        power = float(given[-1]) if given else {"length": 1.0, "gnmt": 0.6}[kind]
        self._penalty: Callable[[int], float] = lambda n: (n if kind == "length" else (5 + n) / 6) ** power

    def __call__(self, tokens: list[int]) -> list[int]:
        """Return the translation, without EOS."""
        length = min(2 * next(one for one in self._lengths if one > len(tokens)), self.most)
        row = np.full((1, self.most), PAD, np.int32)
        row[0, : len(tokens) + 1] = [*tokens, EOS]
        cache = {name: np.asarray(value) for name, value in self._encoder({"inputs": row}).items()}
        best = self._greedy(row, cache, length)
        if self._beams > 1:  # which may lose the greedy one
            best = max(*self._beam(row, cache, length), best, key=lambda found: found[0])
        return best[1][:-1]

    def _next(self, row: np.ndarray, cache: Arrays, tokens: Any, position: int, length: int) -> tuple[Any, Arrays]:
        """Return log-probabilities f32[b, V] of the next tokens, and the new cache."""
        last = np.asarray(tokens, np.int32)
        given = {"inputs": np.repeat(row, len(last), 0), "tokens": last, "position": np.array(position, np.int32)}
        found = {n.replace("next", "state"): np.asarray(x) for n, x in self._step({**given, **cache}).items()}
        logits = found.pop("logits")
        logits = logits - logits.max(-1, keepdims=True)
        told = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        told[:, [PAD, BOS] if position else [PAD, BOS, EOS]] = -np.inf
        if position == length - 1:
            told[:, np.arange(told.shape[1]) != EOS] = -np.inf
        return told, cache | found

    def _greedy(self, row: np.ndarray, cache: Arrays, length: int) -> tuple[float, list[int]]:
        tokens, total = [BOS], 0.0
        while tokens[-1] != EOS:
            (told,), cache = self._next(row, cache, tokens[-1:], len(tokens) - 1, length)
            tokens.append(int(told.argmax()))
            total += float(told.max())
        return total / self._penalty(len(tokens) - 1), tokens[1:]

    def _beam(self, row: np.ndarray, cache: Arrays, length: int) -> list[tuple[float, list[int]]]:
        beams, finished = self._beams, []
        cache = {name: np.repeat(value, beams, 0) for name, value in cache.items()}
        sums, lines = np.array([0.0] + [-np.inf] * (beams - 1), np.float32), [[BOS]] * beams
        for position in range(length):
            told, cache = self._next(row, cache, [line[-1] for line in lines], position, length)
            flat = (sums[:, None] + told).reshape(-1)
            best = np.argsort(-flat, kind="stable")[: 2 * beams]
            pairs = [(float(flat[i]), *divmod(int(i), told.shape[1])) for i in best]
            for total, parent, token in pairs[:beams]:
                if token == EOS and total > -np.inf and len(finished) < beams:
                    finished.append((total / self._penalty(position + 1), [*lines[parent][1:], EOS]))
            if len(finished) == beams:
                break
            on = sorted(pairs, key=lambda pair: pair[2] == EOS and pair[0] > -np.inf)[:beams]
            lines = [[*lines[parent], token] for _, parent, token in on]
            sums = np.array([total for total, *_ in on], np.float32)
            rows = [parent for _, parent, _ in on]
            cache = {name: value[rows] if name.startswith("state") else value for name, value in cache.items()}
        return finished


def main(arguments: list[str]) -> None:
    """Print the translation of each line."""
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        sys.exit(str(__doc__))
    data = sys.stdin.buffer.read() if arguments[0] == "-" else Path(arguments[0]).read_bytes()
    translate = load()
    for line in data.decode("utf-8-sig").removesuffix("\n").split("\n") if data else ():
        print(translate(line.removesuffix("\r")), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

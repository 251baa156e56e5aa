"""From lines to translations. What needs SentencePiece and sacrebleu has the extra 'text'."""

import gzip
import json
import re

import numpy as np
import pytest

from vit_jax_mixer.data.sources import Source, open_source
from vit_jax_mixer.data.sources.text import in_order, in_words
from vit_jax_mixer.errors import UserError

PAIRS = [(" ".join(str(n)), in_words(n)) for n in range(100, 400)]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{one}\t{two}\n" for one, two in PAIRS))
    return path


def told(source):
    return sorted((e["source"], e["target"]) for e in map(source.examples.__getitem__, range(len(source.examples))))


def test_files_with_tabs_parallel_files_and_folders_hold_the_same_pairs(pairs, tmp_path):
    (tmp_path / "sets").mkdir()
    for split in ("train", "test"):
        (tmp_path / f"sets/{split}.tsv.gz").write_bytes(gzip.compress(pairs.read_bytes()))
        for side, name in enumerate(("en", "es.gz")):
            data = "\r\n".join(pair[side] for pair in PAIRS).encode()
            (tmp_path / f"sets/{split}.{name}").write_bytes(gzip.compress(data) if side else data)
    sets, ends = tmp_path / "sets", ("train.en", "train.es.gz")
    names = [f"text:{pairs}", f"text:{sets},en,es", f"text:{sets}", "text:" + ",".join(str(sets / one) for one in ends)]
    for name, split in zip(names, ("all", "test", "train", "all"), strict=True):
        assert told(open_source(name, split)) == sorted(PAIRS)
    source = open_source(f"text:{pairs}", "all")
    line = int(source.where(5).removeprefix(f"{pairs}, line "))
    assert source.examples[5]["source"] == PAIRS[line - 1][0]


def test_bad_files_are_one_sentence(pairs, tmp_path):
    (tmp_path / "short").write_text("one\n")
    with pytest.raises(UserError, match=r"has 300 lines and .*short 1; line by line"):
        open_source(f"text:{pairs},{tmp_path / 'short'}", "all")
    (tmp_path / "cut.tsv.gz").write_bytes(gzip.compress(b"a\tb\n")[:-5])
    with pytest.raises(UserError, match=r"cut.tsv.gz is damaged"):
        open_source(f"text:{tmp_path / 'cut.tsv.gz'}", "all")
    (tmp_path / "bomb.tsv.gz").write_bytes(gzip.compress(bytes(100 << 20)))
    with pytest.raises(UserError, match=r"bomb.tsv.gz unpacks to more than [\d,]+ bytes"):
        open_source(f"text:{tmp_path / 'bomb.tsv.gz'}", "all")
    with pytest.raises(UserError, match=r"no pairs of sentences; expected two files, as train.xx"):
        open_source(f"text:{tmp_path},xx,yy", "train")


def test_lines_to_translate_keep_their_order(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone\n\ntwo")
    (tmp_path / "b.txt").write_text("three\n")
    source = in_order([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    assert [source.examples[i]["source"] for i in range(4)] == ["one", "", "two", "three"]
    assert [source.where(i).rpartition("/")[2] for i in (2, 3)] == ["a.txt, line 3", "b.txt, line 1"]


def test_names_of_numbers():
    assert in_words(0) == "zero"
    assert in_words(90_416) == "ninety thousand four hundred sixteen"
    train, test = (told(open_source("numbers:200", split)) for split in ("train", "test"))
    assert (len(train), len(test)) == (200, 20)
    assert not {*train} & {*test}


# --- With SentencePiece ---


@pytest.fixture(scope="module")
def pieces():
    pytest.importorskip("sentencepiece")
    from vit_jax_mixer.data.text import vocabulary

    return vocabulary.create("unigram(64)", [side for pair in PAIRS for side in pair], "config.data.vocabulary")


def test_a_vocabulary_is_the_same_each_time_and_reads_back(pieces, tmp_path):
    from vit_jax_mixer.data.text.vocabulary import Vocabulary, create

    again = create("unigram(64)", [side for pair in PAIRS for side in pair], "x")
    assert again.model == pieces.model
    (tmp_path / "v.model").write_bytes(pieces.model)
    for one in (Vocabulary.of_text(pieces.text, "x"), create(str(tmp_path / "v.model"), [], "x")):
        assert one.digest == pieces.digest
        assert one.decode([2, *one.encode(["two hundred one"])[0], 3, 9, 0]) == "two hundred one"
    (tmp_path / "no.model").write_bytes(b"no")
    with pytest.raises(UserError, match=r"no.model is no SentencePiece model"):
        create(str(tmp_path / "no.model"), [], "x")
    with pytest.raises(UserError, match=r"no vocabulary can be made by bpe\(8\)"):
        create("bpe(8)", ["abcdefghijkl"], "x")


BAD = {
    b"no tab here": "line 1: it has no tab",
    b"\tone": "line 1: its source is empty",
    b"1\t  ": "line 1: its target is empty",
    b"1 \xff\tone": "line 1: it is no UTF-8 (byte 3 of the line)",
    b"7 " * 10_000 + b"\tone": "line 1: its source has 10,001 tokens",
    "漢字\tone".encode(): "line 1: its source has only characters that the vocabulary lacks",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_pair_is_one_sentence_with_its_line_or_passed_over_and_counted(line, pieces, tmp_path):
    from vit_jax_mixer.data.text import encoded

    path = tmp_path / "bad.tsv"
    path.write_bytes(line + b"\n1 0 1\tone hundred one\n")
    source = open_source(f"text:{path}", "all")
    with pytest.raises(UserError, match=re.escape(f"{path}, {BAD[line]}")):
        encoded.encode(source, "it", pieces, 32, skip_bad=False)
    kept, sides = encoded.encode(source, "it", pieces, 32, skip_bad=True)
    assert len(kept.examples) == 1
    assert kept.where(0) == f"{path}, line 2"
    assert "1 of 2 pairs are passed over" in kept.notes[0]
    batch = encoded.Pairs(sides, (8,), 2).gather(np.array([0, -1]), 8)
    assert batch["inputs"][1].tolist() == [3] + [0] * 7
    assert not batch["targets"][1].any()
    assert pieces.decode(batch["targets"][0].tolist()) == "one hundred one"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on numbers, with its workdir."""
    pytest.importorskip("sentencepiece")
    pytest.importorskip("sacrebleu")
    from configs import translate
    from vit_jax_mixer.train import train_and_evaluate

    config = translate.get_config()
    config.data.update(source="numbers:300", eval="test", shapes=2)
    config.model.update(num_encoder_layers=1, num_decoder_layers=1, hidden_dim=16, mlp_dim=16)
    config.steps = config.eval_every = config.checkpoint.every = 4
    config.optim.warmup_steps, config.batch_size, config.eval_batch_size = 1, 256, 16
    config.task.beam_size = 2
    workdir = tmp_path_factory.mktemp("translation")
    train_and_evaluate(config, workdir)
    return workdir


@pytest.mark.slow
def test_a_run_tells_bleu_and_writes_translations(run):
    *_, evaluation = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert evaluation["test/perplexity"] == pytest.approx(np.exp(evaluation["test/nll"]))
    assert {"test/bleu", "test/chrf", "test/exact_match", "test/token_accuracy"} <= evaluation.keys()
    text = (run / "pictures/translations_test_4.txt").read_text()
    assert text.startswith("BLEU nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert text.count("source ") == 8


@pytest.mark.slow
def test_predict_answers_each_line_and_evaluate_scores(run, tmp_path, capsys):
    from vit_jax_mixer import evaluation, predictions
    from vit_jax_mixer.trained import open_model

    (tmp_path / "lines.txt").write_text("1 2\n\n9 0 3\n" + "1 " * 40 + "\n")
    trained, bad = open_model(str(run)), []
    source = trained.about.open([str(tmp_path / "lines.txt")])
    answers = list(predictions.predict(trained, source, top=1, batch_size=4, on_bad=bad.append))
    assert [answer.name.rpartition(" ")[2] for answer in answers] == ["1", "2", "3", "4"]
    assert answers[1].text(0) == answers[3].text(0) == ""  # an answer a line, so that both files stay side by side
    assert answers[3].record()["score"] is None
    assert "line 4: its source has 41 tokens" in bad[0]
    pairs = trained.about.open_labelled("numbers:300", "test", skip_bad=True)
    found = evaluation.evaluate(trained, pairs, "numbers:300", batch_size=16)
    assert len(found.rows) == 30
    assert found.write(tmp_path, trained.about.given()) == ["metrics.json", "translations.tsv"]
    assert json.loads((tmp_path / "metrics.json").read_text())["search"] == "beam(2, length(0.6))"
    assert trained.about.with_ops("beam(1)").beam_size == 1


@pytest.mark.slow
def test_what_a_line_becomes_does_not_depend_on_the_lines_beside_it(run, tmp_path):
    from vit_jax_mixer import predictions
    from vit_jax_mixer.trained import open_model

    lines = ["1 " * count for count in (1, 3, 25, 14, 2, 9, 30, 25, 1)]
    trained = open_model(str(run))

    def answers(lines):
        (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
        source = trained.about.open([str(tmp_path / "lines.txt")])
        return list(predictions.predict(trained, source, top=1, batch_size=4, on_bad=pytest.fail))

    together = answers(lines)
    assert [answer.translation for answer in together] == [answers([line])[0].translation for line in lines]
    assert together[2].score == together[7].score
    assert len({answer.translation for answer in together}) > 1


def test_lines_come_in_few_lengths_each_once_and_bad_ones_are_told(pieces):
    from vit_jax_mixer.data.order import IS_EXAMPLE, Share
    from vit_jax_mixer.predictors.translation import lines

    rng = np.random.default_rng(0)
    texts = ["" if i % 50 == 7 else "1 " * int(rng.integers(1, 34)) for i in range(2500)]
    source = Source([{"source": text} for text in texts], (), lambda i: f"line {i}")
    bad = {}
    batches = lines.Lines(source, pieces, 32, bad.setdefault)
    assert bad
    assert all("more than max_length (32)" in reason for reason in bad.values())
    assert lines.ladder(32) == (3, 4, 6, 8, 12, 16, 24, 32)
    found = list(batches.evaluation(64, Share(0, 1)))
    shapes = {batch["token"].shape for batch in found}
    assert shapes == {like["token"].shape for like in batches.each_like(64)}
    assert len(shapes) <= 8
    seen = np.concatenate([batch["place"][batch[IS_EXAMPLE]] for batch in found])
    good = [i for i in range(2500) if i not in bad]
    assert sorted(seen.tolist()) == good
    assert sorted(seen[:2048].tolist()) == good[:2048]  # so that the first answers come before the last are made
    assert all((batch["token"] == 3).sum() == 64 for batch in found)  # each ends once, empty ones too
    halves = zip(*(batches.evaluation(64, Share(i, 2)) for i in range(2)), strict=True)
    for whole, parts in zip(found, halves, strict=True):
        np.testing.assert_array_equal(whole["token"], np.concatenate([part["token"] for part in parts]))


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_vocabulary_alone(run):
    from vit_jax_mixer import predictors

    about = predictors.read(run)
    with pytest.raises(UserError, match=r"its vocabulary has .* it is another's"):
        type(about).of_json({**vars_of(about), "model": {**about.model, "vocab_size": 7}}, "model.json")


def vars_of(about):
    return {name: getattr(about, name) for name in ("model", "vocabulary", "source", "beam_size", "penalty")}

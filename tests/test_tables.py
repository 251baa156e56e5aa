"""Tables as they lie on disks, good and hostile, and how they become numbers."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers import DATA
from vit_jax_mixer.data.sources import open_source, open_splits
from vit_jax_mixer.data.sources.table import table_of
from vit_jax_mixer.data.tables import describe, encoding, reading, scaling, target
from vit_jax_mixer.data.tables.reading import Table
from vit_jax_mixer.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(content, name="rows.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def made(**columns):
    count = len(next(iter(columns.values())))
    return Table(pa.table(columns), np.arange(count) + 2, "rows.csv")


# --- Reading ---


@pytest.mark.parametrize(
    "text",
    [
        "a,b,label\n1,x,0\n2.5,y,1\n",
        "\ufeffa,b,label\r\n1,x,0\r\n2.5,y,1\r\n",
        '"a";"b";"label"\n"1";"x";"0"\n2.5;y;1',
        "a\tb\tlabel\n1\tx\t0\n2.5\ty\t1\n",
        "\n a | b | label\n1| x |0\n\n2.5|y |1\n",
    ],
)
def test_a_csv_file_is_the_same_however_it_is_written(write, text):
    table = reading.read(write(text))
    assert table.names == ["a", "b", "label"]
    np.testing.assert_array_equal(table.numbers("a")[0], [1, 2.5])
    assert table.words("b")[1] == ("x", "y")


def test_another_delimiter_is_named_and_cells_may_hold_it_and_new_lines(write):
    path = write('a:b\n1:"x:\ny"\n')
    table = table_of(open_source(f"table:{path},delimiter=:", "all"), "it")
    assert table.words("b")[1] == ("x:\ny",)


def test_a_row_has_the_line_where_it_stands(write):
    table = reading.read(write('\na,b\n1,2\n\n3,"x\ny"\n4,5\n'))
    assert [table.where(row).rpartition("line ")[2] for row in range(3)] == ["3", "6", "7"]


def test_parquet_holds_the_same(tmp_path):
    path = tmp_path / "rows.parquet"
    columns = {"a": [1.0, None, 2.5], "b": pa.array(["x", "y", None]).dictionary_encode(), "c": [True, False, None]}
    pq.write_table(pa.table({**columns, "d": [[1], [2], [3]]}), path)
    table = reading.read(path)
    np.testing.assert_array_equal(table.numbers("a")[0], [1, np.nan, 2.5])
    assert table.words("b")[0].tolist() == [0, 1, -1]
    assert table.words("c")[1] == ("true", "false")
    assert "left out, since they are neither numbers nor text: d (list" in table.notes[0]
    assert table.where(1).endswith("rows.parquet, row 1")


def test_a_whole_number_is_one_word_however_it_is_written():
    assert made(a=["1", "1.0", " 1 ", "2", "nan", ""]).words("a")[1] == ("1", "2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; give a table with a line of names"),
        (b"a,b\n", "has no row below its names"),
        (b"a,b\n1,2\n3,4,5\n", "line 3, has 3 cells, the line of names 2; mend the line"),
        (b"a,b\n1,2\n\n3\n", "line 4, has 1 cells, the line of names 2"),
        (b"a,b\n1,x\n2,caf\xe9\n", "line 3, column b: byte 0xe9 is not UTF-8"),
        (b"caf\xe9,b\n1,x\n", "line 1, is not text in UTF-8"),
        (b"a,b", "has no row below its names"),
        (b"x" * 10_000_000, "has a name of 10,000,000 characters"),
        ("a,b\n1,2\n".encode("utf-16"), "line 1, is not UTF-8, but UTF-16"),
        (b"a,b\n1,x\n2,\0\n", "line 3, is not UTF-8, but UTF-16 or no text"),
        (b"a,a\n1,2\n", "has the column 'a' twice"),
        (b"1,2\n3,4\n", "line 1, has numbers alone"),
        (b"0,0\n3,4\n", "line 1, has numbers alone"),
        (b'a,b\n1,"x\n2,y\n3,z\n', "column b: a quote is not closed"),
        (b'a,b,c\n1,2,3\n1,"' + b"x" * 10_000_000 + b"\n2,y,3\n", "line 3, column b: a quote is not closed"),
        (b",".join(b"c%d" % i for i in range(100_000)) + b"\n" + b"1," * 99_999 + b"1\n", "has 100,000 columns, more"),
    ],
)
def test_a_hostile_file_is_one_sentence_with_its_place(write, content, message):
    path = write(content)
    with pytest.raises(UserError, match=message) as error:
        reading.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_line_of_ten_megabytes_is_a_row(write):
    table = reading.read(write(b"a,b\n1," + b"x" * 10_000_000 + b"\n2,y\n"))
    assert len(table) == 2
    assert len(table.cell(0, "b")) < 80


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("table:{}/no.csv", "cannot read"),
        ("table:{}/rows.xlsx", "is no table that is read"),
        ("table:{}", "has no table; a file of it must end in"),
        ("table:{}/rows.csv,delimiter=ab", "it must be one character"),
        ("table:{}/rows.csv,split=prat", "has no column 'prat' for its splits; did you mean 'part'"),
        ("table:{}/rows.csv,split=a", "rows without a split"),
        ("sklearn:irises", "'irises' is not known; did you mean 'iris'"),
    ],
)
def test_a_source_that_is_none_is_one_sentence(tmp_path, name, message):
    if "rows" in name:
        (tmp_path / "rows.csv").write_text("a,part\n1,x\n,y\n")
    with pytest.raises(UserError, match=message):
        open_source(name.format(tmp_path), "all")


def test_splits_are_parts_files_or_the_words_of_a_column(tmp_path):
    rows = "".join(f"{i},{'tests' if i % 4 == 0 else 'train'}\n" for i in range(40))
    (tmp_path / "train.csv").write_text(f"a,part\n{rows}")
    (tmp_path / "test.csv").write_text("a,part\n100,x\n")
    by_column = open_splits(f"table:{tmp_path}/train.csv,split=part")
    assert {split: len(opened().examples) for split, opened in by_column.items()} == {"tests": 10, "train": 30}
    assert set(open_splits(f"table:{tmp_path}")) == {"test", "train"}
    name = f"table:{tmp_path}/train.csv"
    parts = [table_of(open_source(name, part), name).numbers("a")[0] for part in ("all[:75%]", "all[75%:]")]
    assert sorted(np.concatenate(parts)) == list(range(40))  # each row in one of them
    assert sorted(parts[0]) != list(range(30))  # a fair part


# --- Encoding ---


def test_scaling_is_fitted_to_training_rows_alone_and_comes_back_from_json():
    train = made(a=[0.0, 1.0, 2.0, 3.0] * 5, b=["x", "y", "x", "x"] * 5, label=[0, 1] * 10)
    for spec in ("standard", "quantile", "piecewise(bins=4)", "original"):
        found, _ = encoding.fit(train, ["label"], spec)
        again = encoding.Encoding.of_json(json.loads(json.dumps(found, default=vars)), "model.json")
        other = made(a=[10.0, -5.0], b=["y", "x"])
        np.testing.assert_array_equal(again(other)[0], found(other)[0])
    found, _ = encoding.fit(train, ["label"], "standard")
    np.testing.assert_allclose(found(other)[0][:, 0], (np.array([10, -5]) - 1.5) / np.std([0, 1, 2, 3]), rtol=1e-6)


def test_quantiles_become_normal_and_do_not_go_on_beyond_training():
    numbers = np.random.default_rng(0).exponential(size=5_000)
    x, y = scaling.quantile().fit(numbers)
    found = scaling.apply(x, y, numbers, False)
    assert abs(found.mean()) < 0.02
    assert abs(found.std() - 1) < 0.03
    assert scaling.apply(x, y, np.array([1e9]), False) == y[-1]


def test_piecewise_is_the_rank_and_goes_on():
    x, y = scaling.piecewise(4).fit(np.arange(101.0))
    np.testing.assert_allclose(scaling.apply(x, y, np.array([0.0, 50, 60, 100, 125]), True), [0, 0.5, 0.6, 1, 1.25])


@pytest.mark.parametrize("own", [False, True])
def test_the_original_scaling_is_that_of_the_document(own):
    reference = np.load(DATA / "tabular_preprocessing_reference.npz")
    whole = scaling.fit_original(reference["train_encoded"])
    np.testing.assert_allclose(whole[0], reference["train_scale"])
    np.testing.assert_allclose(whole[1:], [reference["mean"].item(), reference["std"].item()], rtol=1e-5)
    encoded = reference["val_encoded" if own else "train_encoded"]
    found = scaling.scale_as_original(encoded, *whole, own=own)  # its test rows are scaled by their own maximum
    np.testing.assert_allclose(found, reference["val_scaled" if own else "train_scaled"], rtol=2e-5, atol=1e-6)


def test_codes_are_in_the_order_of_the_rows_and_unseen_ones_are_counted():
    found, _ = encoding.fit(made(a=["tcp", "udp", "tcp", "arp"]), [], "original")
    assert found.columns[0].words == ("tcp", "udp", "arp")
    train = made(a=["x", "y"] * 10, b=[1.0, 2.0] * 10)
    found, _ = encoding.fit(train, [], "standard")
    rows, said = found(made(a=["x", "new", None], b=[1.0, None, float("inf")]))
    assert rows[:, 0].tolist() == [0, 2, 2]
    assert np.isfinite(rows).all()
    assert any("column a: 1 of 3 values are none of training's: 'new'" in line for line in said)
    assert any("column b: 1 of 3 values are no finite numbers, as 'inf' in line 4; they count as" in x for x in said)
    assert any("column b: 1 of 3 values are missing, in training none" in line for line in said)


def test_missing_numbers_are_told_by_a_feature_where_training_has_some():
    found, _ = encoding.fit(made(a=[1.0, None, 3.0, 5.0]), [], "standard")
    assert found.features == [("a", 0), ("a is missing", 0)]
    rows, said = found(made(a=[None, 3.0]))
    assert rows[:, 1].tolist() == [1, 0]
    assert rows[0, 0] == rows[1, 0]  # the median
    assert not said


def test_a_column_of_changing_type_is_of_numbers_if_most_are():
    mostly = made(a=[str(i / 2) for i in range(40)] + ["oops"], b=["1", "x"] * 20 + ["2"])
    found, _ = encoding.fit(mostly, [], "standard")
    assert found.features == [("a", 0), ("a is missing", 0), ("b", 3)]
    assert "column a: 1 of 41 values are no finite numbers, as 'oops' in line 42" in found(mostly)[1][0]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ([None] * 30, "nothing"),
        (["?", "NA", ""] * 10, "nothing"),
        ([3] * 30, "constant"),
        (["x"] * 30, "constant"),
        (list(range(7, 37)), "number of the row"),
        ([f"name {i}" for i in range(30)], "text"),
        (["x", "y", None] * 10, "category"),
        ([i / 7 for i in range(30)], "number"),
        ([1e308, -1e308, 1.0] * 10, "number"),
        (["inf", "-Infinity", "1e999", "0.5", "1", "2"] * 5, "number"),
        (["inf"] * 30, "nothing"),
    ],
)
def test_what_a_column_holds_and_what_tells_nothing_is_left_out(column, kind):
    table = made(a=column, b=[0.5, 1.5] * 15)
    assert encoding.kind(table, "a") == kind
    found, said = encoding.fit(table, [], "standard")
    assert np.isfinite(found(table)[0]).all()
    left = kind not in ("number", "category")
    assert ("a" not in [one.name for one in found.columns]) == left
    assert bool(said) == left


def test_a_word_of_ten_megabytes_is_told_by_its_begin():
    table = made(a=["x", "y"] * 20)
    _, said = encoding.fit(table, [], "standard")[0](made(a=["x", "z" * 10_000_000]))
    assert "none of training's: 'zzz" in said[0]
    assert len(said[0]) < 400


def test_many_columns_take_no_time_each_for_all_of_them():
    table = made(**{f"c{i}": [1, 2] for i in range(3)})
    assert table.names is table.names  # made once: each use costs as many columns as there are


def test_a_number_to_be_told_that_is_infinite_is_one_sentence_with_its_line():
    table = made(y=[*(i / 7 for i in range(30)), np.inf])
    with pytest.raises(UserError, match="line 32, column y: 'inf' is no finite number; mend it"):
        target.fit(table, "y", "auto")


def test_a_table_with_one_row_can_be_encoded():
    for spec in ("standard", "quantile", "piecewise", "original"):
        found, _ = encoding.fit(made(a=[2.0, 3.0], b=[1, 2]), [], spec)
        assert np.isfinite(found(made(a=[2.0], b=[7]))[0]).all()
    with pytest.raises(UserError, match=r"has no column to learn from: .*column a has one value alone"):
        encoding.fit(made(a=[2.0]), [], "standard")


def test_a_file_with_other_columns_is_one_sentence():
    found, _ = encoding.fit(made(age=[1.0, 2.0], b=[1.0, 5.0]), [], "standard")
    with pytest.raises(UserError, match=r"rows.csv lacks 1 of the 2 columns that the model reads: 'age'; did you"):
        found(made(ages=[1.0], b=[1.0]))


# --- The target ---


@pytest.mark.parametrize(
    ("column", "kind", "names"),
    [
        (["no", "yes", "no"], "two", ("no", "yes")),
        ([1, 0, 1], "two", ("0", "1")),
        (["10", "9", "8"], "classes", ("8", "9", "10")),
        ([0.5, 1.25, 7.0], "number", ()),
        (list(range(21)), "number", ()),
    ],
)
def test_what_the_target_is_goes_by_its_values(column, kind, names):
    found = target.fit(made(y=column), "y", "auto")
    assert (found.kind, found.class_names) == (kind, names)
    assert target.Target.of_json(json.loads(json.dumps(found, default=vars)), "model.json") == found


def test_rows_without_a_label_are_left_out_and_counted():
    table = made(a=[1, 2, 3], y=["no", None, "yes"])
    rows, labels, (said,) = target.fit(table, "y", "auto")(table)
    assert rows.tolist() == [0, 2]
    assert labels.tolist() == [0, 1]
    assert said == "rows.csv: 1 of 3 rows have no y, the first in line 3; left out"


@pytest.mark.parametrize(
    ("column", "predict", "message"),
    [
        ([None, None], "auto", "the target, has no value"),
        (["x", "x"], "auto", "all rows have the y 'x'; there is nothing to tell apart"),
        (["1.5", "inf"], "number", "line 3, column y: 'inf' is no finite number"),
        ([f"name {i}" for i in range(1_001)], "auto", "has 1,001 different values; name another"),
    ],
)
def test_a_target_that_cannot_be_learnt_is_one_sentence(column, predict, message):
    with pytest.raises(UserError, match=message):
        target.fit(made(y=column), "y", predict)


def test_a_label_that_training_had_not_is_one_sentence_with_its_line():
    found = target.fit(made(y=["no", "yes"]), "y", "auto")
    with pytest.raises(UserError, match=r"rows.csv, line 3, column y: 'maybe' is none of the model's classes, 'no'"):
        found(made(y=["no", "maybe"]))


def test_the_target_has_a_usual_name_or_is_the_last():
    assert target.choose(made(Label=[1], a=[1]), "") == "Label"
    assert target.choose(made(a=[1], b=[1]), "") == "b"
    with pytest.raises(UserError, match=r"config.data.target: rows.csv has no column 'lable'; did you mean 'label'"):
        target.choose(made(label=[1]), "lable")


def test_a_table_is_described_with_its_histograms(write, tmp_path):
    rows = "".join(f"{i % 7},{i / 3:.2f},{'' if i % 10 == 0 else 'ab'[i % 2]},{i % 2}\n" for i in range(40))
    table = reading.read(write(f"few,much,word,label\n{rows}"))
    few, much, word, label = list(describe.lines(table))[1:]
    assert few.split()[:4] == ["few", "number", "0.0", "%"]
    assert "0 to 13, median" in much
    assert word.split()[:5] == ["word", "category", "10.0", "%", "2"]
    assert "<- the target" in label
    describe.sheet(table, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000

"""glue_eval.py reads GLUE's files with all their traps, and downloads them: a test for every trap."""

import csv
import http.server
import io
import os
import threading
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

import glue_eval as glue

# The first lines of GLUE's official files with labels, and of those without; CoLA's first have none.
OFFICIAL = {
    "CoLA": ("", "index sentence"),
    "SST-2": ("sentence label", "index sentence"),
    "MRPC": ("Quality,#1 ID,#2 ID,#1 String,#2 String", "index,#1 ID,#2 ID,#1 String,#2 String"),
    "STS-B": (
        "index genre filename year old_index source1 source2 sentence1 sentence2 score",
        "index genre filename year old_index source1 source2 sentence1 sentence2",
    ),
    "QQP": ("id qid1 qid2 question1 question2 is_duplicate", "id question1 question2"),
    "MNLI": (
        "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
        "sentence2_parse sentence1 sentence2 label1 gold_label",
        "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
        "sentence2_parse sentence1 sentence2",
    ),
    "QNLI": ("index question sentence label", "index question sentence"),
    "RTE": ("index sentence1 sentence2 label", "index sentence1 sentence2"),
    "WNLI": ("index sentence1 sentence2 label", "index sentence1 sentence2"),
    "AX": ("", "index sentence1 sentence2"),
}
# Where the text and the label stand in the official files: (with labels), label, (without labels)
PLACES = {"CoLA": ((3,), 1, (1,)), "SST-2": ((0,), 1, (1,)), "MRPC": ((3, 4), 0, (3, 4))}
PLACES |= {"STS-B": ((7, 8), 9, (7, 8)), "QQP": ((3, 4), 5, (1, 2)), "MNLI": ((8, 9), -1, (8, 9))}
PLACES |= {name: ((1, 2), 3, (1, 2)) for name in ("QNLI", "RTE", "WNLI", "AX")}
# What `datasets` calls the columns of its exports; its labels are numbers in the order of these names.
EXPORTED = {"CoLA": "sentence", "SST-2": "sentence", "MRPC": "sentence1 sentence2"}
EXPORTED |= {"STS-B": "sentence1 sentence2", "QQP": "question1 question2", "MNLI": "premise hypothesis"}
EXPORTED |= {"QNLI": "question sentence", "RTE": "sentence1 sentence2", "WNLI": "sentence1 sentence2"}
NUMBERS = {"RTE": ["entailment", "not_entailment"], "QNLI": ["entailment", "not_entailment"]}
NUMBERS |= {"MNLI": ["entailment", "neutral", "contradiction"]}


def columns(name: str, unlabelled: bool) -> list:
    """The names of the columns of an official file."""
    head = OFFICIAL[name][unlabelled]
    return head.split(",") if "," in head else head.split()


def official_line(name: str, texts, label=None) -> str:
    """A row of an official file; label: as a file writes it, None in files without."""
    first, place, second = PLACES[name]
    cells = ["n/a"] * (len(columns(name, label is None)) or 4)
    for column, text in zip(second if label is None else first, texts, strict=True):
        cells[column] = text
    if label is not None:
        cells[place] = label
    return "\t".join(cells)


@pytest.fixture
def read(tmp_path):
    """read("RTE", "train", "line\\nline") -> (texts, labels) of a file with that text (or those bytes)."""

    def read_file(task, stem, text):
        path = tmp_path / glue.FOLDERS.get(task, task) / f"{stem}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return glue.read_split(path, glue.TASKS[task])

    return read_file


RTE = "index\tsentence1\tsentence2\tlabel\n"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
STS_B = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
PAGE = b"<!DOCTYPE html>\n<html><body>moved</body></html>\n"  # what some servers send in place of a file


def test_cola_has_no_header_so_its_first_line_counts(read):
    texts, labels = read("CoLA", "train", "gj04\t1\t\tFirst.\ngj04\t0\t*\tSecond.\n")
    assert texts == [("First.",), ("Second.",)]
    assert labels.tolist() == [1, 0]


def test_cola_test_has_a_header(read):
    texts, labels = read("CoLA", "test", "index\tsentence\n0\tFirst.\n1\tSecond.\n")
    assert texts == [("First.",), ("Second.",)]
    assert labels is None, "the test labels are hidden"


def test_mrpc_begins_with_a_byte_order_mark(read, tmp_path):
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    texts, labels = read("MRPC", "dev", header + "1\t12\t13\tOne .\tTwo .\n")
    assert (texts, labels.tolist()) == ([("One .", "Two .")], [1])
    read("CoLA", "dev", "\ufeffFirst.\t1\t\tFirst.\n")
    texts, _ = glue.read_split(tmp_path / "CoLA/dev.tsv", replace(glue.TASKS["CoLA"], text=("source",)))
    assert texts == [("First.",)], "where there is no header, it must not hide in the first row"


def test_a_missing_last_newline_loses_no_row(read):
    texts, _ = read("RTE", "dev", RTE + "0\tA\tB\tentailment\n1\tC\tD\tnot_entailment")
    assert len(texts) == 2


def test_unbalanced_quotes_are_text(read):
    texts, labels = read("RTE", "train", RTE + '0\t"Open\tB\tentailment\n1\tC\tclose"\tnot_entailment\n')
    assert texts == [('"Open', "B"), ("C", 'close"')], "quoting would glue the two rows into one"
    assert labels.tolist() == [0, 1]


def test_only_a_newline_ends_a_row(read):
    texts, labels = read("RTE", "train", RTE + "0\tA\u2028B\x0c\x85C\tD\rE\tentailment\r\n")
    assert texts == [("A\u2028B\x0c\x85C", "D\rE")], "sentences may hold what str.splitlines() splits at"
    assert labels.tolist() == [0], "and \\r\\n is a line's end too"


def test_sts_b_labels_are_numbers(read):
    row = "0\tg\tf\ty\to\ta\tb\tOne\tTwo\t"
    _, labels = read("STS-B", "dev", STS_B + row + "3.800\n" + row + "5\n")
    assert labels.tolist() == pytest.approx([3.8, 5.0])
    for wrong in ("nan", "5.1", "-1", "", "high"):
        with pytest.raises(ValueError, match="line 2: label .* is not a number from 0 to 5"):
            read("STS-B", "dev", STS_B + row + wrong + "\n")


def test_ragged_rows_are_skipped_in_one_line(read, capsys):
    texts, _ = read("QQP", "train", QQP + "1\t2\t3\tOne?\n1\t2\t3\tOne?\tTwo?\t1\n1\t2\t3\tA\tB\tC?\tD?\t0\n")
    assert texts == [("One?", "Two?")]
    (line,) = capsys.readouterr().out.splitlines()
    assert "QQP" in line and "2 rows with too many or too few columns" in line and "skipped" in line


def test_a_ragged_test_row_still_gets_an_answer(read):
    texts, _ = read("QQP", "test", "id\tquestion1\tquestion2\n0\tOnly one?\n1\tOne?\tTwo?\n")
    assert texts == [("Only one?", ""), ("One?", "Two?")], "a submission without row 0 is refused"


def test_an_unknown_label_names_file_and_line(read):
    wanted = r"RTE.train\.tsv, line 3: label 'maybe' is not entailment or not_entailment"
    with pytest.raises(ValueError, match=wanted):
        read("RTE", "train", RTE + "0\tA\tB\tentailment\n1\tA\tB\tmaybe\n")
    with pytest.raises(ValueError, match=r"CoLA.train\.tsv, line 2: label '2' is not 0 or 1"):
        read("CoLA", "train", "gj04\t1\t\tFirst.\ngj04\t2\t\tSecond.\n")  # its first line is a row


@pytest.mark.parametrize("text", [RTE, RTE + "\n\n", RTE + "0\tA\n"])
def test_a_file_without_rows_is_refused_by_name(read, text):
    with pytest.raises(ValueError, match=r"RTE.train\.tsv holds no rows"):
        read("RTE", "train", text)


@pytest.mark.parametrize(
    "task, stem", [("RTE", "train"), ("CoLA", "train"), ("SST-2", "test"), ("AX", "diagnostic")]
)
@pytest.mark.parametrize("content", [PAGE, b"", b'{"sentence": "One."}\n', b"Not Found"])
def test_what_is_no_file_of_glue_is_refused_with_its_beginning(read, task, stem, content):
    with pytest.raises(
        ValueError, match=rf"{stem}\.tsv: its first line must name the columns .*, but begins '.*'"
    ) as e:
        read(task, stem, content)
    assert content.decode().partition("\n")[0][:15] in str(e.value)


def test_a_file_in_latin_1_is_refused_by_name(read):
    """With errors="replace" its rows would be trained on as "Caf\\ufffd", and nobody would know."""
    with pytest.raises(ValueError, match=r"CoLA.train\.tsv is no table in UTF-8: "):
        read("CoLA", "train", b"gj04\t1\t\tTea.\ngj04\t1\t\tCaf\xe9.\n")


def test_mnli_labels_are_in_the_last_column_whatever_the_number_of_columns(read):
    row = "\t".join(["0", "n/a", "n/a", "slate", *["n/a"] * 4, "P", "H"])
    head = "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse"
    head = "\t".join([*head.split(), "sentence2_parse", "sentence1", "sentence2"])
    for more in (1, 5):  # one annotator in train, five in dev
        head_of_labels = "".join(f"\tlabel{i + 1}" for i in range(more)) + "\tgold_label\n"
        labels = "\tentailment" * more + "\tneutral\n"
        texts, labels = read("MNLI", "train", head + head_of_labels + row + labels)
        assert (texts, labels.tolist()) == ([("P", "H")], [1])


# ---- other layouts ----


def a_row_of(name):
    """(texts, label as the official files write it, its number)"""
    texts = tuple(f"{'One Two'.split()[i]} of {name}." for i in range(len(EXPORTED[name].split())))
    label = {"STS-B": "3.8"}.get(name) or (NUMBERS.get(name) or ["0", "1"])[-1]
    return texts, label, len(NUMBERS.get(name, [])) - 1 if name in NUMBERS else float(label)


@pytest.mark.parametrize("name", EXPORTED)
def test_official_files_and_those_of_datasets_are_the_same_rows(read, name):
    texts, label, number = a_row_of(name)
    head = "".join("\t".join(columns(name, False)) + "\n" if OFFICIAL[name][0] else "")
    wanted = ([texts], [pytest.approx(number)])
    got, labels = read(name, "dev", head + official_line(name, texts, label) + "\n")
    assert (got, labels.tolist()) == wanted

    # as Dataset.to_csv(path, sep="\t") writes it, and with the index of pandas in front
    shown = f"{number:g}" if name != "STS-B" else "3.799999952316284"
    exported = "\t".join([*EXPORTED[name].split(), "label", "idx"])
    for before in ("", "\t"):
        row = "\t".join([*texts, shown, "7"])
        lines = f"{before}{exported}\n{before and '0' + before}{row}\n"
        got, labels = read(name, "dev", lines)
        assert (got, labels.tolist()) == wanted, f"{name} with {before!r} in front"
        hidden = lines.replace(f"\t{shown}\t", "\t-1\t")
        assert read(name, "test_matched", hidden) == ([texts], None), "hidden labels are -1 there"


def test_a_number_is_a_class_only_where_datasets_counted(read):
    """0 is entailment there, contradiction in other collections: without the column idx nobody knows."""
    with pytest.raises(ValueError, match="label '0' is not entailment or not_entailment"):
        read("RTE", "dev", "sentence1\tsentence2\tlabel\nA\tB\t0\n")


def test_the_dev_set_of_datasets_is_called_validation(read, tmp_path):
    read("MNLI", "validation_matched", "premise\thypothesis\tlabel\tidx\nP\tH\t2\t0\n")
    splits, notes = glue.load_task("MNLI", tmp_path)
    assert list(splits) == ["dev_matched"] and splits["dev_matched"][1].tolist() == [2]
    assert "MNLI dev_matched: 1 of 9,815 rows: not comparable with published scores" in notes


def test_multinli_in_its_own_layout(read, capsys):
    """gold_label comes first there, "-" where annotators disagreed; the last column is one annotator's."""
    head = (
        "gold_label sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse sentence1"
    )
    head += " sentence2 promptID pairID genre label1 label2 label3 label4 label5"
    rows = [
        f"{gold} ( ( ( ( P H 1 1e fiction neutral {last} {last} {last} neutral".split()
        for gold, last in (("contradiction", "contradiction"), ("-", "entailment"))
    ]
    lines = ["\t".join(cells) for cells in (head.split(), *rows)]
    texts, labels = read("MNLI", "dev_matched", "\n".join(lines))
    assert (texts, labels.tolist()) == ([("P", "H")], [2])
    assert "1 rows" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in OFFICIAL if name != "CoLA"])
def test_a_file_without_its_first_line_is_refused_with_the_names_it_should_have(read, name):
    """Read by place, its first row would be lost, or taken for names."""
    unlabelled = name == "AX"
    texts, label, _ = a_row_of(name) if name in EXPORTED else (("P", "H"), None, None)
    with pytest.raises(ValueError, match="its first line must name the columns ") as error:
        read(name, "diagnostic" if unlabelled else "train", official_line(name, texts, label) + "\n")
    assert ("sentence" in str(error.value)) or ("question1, question2, label" in str(error.value))
    assert "fix" not in str(error.value)


def written_by(quoting, head, rows) -> str:
    """What Python's csv, and so pandas and `datasets`, write with tabs."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t", quoting=quoting, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


QUOTES = ['He said "no".', '"No", he said.', '"No."', "a\ttab", "a\nline", "plain", ""]


def test_quotes_that_a_csv_writer_doubled_are_undone(read):
    rows = [(q, "B", 1, i) for i, q in enumerate(QUOTES)]
    head = ["sentence1", "sentence2", "label", "idx"]
    texts, labels = read("RTE", "train", written_by(csv.QUOTE_MINIMAL, head, rows))
    assert texts == [(q, "B") for q in QUOTES] and labels.tolist() == [1] * len(QUOTES)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_quotes_that_pandas_doubled_in_an_own_task_are_undone(read, monkeypatch, end):
    """No column idx says who wrote it, but no hand writes every quote so."""
    monkeypatch.setitem(glue.TASKS, "Mine", glue.Task("", glue.ACC, glue.BINARY, ("sentence",)))
    text = written_by(csv.QUOTE_MINIMAL, ["sentence", "label"], [(q, 1) for q in QUOTES])
    texts, _ = read("Mine", "train", text.replace("\t1\n", f"\t1{end}"))
    assert texts == [(q,) for q in QUOTES]


def test_quotes_around_the_names_of_columns_are_refused_by_name(read):
    text = written_by(csv.QUOTE_ALL, ["sentence1", "sentence2", "label", "idx"], [("A", "B", 1, 0)])
    with pytest.raises(ValueError, match="must name the columns sentence1, sentence2, label between tabs"):
        read("RTE", "train", text)


@pytest.mark.parametrize("cell", ['"open', '"a" and "b"', '"' + 200_000 * "a"])
def test_quotes_that_no_csv_writer_wrote_are_refused_by_name(read, cell):
    """Read as a CSV writer's they would swallow rows."""
    with pytest.raises(ValueError, match=r"RTE.train\.tsv is no table"):
        read("RTE", "train", f"sentence1\tsentence2\tlabel\tidx\n{cell}\tB\t1\t0\nA\tB\t1\t1\n")


def test_quotes_of_official_files_stay_as_everybody_reads_them(read):
    """GLUE's own QQP holds doubled quotes, in train.tsv beside single ones."""
    cell = '"What is ""it""?"'
    texts, _ = read("QQP", "dev", QQP + f"1\t2\t3\t{cell}\tTwo?\t1\n")
    assert texts == [(cell, "Two?")]


@pytest.mark.parametrize("cell", ['"open', 'say ""it', 'a "word"', '"No."', '""', '"a" and ""b""'])
def test_quotes_that_are_text_stay_in_every_layout(read, monkeypatch, cell):
    monkeypatch.setitem(glue.TASKS, "Mine", glue.Task("", glue.ACC, glue.BINARY, ("sentence",)))
    rows = "".join(f"{text}\t1\n" for text in (cell, "plain", 'its "own"'))
    assert read("Mine", "train", "sentence\tlabel\n" + rows)[0][0] == (cell,)


def test_an_own_task_may_call_its_labels_and_columns_as_it_likes(read, monkeypatch):
    """A minus is no label in MultiNLI alone, and a column "label" is the label, whatever stands beside it."""
    monkeypatch.setitem(glue.TASKS, "Mine", glue.Task("", glue.ACC, ("-", "+"), ("sentence",)))
    text = "sentence\tscore\tlabel\tpremise\nbad .\t1\t-\tx\ngood .\t0\t+\ty\n"
    texts, labels = read("Mine", "train", text)
    assert (texts, labels.tolist()) == ([("bad .",), ("good .",)], [0, 1])
    monkeypatch.setitem(glue.TASKS, "Mine", glue.Task("", glue.ACC, glue.BINARY, ("sentence",)))
    _, labels = read("Mine", "train", "sentence\tscore\tlabel\nbad .\t1\t0\n")
    assert labels.tolist() == [0], "the score is another column"


def test_your_own_task_is_compared_with_nobody(read, monkeypatch, tmp_path):
    monkeypatch.setitem(glue.TASKS, "Mine", glue.Task("", glue.ACC, glue.BINARY, ("sentence",)))
    for stem in ("train", "dev"):
        read("Mine", stem, "sentence\tlabel\nA\t1\n")
    assert glue.load_task("Mine", tmp_path, with_test=False)[1] == []
    glue.download(["Mine"], tmp_path)  # nobody asks GLUE's server for it


def test_ax_has_no_labels(read):
    texts, labels = read("AX", "diagnostic", "index\tsentence1\tsentence2\n0\tP\tH")
    assert (texts, labels) == ([("P", "H")], None)


def test_rows_that_are_not_official_are_said(read, tmp_path):
    read("RTE", "train", RTE + "0\tA\tB\tentailment\n")
    splits, notes = glue.load_task("RTE", tmp_path)
    assert list(splits) == ["train"]
    assert "RTE train: 1 of 2,490 rows: not comparable with published scores" in notes
    assert any(note.startswith("RTE dev: no ") and "dev.tsv" in note for note in notes)


# ---- the official files ----


def test_the_official_files_have_the_official_row_counts(capsys):
    folder = os.environ.get("GLUE_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("GLUE_DIR does not name a folder with GLUE's files")
    subsets = ("MNLI train", "QNLI train", "QQP train", "QQP dev")  # often kept small
    for name in glue.TASKS:
        _, notes = glue.load_task(name, folder)
        wrong = [note for note in notes if ": no " not in note and not note.startswith(subsets)]
        assert not wrong, wrong
    assert "skipped" not in capsys.readouterr().out, "no row of them is ragged"


def test_mrpc_is_split_as_in_the_official_copies():
    source = Path(os.environ.get("GLUE_DIR", "no folder")) / "MRPC"
    if not (source / "msr_paraphrase_train.txt").is_file():
        pytest.skip("GLUE_DIR does not name a folder with MRPC's msr_paraphrase files")
    names = ("dev_ids.tsv", "msr_paraphrase_train.txt", "msr_paraphrase_test.txt")
    files = glue.split_mrpc(*((source / name).read_bytes() for name in names))
    for stem, content in files.items():
        ours = sorted(content.decode("utf-8-sig").splitlines()[1:])
        theirs = sorted((source / f"{stem}.tsv").read_text("utf-8-sig").splitlines()[1:])
        assert [line.split("\t")[3:] for line in ours] == [line.split("\t")[3:] for line in theirs], stem


# ---- download ----


@pytest.fixture
def server(monkeypatch):
    """A web server with the files of a dict {path: bytes}, in place of the official addresses."""
    files, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = files.get(self.path)
            self.send_response(404 if body is None else 200)
            promised = 100 if body == BROKEN else len(body or b"")
            self.send_header("Content-Length", str(promised))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    address = f"http://127.0.0.1:{web.server_port}"
    monkeypatch.setattr(glue, "GLUE_URL", f"{address}/glue/")
    monkeypatch.setattr(glue, "MSR_URL", f"{address}/msr/msr_paraphrase_")
    for name, rows in {"RTE": (1, 1, 1), "MRPC": (2, 1, 1), "AX": (1,)}.items():
        monkeypatch.setitem(glue.TASKS, name, replace(glue.TASKS[name], rows=rows))
    files["asked"] = asked
    yield files
    web.shutdown()
    web.server_close()


BROKEN = b"the network breaks off"


def zipped(**more):
    """RTE.zip with one row a file."""
    rows = {"RTE/train.tsv": RTE + "0\tA\tB\tentailment\n", "RTE/dev.tsv": RTE + "0\tA\tB\tentailment\n"}
    rows |= {"RTE/test.tsv": "index\tsentence1\tsentence2\n0\tA\tB\n", "RTE/": "", **more}
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in rows.items():
            archive.writestr(name, text)
    return data.getvalue()


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_download_unpacks_the_tasks_files_and_nothing_else(server, tmp_path, capsys):
    more = {"RTE/original/huge.jsonl": "x", "__MACOSX/RTE/._train.tsv": "x", "../RTE/train.tsv": "x"}
    server["/glue/RTE.zip"] = zipped(**more)
    glue.download(["RTE"], tmp_path / "data")
    assert files_in(tmp_path) == ["data/RTE/dev.tsv", "data/RTE/test.tsv", "data/RTE/train.tsv"]
    assert "RTE: complete" in capsys.readouterr().out


def test_what_is_complete_is_not_fetched_again(server, tmp_path, capsys):
    server["/glue/RTE.zip"] = zipped()
    glue.download(["RTE"], tmp_path)
    glue.download(["RTE"], tmp_path)
    assert server["asked"] == ["/glue/RTE.zip"]
    assert "RTE: complete, kept" in capsys.readouterr().out
    (tmp_path / "RTE" / "dev.tsv").write_bytes(PAGE)
    glue.download(["RTE"], tmp_path)
    assert server["asked"] == ["/glue/RTE.zip"] * 2, "a damaged file is fetched again"
    assert (tmp_path / "RTE" / "dev.tsv").read_text().startswith(RTE)


@pytest.mark.parametrize(
    "body, reason",
    [
        (zipped()[:-200], "not a zip file"),
        (PAGE, "not a zip file"),
        (BROKEN, "more expected"),
        (None, "404"),
        (zipped().replace(b"RTE/dev.tsv", b"RTE/dev.txt"), "no item named 'RTE/dev.tsv'"),
    ],
)
def test_a_bad_archive_is_named_and_the_other_tasks_go_on(server, tmp_path, capsys, body, reason):
    server["/glue/AX.tsv"] = b"index\tsentence1\tsentence2\n0\tP\tH"
    if body is not None:
        server["/glue/RTE.zip"] = body
    with pytest.raises(OSError, match="RTE not downloaded: start again"):
        glue.download(["RTE", "AX"], tmp_path)
    out = capsys.readouterr().out
    assert "RTE: failed" in out and reason in out and "AX: complete" in out
    assert files_in(tmp_path) == ["diagnostic/diagnostic.tsv"], "nothing of a bad archive is written"


def test_a_page_in_place_of_a_file_is_a_failure(server, tmp_path, capsys):
    server["/glue/AX.tsv"] = PAGE
    with pytest.raises(OSError, match="AX not downloaded"):
        glue.download(["AX"], tmp_path)
    assert (
        "diagnostic.tsv: its first line must name the columns sentence1, sentence2" in capsys.readouterr().out
    )


def test_a_file_whose_checksum_is_wrong_is_not_written(server, tmp_path, capsys):
    train = RTE + "0\tA\tB\tentailment\n"
    checksum = zlib.crc32(train.encode()).to_bytes(4, "little")
    assert zipped().count(checksum) == 4, "train and dev are alike, and a zip says it twice"
    server["/glue/RTE.zip"] = zipped().replace(checksum, b"0000")
    with pytest.raises(OSError, match="RTE not downloaded"):
        glue.download(["RTE"], tmp_path)
    assert files_in(tmp_path) == [], "it would have the official number of rows"
    assert "RTE: failed: Bad CRC-32" in capsys.readouterr().out


def test_mrpc_is_put_together_from_the_corpus_and_the_list_of_ids(server, tmp_path):
    head = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    rows = ["1\t10\t11\tA .\tB .", '0\t20\t21\t"C\tD .', "1\t30\t31\tE .\tF ."]
    server["/msr/msr_paraphrase_train.txt"] = (head + "\r\n".join(rows) + "\r\n").encode()
    server["/msr/msr_paraphrase_test.txt"] = (head + "1\t40\t41\tG .\tH .").encode()
    with pytest.raises(OSError, match="MRPC not downloaded"):
        glue.download(["MRPC"], tmp_path)  # the list of ids is the link that breaks
    server["/glue/mrpc_dev_ids.tsv"] = b"20\t21\n"
    glue.download(["MRPC"], tmp_path)
    splits, notes = glue.load_task("MRPC", tmp_path)
    assert not notes
    assert splits["train"][0] == [("A .", "B ."), ("E .", "F .")]
    assert splits["dev"][0] == [('"C', "D .")]
    assert splits["test"][0] == [("G .", "H .")]
    assert splits["test"][1] is None, "the labels of the corpus' test part are not GLUE's to give"

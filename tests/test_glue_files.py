"""glue_eval.py reads GLUE's files with all their traps, and downloads them: a test for every trap."""

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
STS_B = "index\tgenre\tfile\tyear\told\ts1\ts2\tsentence1\tsentence2\tscore\n"
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
    texts, _ = glue.read_split(tmp_path / "CoLA/dev.tsv", replace(glue.TASKS["CoLA"], text=(0,)))
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
    assert "QQP" in line and "2 rows with too many or too few columns are skipped" in line


def test_a_ragged_test_row_still_gets_an_answer(read):
    texts, _ = read("QQP", "test", "id\tquestion1\tquestion2\n0\tOnly one?\n1\tOne?\tTwo?\n")
    assert texts == [("Only one?", ""), ("One?", "Two?")], "a submission without row 0 is refused"


def test_an_unknown_label_names_file_and_line(read):
    wanted = r"RTE.train\.tsv, line 3: label 'maybe' is not entailment or not_entailment"
    with pytest.raises(ValueError, match=wanted):
        read("RTE", "train", RTE + "0\tA\tB\tentailment\n1\tA\tB\tmaybe\n")


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
        ValueError, match=rf"{stem}\.tsv is no file of GLUE: it begins '.*'; get it again"
    ) as e:
        read(task, stem, content)
    assert content.decode().partition("\n")[0][:15] in str(e.value)


def test_a_file_in_latin_1_is_refused_with_the_line(read):
    """With errors="replace" its rows would be trained on as "Caf\\ufffd", and nobody would know."""
    with pytest.raises(ValueError, match=r"CoLA.train\.tsv, line 2: not UTF-8"):
        read("CoLA", "train", b"gj04\t1\t\tTea.\ngj04\t1\t\tCaf\xe9.\n")
    with pytest.raises(ValueError, match="line 3: not UTF-8"):  # behind a byte-order mark, too
        read("CoLA", "train", b"\xef\xbb\xbfgj04\t1\t\tTea.\n\n\xe9\n")


def test_mnli_labels_are_in_the_last_column_whatever_the_number_of_columns(read):
    row = "\t".join(["0", "n/a", "n/a", "slate", *["n/a"] * 4, "P", "H"])
    head = "\t".join(["x"] * 10)
    for more in (1, 5):  # one annotator in train, five in dev
        labels = "\tentailment" * more + "\tneutral\n"
        texts, labels = read("MNLI", "train", head + "\ty" * (more + 1) + "\n" + row + labels)
        assert (texts, labels.tolist()) == ([("P", "H")], [1])


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
        (BROKEN, "not a zip file"),
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
    assert "is no file of GLUE: it begins '<!DOCTYPE html>'" in capsys.readouterr().out


def test_ax_needs_mnli_so_both_are_downloaded(server, tmp_path):
    with pytest.raises(SystemExit, match="AX, MNLI not downloaded"):
        glue.main(["--download", "--data-dir", str(tmp_path), "--tasks", "AX"])
    assert server["asked"] == ["/glue/AX.tsv", "/glue/MNLI.zip"]


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

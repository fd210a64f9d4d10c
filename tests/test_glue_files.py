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
    """read("RTE", "train", "line\\nline") -> the Split of a file with that text (or those bytes)."""

    def read_file(task, stem, text):
        path = glue.task_folder(task, tmp_path) / f"{stem}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return glue.read_split(path, glue.TASKS[task])

    return read_file


RTE = "index\tsentence1\tsentence2\tlabel\n"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"


def test_cola_has_no_header_so_its_first_line_counts(read):
    split = read("CoLA", "train", "gj04\t1\t\tFirst.\ngj04\t0\t*\tSecond.\n")
    assert split.texts == [("First.",), ("Second.",)]
    assert split.labels.tolist() == [1, 0]


def test_cola_test_has_a_header(read):
    split = read("CoLA", "test", "index\tsentence\n0\tFirst.\n1\tSecond.\n")
    assert split.texts == [("First.",), ("Second.",)]
    assert split.labels is None, "the test labels are hidden"


def test_mrpc_begins_with_a_byte_order_mark(read):
    split = read(
        "MRPC", "dev", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t12\t13\tOne .\tTwo .\n"
    )
    assert split.texts == [("One .", "Two .")]
    assert split.labels.tolist() == [1]
    headless = read("CoLA", "dev", "\ufeffgj04\t1\t\tFirst.\n")
    assert headless.labels.tolist() == [1]


def test_a_missing_last_newline_loses_no_row(read):
    assert len(read("RTE", "dev", RTE + "0\tA\tB\tentailment\n1\tC\tD\tnot_entailment").texts) == 2


def test_unbalanced_quotes_are_text(read):
    split = read("RTE", "train", RTE + '0\t"Open\tB\tentailment\n1\tC\tclose"\tnot_entailment\n')
    assert split.texts == [('"Open', "B"), ("C", 'close"')], "quoting would glue the two rows into one"
    assert split.labels.tolist() == [0, 1]


def test_only_a_newline_ends_a_row(read):
    split = read("RTE", "train", RTE + "0\tA\u2028B\x0c\x85C\tD\rE\tentailment\r\n")
    assert split.texts == [("A\u2028B\x0c\x85C", "D\rE")], (
        "sentences may hold what str.splitlines() splits at"
    )
    assert split.labels.tolist() == [0], "and \\r\\n is a line's end too"


def test_sts_b_labels_are_numbers(read):
    header = "index\tgenre\tfile\tyear\told\ts1\ts2\tsentence1\tsentence2\tscore\n"
    split = read(
        "STS-B", "dev", header + "0\tg\tf\ty\to\ta\tb\tOne\tTwo\t3.800\n1\tg\tf\ty\to\ta\tb\tOne\tTwo\t5\n"
    )
    assert split.labels.tolist() == pytest.approx([3.8, 5.0])
    for wrong in ("nan", "5.1", "-1", "", "high"):
        with pytest.raises(ValueError, match="line 2: label .* is not a number from 0 to 5"):
            read("STS-B", "dev", header + f"0\tg\tf\ty\to\ta\tb\tOne\tTwo\t{wrong}\n")


def test_ragged_rows_are_skipped_and_counted(read):
    split = read("QQP", "train", QQP + "1\t2\t3\tOne?\n1\t2\t3\tOne?\tTwo?\t1\n1\t2\t3\tA\tB\tC?\tD?\t0\n")
    assert split.texts == [("One?", "Two?")]
    assert split.ragged == 2


def test_a_ragged_test_row_still_gets_an_answer(read):
    split = read("QQP", "test", "id\tquestion1\tquestion2\n0\tOnly one?\n1\tOne?\tTwo?\n")
    assert split.texts == [("Only one?", ""), ("One?", "Two?")], "a submission without row 0 is refused"
    assert split.ragged == 1


def test_an_unknown_label_names_file_and_line(read):
    with pytest.raises(
        ValueError, match=r"RTE.train\.tsv, line 3: label 'maybe' is not entailment or not_entail"
    ):
        read("RTE", "train", RTE + "0\tA\tB\tentailment\n1\tA\tB\tmaybe\n")


@pytest.mark.parametrize("text", ["", RTE, RTE + "\n\n"])
def test_an_empty_file_is_refused_by_name(read, text):
    with pytest.raises(ValueError, match=r"RTE.train\.tsv holds no rows"):
        read("RTE", "train", text)


def test_another_layout_is_refused_by_name(read):
    with pytest.raises(ValueError, match=r"QQP.train\.tsv has too few columns"):
        read("QQP", "train", "question1\tquestion2\tlabel\nOne?\tTwo?\t1\n")
    with pytest.raises(ValueError, match=r"diagnostic\.tsv has too few columns"):
        read("AX", "diagnostic", "label\n")


def test_bytes_that_are_not_utf_8_do_not_stop_a_run(read):
    assert read("CoLA", "train", b"gj04\t1\t\tCaf\xe9.\n").texts == [("Caf\ufffd.",)]


def test_mnli_labels_are_in_the_last_column_whatever_the_number_of_columns(read):
    row = "\t".join(["0", "n/a", "n/a", "slate", *["n/a"] * 4, "P", "H"])
    head = "\t".join(["x"] * 10)
    for more in (1, 5):  # one annotator in train, five in dev
        labels = "\tentailment" * more + "\tneutral\n"
        split = read("MNLI", "train", head + "\ty" * (more + 1) + "\n" + row + labels)
        assert (split.texts, split.labels.tolist()) == ([("P", "H")], [1])


def test_ax_is_read_with_and_without_labels(read):
    hidden = read("AX", "diagnostic", "index\tsentence1\tsentence2\n0\tP\tH")
    assert (hidden.texts, hidden.labels) == ([("P", "H")], None)
    full = "Lexical Semantics\tStructure\tLogic\tKnowledge\tDomain\tPremise\tHypothesis\tLabel\n"
    known = read("AX", "diagnostic", full + "a\tb\tc\td\te\tP\tH\tcontradiction\n")
    assert (known.texts, known.labels.tolist()) == ([("P", "H")], [2])


def test_rows_that_are_not_official_are_said(read, tmp_path):
    read("RTE", "train", RTE + "0\tA\tB\tentailment\n")
    splits, notes = glue.load_task("RTE", tmp_path)
    assert list(splits) == ["train"]
    assert "RTE train: 1 of 2,490 rows: not comparable with published scores" in notes
    assert any(note.startswith("RTE dev: no dev.tsv") for note in notes), "a missing file is skipped aloud"


# ---- the official files ----


def test_the_official_files_have_the_official_row_counts():
    folder = os.environ.get("GLUE_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("GLUE_DIR does not name a folder with GLUE's files")
    subsets = {("MNLI", "train"), ("QNLI", "train"), ("QQP", "train"), ("QQP", "dev")}  # often kept small
    for name in glue.TASKS:
        splits, notes = glue.load_task(name, folder)
        wrong = [
            note
            for note in notes
            if "skipped" not in note and tuple(note.split(":")[0].split()) not in subsets
        ]
        assert not wrong, wrong
        assert all(split.ragged == 0 for split in splits.values()), name


def test_mrpc_is_split_as_in_the_official_copies(tmp_path):
    source = Path(os.environ.get("GLUE_DIR", "no folder")) / "MRPC"
    if not (source / "msr_paraphrase_train.txt").is_file():
        pytest.skip("GLUE_DIR does not name a folder with MRPC's msr_paraphrase files")
    for file in (*glue.MSR_FILES, "dev_ids.tsv"):
        (tmp_path / file).write_bytes((source / file).read_bytes())
    glue.split_mrpc(tmp_path)
    for part in ("train", "dev", "test"):
        ours, theirs = (
            glue.read_split(folder / f"{part}.tsv", glue.TASKS["MRPC"]) for folder in (tmp_path, source)
        )
        assert sorted(ours.texts) == sorted(theirs.texts), part


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
            broken = body is not None and body.startswith(b"BROKEN")
            self.send_header("Content-Length", str(len(body or b"") + 100 * broken))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{web.server_port}"
    monkeypatch.setattr(glue, "GLUE_URL", f"{address}/glue/")
    monkeypatch.setattr(glue, "MSR_URL", f"{address}/msr/")
    for name, rows in {"RTE": (1, 1, 1), "MRPC": (2, 1, 1), "AX": (1,)}.items():
        monkeypatch.setitem(glue.TASKS, name, replace(glue.TASKS[name], rows=rows))
    files["asked"] = asked
    yield files
    web.shutdown()


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
    server["/glue/RTE.zip"] = zipped(**{"RTE/original/huge.jsonl": "x", "__MACOSX/RTE/._train.tsv": "x"})
    glue.download(["RTE"], tmp_path)
    assert files_in(tmp_path) == ["RTE/dev.tsv", "RTE/test.tsv", "RTE/train.tsv"]
    assert "RTE: complete" in capsys.readouterr().out


def test_what_is_complete_is_not_fetched_again(server, tmp_path, capsys):
    server["/glue/RTE.zip"] = zipped()
    glue.download(["RTE"], tmp_path)
    glue.download(["RTE"], tmp_path)
    assert server["asked"] == ["/glue/RTE.zip"]
    assert "RTE: complete, kept" in capsys.readouterr().out
    (tmp_path / "RTE" / "dev.tsv").write_text("")
    glue.download(["RTE"], tmp_path)
    assert server["asked"] == ["/glue/RTE.zip"] * 2, "a damaged file is fetched again"
    assert (tmp_path / "RTE" / "dev.tsv").read_text()


@pytest.mark.parametrize("path", ["../RTE/train.tsv", "/RTE/train.tsv", "..\\RTE\\train.tsv", "RTE/../../x"])
def test_a_zip_whose_paths_leave_the_folder_is_refused(server, tmp_path, capsys, path):
    server["/glue/RTE.zip"] = zipped(**{path: "evil"})
    with pytest.raises(OSError, match="RTE not downloaded"):
        glue.download(["RTE"], tmp_path / "data")
    assert files_in(tmp_path) == []
    assert "leads out of its folder" in capsys.readouterr().out


@pytest.mark.parametrize(
    "body, reason",
    [
        (zipped()[:-200], "not a zip file"),
        (b"<html>moved</html>", "not a zip file"),
        (b"BROKEN off by the network", "broke off"),
        (None, "404"),
        (zipped().replace(b"RTE/dev.tsv", b"RTE/dev.txt"), "holds no RTE/dev.tsv"),
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
    assert not (tmp_path / "RTE" / "RTE.zip").exists(), "a bad archive must not be found by the next start"


@pytest.mark.parametrize("asked", [["AX"], ["RTE", "--mnli-init"]])
def test_what_needs_mnli_downloads_it_too(server, tmp_path, asked):
    with pytest.raises(SystemExit, match="MNLI.* not downloaded"):
        glue.main(["--download", "--data-dir", str(tmp_path), "--tasks", *asked])
    assert server["asked"].count("/glue/MNLI.zip") == 1


def test_a_file_whose_checksum_is_wrong_is_not_written(server, tmp_path, capsys):
    train = RTE + "0\tA\tB\tentailment\n"
    checksum = zlib.crc32(train.encode()).to_bytes(4, "little")
    assert zipped().count(checksum) == 4, "train and dev are alike, and a zip says it twice"
    server["/glue/RTE.zip"] = zipped().replace(checksum, b"0000")
    with pytest.raises(OSError, match="RTE not downloaded"):
        glue.download(["RTE"], tmp_path)
    assert files_in(tmp_path) == [], "it would have the official number of rows"
    assert "RTE: failed: Bad CRC-32" in capsys.readouterr().out


def test_mrpc_is_put_together_from_the_corpus_and_the_list_of_ids(server, tmp_path, capsys):
    head = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    rows = ["1\t10\t11\tA .\tB .", '0\t20\t21\t"C\tD .', "1\t30\t31\tE .\tF ."]
    server["/msr/msr_paraphrase_train.txt"] = (head + "\r\n".join(rows) + "\r\n").encode()
    server["/msr/msr_paraphrase_test.txt"] = (head + "1\t40\t41\tG .\tH .").encode()
    with pytest.raises(OSError, match="MRPC, the two msr_paraphrase files and dev_ids.tsv will do"):
        glue.download(["MRPC"], tmp_path)  # the list of ids is the link that breaks
    server["/glue/mrpc_dev_ids.tsv"] = b"20\t21\n"
    glue.download(["MRPC"], tmp_path)
    assert server["asked"].count("/msr/msr_paraphrase_train.txt") == 1, "what was there is kept"
    splits, notes = glue.load_task("MRPC", tmp_path)
    assert not notes
    assert splits["train"].texts == [("A .", "B ."), ("E .", "F .")]
    assert splits["dev"].texts == [('"C', "D .")]
    assert splits["test"].texts == [("G .", "H .")]
    assert splits["test"].labels is None

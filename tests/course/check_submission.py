"""What will be graded of a submission, and what will be refused: `python check_submission.py [FOLDER]`.

Of the five programs only the functions that the exercises ask for are taken. Each is cut out of its file as
text, from its `def` line on, and read alone, so that a bracket left open costs one function and not a file.
What it may use is checked here, before anything runs; the programs that grade use this file as it is.
"""

import ast
import builtins
import re
import symtable
import sys
import textwrap
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "tests" / "course"))  # in a handout this file stands beside the programs

from exercises import COURSE, EXERCISES, LIBRARIES  # noqa: E402

LONGEST = 100  # lines of one function
TALLEST = 500  # lines of one function in its file, with docstring, comments and empty lines
LENGTHIEST = 30_000  # characters of it: each attempt to find its end reads them all
LARGEST = 10**6  # bytes of one file

# {file: names at the left edge of a handout's}, which handout.py writes here; elsewhere they are looked up.
GIVEN = {}

# Ways out of a function: files, processes, other people's memory, code made at run time.
REFUSED_NAMES = set("eval exec compile open input breakpoint exit quit globals locals vars getattr".split())
REFUSED_NAMES |= set(
    "setattr delattr os sys io subprocess shutil urllib ctypes tempfile zipfile gzip".split()
)
REFUSED_NAMES |= set("lzma ast json Path platform dist warnings signature read_torch read_json".split())
REFUSED_NAMES |= set("read_weights atomic_write load_tokenizer save_tokenizer dataclass".split())
REFUSED_NAMES |= sys.stdlib_module_names - set(LIBRARIES)  # the programs import some of these
REFUSED_ATTRIBUTES = set(
    "os sys io subprocess shutil ctypes importlib builtins inspect gc pickle path".split()
)
REFUSED_ATTRIBUTES |= set("load save hub package from_file fromfile tofile memmap loadtxt savetxt".split())
REFUSED_ATTRIBUTES |= set(
    "genfromtxt ctypeslib ops classes jit library utils fx compiler distributed".split()
)
REFUSED_ATTRIBUTES |= set("testing lib f2py multiprocessing from_pretrained save_pretrained modules".split())
REFUSED_ATTRIBUTES |= set("monitoring settrace setprofile attrgetter methodcaller scipy sklearn".split())
# A module that another has imported, as in re.enum, is a way to all others; these are functions as well.
REFUSED_ATTRIBUTES |= {"bltns"} | sys.stdlib_module_names - set(
    "array chunk copy random select trace".split()
)
REFUSED_ATTRIBUTES |= set("fromregex savez savez_compressed DataSource update_wrapper wraps mp loads".split())
REFUSED_ATTRIBUTES |= set("getattr setattr dataclass signature read_torch read_weights".split())
REFUSED_ATTRIBUTES |= set(
    "gi_code gi_frame cr_frame ag_frame tb_frame f_back f_globals f_locals f_builtins".split()
)


class Unusable(Exception):
    """A function that cannot be graded; the message is for the student."""


def cut(text: str, name: str) -> str:
    """The text of "function" or "Class.method": from its last `def` line to where it ends. Raises Unusable.

    It ends before the first later line that is not indented further, where what came before is a function.
    """
    lines = text.split("\n")
    first, last = 0, len(lines)
    owner, _, function = name.rpartition(".")
    indent = ""
    if owner:
        starts = [i for i, line in enumerate(lines) if re.match(rf"class {owner}\b", line)]
        if not starts:
            raise Unusable(f"there is no class {owner} at the left edge")
        first = starts[-1] + 1
        last = next((i for i in range(first, last) if re.match(r"(class|def|@)\b", lines[i])), last)
        indent = r"[ \t]+"
    starts = [i for i in range(first, last) if re.match(rf"{indent}def {function}\b", lines[i])]
    if not starts:
        raise Unusable(f"there is no `def {function}`" + f" in class {owner}" * bool(owner))
    start = starts[-1]
    depth = len(lines[start]) - len(lines[start].lstrip())

    error = "it does not end"
    for end in range(start + 1, min(len(lines), start + TALLEST) + 1):
        outside = end == len(lines) or lines[end].strip() and not lines[end].startswith(" " * (depth + 1))
        if not outside or end < len(lines) and lines[end].lstrip().startswith("#"):
            continue
        block = textwrap.dedent("\n".join(lines[start:end]))
        if len(block) > LENGTHIEST:
            raise Unusable(f"it has more than {LENGTHIEST:,} characters; a table of answers is no solution")
        try:
            if len(ast.parse(block).body) == 1:
                return block
            error = "there is a second statement"  # a form feed sets Python's indentation back to 0
        except (SyntaxError, ValueError, RecursionError, MemoryError) as fault:
            error = f"line {start + (getattr(fault, 'lineno', 1) or 1)}: {getattr(fault, 'msg', fault)}"
        if end < len(lines) and re.match(r"\s*(def|class|@)\b", lines[end]):
            break
    raise Unusable(f"it is no Python ({error})")


def global_names(function: ast.AST) -> set:
    """The names that a function, its defaults and whatever is nested in it read from outside of it."""
    tables = [symtable.symtable(ast.unparse(function), "function", "exec")]
    found = set()
    for table in tables:
        tables += table.get_children()
        found |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    return found


def edge_names(text: str) -> set:
    """The names that a program defines or imports at its left edge."""
    symbols = symtable.symtable(text, "program", "exec").get_symbols()
    return {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}


@cache
def given_names(file: str) -> set:
    """What stands in a program of a handout, for the functions of an exercise to use."""
    return set(GIVEN[file]) if GIVEN else edge_names((COURSE.parents[1] / file).read_text(encoding="utf-8"))


def refused_names(function: ast.AST) -> list[str]:
    """What a function uses and may not; a variable of its own may have any name."""
    found = sorted(REFUSED_NAMES & global_names(function))
    for node in ast.walk(function):
        if isinstance(node, ast.Import):
            found += [f"import {a.name}" for a in node.names if a.name not in LIBRARIES]
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module not in LIBRARIES:
                found.append(f"from {node.module} import")
            found += [
                a.name for a in node.names if a.name in REFUSED_ATTRIBUTES or a.name.startswith(("_", "*"))
            ]
        elif isinstance(node, ast.Attribute):
            private = node.attr.startswith("_") and node.attr != "__init__"
            found += [node.attr] if private or node.attr in REFUSED_ATTRIBUTES else []
        elif isinstance(node, ast.Name):
            found += [node.id] if node.id.startswith("__") else []
        elif isinstance(node, ast.Global):
            found.append("global")
        elif isinstance(node, (ast.AsyncFunctionDef, ast.Await, ast.ClassDef, ast.MatchClass)):
            found.append(type(node).__name__)
    return found


def uses(function: ast.AST) -> set:
    """Every name and attribute in a function."""
    nodes = list(ast.walk(function))
    found = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    found |= {node.id for node in nodes if isinstance(node, ast.Name)}
    return found | {a.name for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names}


def take(text: str, name: str, e) -> str:
    """A function of a submission in plain form, without decorators and docstring. Raises Unusable."""
    try:
        return checked(text, name, e)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as fault:  # found after it was parsed
        raise Unusable(f"it is no Python ({type(fault).__name__}: {str(fault)[:100]})") from None


def checked(text: str, name: str, e) -> str:
    """What `take` returns; other errors may come out of it than Unusable."""
    (function,) = ast.parse(cut(text, name)).body
    if ast.get_docstring(function) is not None:
        function.body = function.body[1:]
    if not function.body or "NotImplementedError" in ast.unparse(function.body[0]):
        raise Unusable("it is not written yet")
    if len(ast.unparse(function).splitlines()) > LONGEST:
        raise Unusable(f"it is longer than {LONGEST} lines; a table of answers is no solution")
    if found := refused_names(function):
        raise Unusable(f"it uses what is refused in an exercise: {', '.join(sorted(set(found)))}")
    forbidden = set(e.by_hand) | {w.partition(": ")[2] for w in e.by_hand if w.startswith(f"{name}: ")}
    if found := forbidden & uses(function):
        raise Unusable(f"it is to be written by hand, without {', '.join(sorted(found))}")
    outside = global_names(function) - set(dir(builtins)) - {"__class__"}  # which super() reads
    if found := sorted(outside - given_names(e.file)):
        raise Unusable(f"it uses {', '.join(found)}, which is not in the handout: put it inside")
    return ast.unparse(function)


def read(folder: Path, file: str) -> str:
    """A file of a submission. Raises Unusable."""
    path = Path(folder) / file
    try:
        if path.is_symlink() or path.exists() and not path.is_file():
            raise Unusable(f"{file} is no file of its own")  # a link may lead to the solution
        if path.stat().st_size > LARGEST:
            raise Unusable(f"{file} is larger than {LARGEST:,} bytes")
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError:
        raise Unusable(f"{file} is missing") from None
    except UnicodeDecodeError:
        raise Unusable(f"{file} is no UTF-8 text") from None


def taken(folder, e) -> tuple[dict, dict]:
    """({name: source} of an exercise's functions that can be graded, {name: why not} of the others)."""
    good, bad = {}, {}
    for name in e.functions:
        try:
            good[name] = take(read(folder, e.file), name, e)
        except Unusable as error:
            bad[name] = str(error)[:300]  # names in it are the student's
    return good, bad


def main():
    """Print a line for each function, and what answers.md lacks; exit with 1 where something is refused."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    chosen = [e for e in EXERCISES if (COURSE / Path(e.tests).name).exists()]
    refused = 0
    for e in chosen:
        good, bad = taken(folder, e)
        for name in e.functions:
            refused += name in bad and "not written yet" not in bad[name]
            print(f"exercise {e.number:>2}  {name:<24} {bad.get(name, 'will be graded')}")
    answers = folder / "answers.md"
    if not answers.is_file():
        print("answers.md is missing: the questions give points too")
    else:
        empty = len(re.findall(r"\*\*Prediction, and why:\*\*\s*\*\*", answers.read_text(encoding="utf-8")))
        print(f"answers.md: {empty} of {len(chosen)} predictions are empty")
    if refused:
        sys.exit(f"{refused} function{'s' * (refused > 1)} will be refused: the reason stands in its line")


if __name__ == "__main__":
    main()

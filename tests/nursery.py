"""Runs of the programs in processes of their own, which may be killed, and cost no import.

One process, `python tests/nursery.py`, imports torch once and forks for every run; `Nursery` talks to it.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


class Nursery:
    """start, end, run: one run at a time. together: several, as torchrun starts them."""

    def __init__(self, folder):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        self.process = subprocess.Popen([sys.executable, __file__], **pipes)
        self.process.stdout.readline()  # all is imported
        self.folder = folder
        self.running = {}  # number of the process: file with what it prints

    def ask(self, **question) -> int:
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, program, argv, die_at=0, stop_in=0, limit=0, env=None) -> int:
        """Returns the number of the process.

        die_at: it kills itself at this event. stop_in: Ctrl-C comes in this step. limit: bytes per file.
        """
        output = self.folder / f"output-{len(self.running)}"
        job = {"program": program, "argv": list(map(str, argv)), "output": str(output), "env": env or {}}
        child = self.ask(**job, die_at=die_at, stop_in=stop_in, limit=limit)
        self.running[child] = output
        return child

    def end(self, child):
        """Wait for a run: (exit status, what was printed); the status is -9 if it was killed."""
        status = os.waitstatus_to_exitcode(self.ask(wait=child))
        return status, self.running.pop(child).read_text(errors="replace")

    def run(self, program, argv, **settings):
        return self.end(self.start(program, argv, **settings))

    def complete(self, program, argv):
        """Run to the end, which must be a good one; returns what was printed."""
        status, text = self.run(program, argv)
        assert status == 0, f"{program} {' '.join(map(str, argv))} ended with {status}: {text[-1500:]}"
        return text

    def together(self, program, argv, count: int, port: int, stop_in=0):
        """Run to the end, or to a Ctrl-C, in `count` processes that know of each other."""
        env = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = [env | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        children = [self.start(program, argv, stop_in=stop_in, env=variables) for variables in ranks]
        for status, text in [self.end(child) for child in children]:
            assert status == (1 if stop_in else 0), (
                f"a process of {program} ended with {status}: {text[-1500:]}"
            )

    def close(self):
        for child in self.running:  # of a test that failed
            os.kill(child, signal.SIGKILL)
        self.process.stdin.close()
        self.process.wait()


# ---- the process that forks ----


def die_at_event(last: int) -> list:
    """Kill this process at event number `last`; an event is a moment at which files are changed.

    What is being written then is left half-written. Returns the list whose one number counts the events.
    """
    import train

    count = [0]

    def event(harm=None):
        count[0] += 1
        if count[0] == last:
            if harm:
                harm()
            os.kill(os.getpid(), signal.SIGKILL)

    def halve(file):
        size = os.stat(file).st_size
        os.truncate(file, size // 2 + 1)

    def around(call):
        def changed(*given, **settings):
            event()
            result = call(*given, **settings)
            event()
            return result

        return changed

    def synced(descriptor, fsync=os.fsync):
        event(lambda: halve(descriptor))
        fsync(descriptor)

    def tokenised(documents, tokenizer, folder, tokenise=train.tokenise):
        tokenise(documents, tokenizer, folder)
        event(lambda: halve(folder / "train.ids"))

    os.fsync = synced
    os.replace = around(os.replace)
    os.rename = around(os.rename)
    train.tokenise = tokenised
    return count


def stop_in_step(number: int):
    """As Ctrl-C does."""
    import train

    update = train.Pretraining.update

    def stop(self):
        if self.step == number - 1:
            raise KeyboardInterrupt
        update(self)

    train.Pretraining.update = stop


def live(job: dict) -> int:
    """One run, in a process of its own; returns its exit status."""
    import torch

    import distill
    import glue_eval
    import train

    # A process that was forked need not take leave of the others, and with torch 2.6 it would wait for ever.
    torch.distributed.destroy_process_group = lambda: None
    descriptor = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(job["env"])
    events = die_at_event(job["die_at"])
    stop_in_step(job["stop_in"])
    if job["limit"]:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    sys.argv[0] = job["program"]
    status = 0
    try:
        if job["program"] == "glue_eval.py":
            glue_eval.main(job["argv"])
        elif job["program"] == "distill.py":
            train.main(distill.make_parser(), distill.Distillation, job["argv"])
        else:
            train.main(train.make_parser("test"), argv=job["argv"])
    except SystemExit as stop:
        print("SENTENCE", stop.code, flush=True)
        status = 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 2
    print("EVENTS", events[0], flush=True)
    return status


def serve():
    """A question per line, a number as the answer."""
    import torch
    import torch._dynamo  # noqa: F401, which the first step of an optimizer imports

    import distill  # noqa: F401, so that no child imports anything
    import glue_eval  # noqa: F401

    torch.set_num_threads(1)
    print("ready", flush=True)
    while line := sys.stdin.readline():
        question = json.loads(line)
        if "wait" in question:  # until it is asked for, a run that ended keeps its number
            answer = os.waitpid(question["wait"], 0)[1]
        elif (answer := os.fork()) == 0:
            os._exit(live(question))
        print(answer, flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    serve()

"""`fastjac paper`: the runner, its results on the disk, and the report."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_paper import TINY, reproduce

import fastjac
from fastjac import models
from fastjac.cli import main
from fastjac.data import DataError
from fastjac.paper import experiment
from fastjac.paper.jobs import Job, plan, unique
from fastjac.paper.presets import RECIPES
from fastjac.paper.published import TABLES
from fastjac.paper.rows import rows
from fastjac.paper.source import Source
from fastjac.paper.store import Store, alone
from fastjac.paper.tables import Measured, attack_table, ordering
from fastjac.paper.work import Work

ROOT = Path(fastjac.__file__).resolve().parents[1]


@pytest.fixture
def tiny_recipe(monkeypatch):
    monkeypatch.setitem(RECIPES, ("mnist", "quick"), TINY)


@pytest.fixture(scope="session")
def finished(tiny_data, tmp_path_factory):
    """A run of the whole tiny recipe, two seeds, two processes."""
    out = tmp_path_factory.mktemp("run")
    return out, reproduce(tiny_data, out)


def test_every_job_is_run_and_recorded_once(finished):
    out, outcome = finished
    lines = (out / "results.jsonl").read_text().splitlines()
    ids = [json.loads(line)["id"] for line in lines]
    assert len(set(ids)) == len(ids) == outcome.finished == outcome.planned
    assert not outcome.failed and not outcome.stopped
    assert not list((out / "checkpoints").iterdir())


def test_rows_of_a_seed_start_from_the_same_regular_network(finished):
    out, _ = finished
    jobs = [json.loads(line) for line in (out / "results.jsonl").open()]
    trained = {j["id"]: j["job"]["seed"] for j in jobs if j["job"]["kind"] == "train"}
    rows = [j["job"] for j in jobs if j["job"]["kind"] == "row"]
    assert sorted(trained.values()) == [0, 1]
    assert all(trained[job["needs"]] == job["seed"] for job in rows if job["needs"])
    assert [job["row"]["fresh"] for job in rows if not job["needs"]] == [True]


def test_the_report_shows_each_row_beside_the_published_number(finished):
    out, _ = finished
    text = (out / "report.md").read_text()
    records = [json.loads(line) for line in (out / "results.jsonl").open()]
    for row in rows(TINY):
        measured = [
            100 * r["result"]["measured"]["rho_adv"]
            for r in records
            if r["job"]["kind"] == "row" and r["job"]["row"]["key"] == row.key
        ]
        table = text.split("## ")[1] if row.group == "main" else text
        line = next(li for li in table.splitlines() if li.startswith(f"| {row.title} "))
        if row.group == "main":
            published = TABLES["mnist"][row.key]
            mean = sum(measured) / 2
            assert len(measured) == 2
            assert f"| {published.rho_adv:.2f} |" in line
            assert f"| {mean:.2f} ± " in line
            assert f"| {mean - published.rho_adv:+.2f} |" in line
        else:
            assert f"| {measured[0]:.2f} |" in line
    for heading in ("Table 1", "Table 2", "Cost of a post", "What cannot be matched"):
        assert f"## {heading}" in text
    assert "not run" not in text
    assert re.search(r"Cross-Lipschitz by pairs, autograd \| \d+ \| [\d.]+ \|", text)


def test_of_rows_that_are_trained_alike_the_first_gives_the_job_its_name():
    row = rows(TINY)[0]
    first = Job("row", 0, ("data", "digest"), "mnist", (), row=row)
    again = replace(first, row=replace(row, key="lambda=0.2", group="lambda"))
    other = replace(first, seed=1)
    assert again.id == first.id != other.id
    assert unique([first, again, other, first]) == [first, other]


def test_the_html_needs_no_other_file(finished):
    out, outcome = finished
    text = (out / "report.html").read_text()
    pictures = [path for path in outcome.files if path.suffix == ".png"]
    assert text.count("data:image/png;base64,") == len(pictures) == 4
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_a_finished_job_is_not_run_again(finished, tiny_data, monkeypatch):
    out, _ = finished
    before = (out / "results.jsonl").read_bytes()

    def refuse(*_):
        raise AssertionError("a finished job was run again")

    monkeypatch.setattr(experiment.Runner, "_all", refuse)
    outcome = reproduce(tiny_data, out)
    assert outcome.finished == outcome.planned
    assert (out / "results.jsonl").read_bytes() == before


def test_networks_are_kept_and_measured_anew_without_training(
    tiny_data, tmp_path, monkeypatch
):
    images = Source(tiny_data, "mnist", verify=False).open()
    more = replace(TINY, measure=replace(TINY.measure, images=30))
    train, none, *_, row = jobs = _jobs(TINY, images, "none", "jacobian")
    work = Work(tmp_path, images, torch.device("cpu"))
    first = {job.id: work(job) for job in jobs}
    assert first[train.id]["network"] == first[none.id]["network"]
    monkeypatch.delattr(Work, "_train")
    *_, again = _jobs(more, images, "none", "jacobian")
    second = work(again)
    assert again.id != row.id
    assert second["measured"]["images"] == 30
    for name in ("network", "training"):
        assert second[name] == first[row.id][name]
    kept, notes = models.load(tmp_path / second["network"])
    assert notes["job"] == "jacobian, seed 0"
    assert work.accuracy(kept, images.test) == second["measured"]["accuracy"]


def _jobs(recipe, images, *keys):
    """The regular training and these rows, of the first seed."""
    train, *others = plan(recipe, images, [0])
    return [train, *(j for j in others if j.row and j.row.key in keys)]


def test_an_interrupted_job_ends_as_one_never_interrupted(tiny_data, tmp_path):
    images = Source(tiny_data, "mnist", verify=False).open()
    train, job = _jobs(TINY, images, "jacobian+adversarial")

    def done(folder, stops):
        """The job's numbers, stopped at these batches, and how often it was."""
        batches, stopped, found = 0, 0, {}

        def stop():
            nonlocal batches
            batches += 1
            return batches in stops

        for each in (train, job):
            while each.id not in found:
                try:
                    work = Work(folder, images, torch.device("cpu"), stop=stop)
                    found[each.id] = work(each)
                except KeyboardInterrupt:
                    stopped += 1
        return found[job.id], stopped

    whole, never = done(tmp_path / "a", ())
    pieces, often = done(tmp_path / "b", (9, 25, 48, 55, 57, 60))
    assert (never, often) == (0, 6)
    assert pieces["measured"] == whole["measured"]
    assert pieces["training"]["loss"] == whole["training"]["loss"]


def test_seconds_count_the_training_of_earlier_sessions(
    tiny_data, tmp_path, monkeypatch
):
    images = Source(tiny_data, "mnist", verify=False).open()
    work = Work(tmp_path, images, torch.device("cpu"))
    monkeypatch.setattr(Work, "_trained", lambda *_: {"seconds": 1000.0})
    assert 1000.0 <= work(plan(TINY, images, [0])[0])["seconds"] < 1100.0


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from tiny_paper import TINY, reproduce
if __name__ == "__main__":
    found = reproduce({data!r}, {out!r}, only=["jacobian", "adversarial"])
    print("stopped:", found.stopped)
"""


def cut_off(script, out, sent):
    """Start the script, send it a signal after one more result; what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before = len(Store(out / "results.jsonl").results)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and what they start inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None:
        if len(Store(out / "results.jsonl").results) > before:
            process.send_signal(sent)
            break
        time.sleep(0.02)
    told = process.communicate()
    while True:  # its workers end by themselves, and with them the lock
        try:
            with alone(out):
                return told
        except fastjac.checkpoint.CheckpointError:
            time.sleep(0.1)


def test_a_run_goes_on_after_ctrl_c_and_after_kill_9(tiny_data, tmp_path, finished):
    out = tmp_path / "run"
    script = tmp_path / "run.py"
    tests = str(Path(__file__).parent)
    script.write_text(SCRIPT.format(tests=tests, data=str(tiny_data), out=str(out)))
    printed, errors = cut_off(script, out, signal.SIGINT)
    assert "stopped: True" in printed and "Traceback" not in errors
    first = Store(out / "results.jsonl").results
    cut_off(script, out, signal.SIGKILL)
    second = Store(out / "results.jsonl").results
    assert 1 <= len(first) < len(second) <= 6
    reproduce(tiny_data, out, only=["jacobian", "adversarial"])
    records = Store(out / "results.jsonl").results
    assert len(records) == 6
    assert all(records[id] == record for id, record in second.items())
    other = Store(finished[0] / "results.jsonl").results
    for id, record in records.items():
        assert record["result"]["measured"] == other[id]["result"]["measured"]


def test_a_torn_last_line_is_dropped_and_its_job_runs_again(tmp_path):
    path = tmp_path / "results.jsonl"
    store = Store(path)
    store.add({"id": "a", "result": 1})
    store.add({"id": "b", "result": 2})
    path.write_bytes(path.read_bytes()[:-5])
    torn = Store(path)
    assert list(torn.results) == ["a"] and torn.damaged == 1
    torn.add({"id": "b", "result": 3})
    assert [json.loads(line)["result"] for line in path.open()] == [1, 3]


def test_a_full_disk_leaves_the_results_as_they_were(tmp_path, monkeypatch):
    store = Store(tmp_path / "results.jsonl")
    store.add({"id": "a"})
    before = store.path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastjac.paper.store.os.fsync", full)
    with pytest.raises(fastjac.checkpoint.CheckpointError, match="No space left"):
        store.add({"id": "b"})
    assert store.path.read_bytes() == before and "b" not in store.results


def test_a_folder_is_used_by_one_run_at_a_time(tmp_path, tiny_data):
    expected = pytest.raises(fastjac.checkpoint.CheckpointError, match="another run")
    with alone(tmp_path), expected:
        reproduce(tiny_data, tmp_path)


def test_damaged_or_unknown_data_is_refused(tiny_data, tmp_path):
    with pytest.raises(DataError, match="are not those of MNIST"):
        experiment.reproduce(tiny_data, "mnist", tmp_path / "out")
    folder = tmp_path / "mnist"
    folder.mkdir()
    for path in (tiny_data / "mnist").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    cut = folder / "train-images-idx3-ubyte.gz"
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(DataError, match="cut short"):
        reproduce(tmp_path, tmp_path / "out")
    cut.unlink()
    with pytest.raises(DataError, match="has no file train-images"):
        reproduce(tmp_path, tmp_path / "out")


def test_jobs_are_named_by_what_they_do(tiny_data):
    images = Source(tiny_data, "mnist", verify=False).open()
    ids = [job.id for job in plan(TINY, images, [0])]
    assert ids == [job.id for job in plan(TINY, images, [0])]
    other = replace(TINY, lams={**TINY.lams, "jacobian": 0.5})
    others = [job.id for job in plan(other, images, [0])]
    assert {a != b for a, b in zip(ids, others, strict=True)} == {True, False}
    assert not set(ids) & {job.id for job in plan(TINY, images, [1])}
    images.train.tensors[0][0, 0, 0, 0] += 1
    assert not set(ids) & {job.id for job in plan(TINY, images, [0])}


def test_a_diverged_row_is_reported_and_the_others_run(tiny_data, tmp_path):
    wild = replace(TINY.harden, lr=1e30, weight_decay=0.0)
    recipe = replace(TINY, harden=wild, groups=("main",), seeds=1, cost_batch=0)
    only = ["none", "jacobian"]
    outcome = reproduce(tiny_data, tmp_path, recipe=recipe, only=only)
    assert outcome.failed == ("jacobian, seed 0",)
    line = next(
        line
        for line in (tmp_path / "report.md").read_text().splitlines()
        if line.startswith("| Jacobian regularization |")
    )
    assert "| failed |" in line


def test_the_ordering_is_told_as_it_is():
    def entries(*values):
        made = []
        for row, value in zip(rows(TINY), values, strict=False):
            made.append(Measured(row, [{"rho_adv": value}]))
        return made

    assert "from row to row" in ordering(entries(0.1, 0.2, 0.3))
    told = ordering(entries(0.1, 0.3, 0.2))
    assert "except that Input gradient regularization (20.00) is not above" in told


def test_the_report_says_so_where_autoattack_could_not_be_run():
    numbers = {"images": 1000, "slow_images": 50, "fgsm": [[0.1, 0.9]]}
    entries = {"none": Measured(rows(TINY)[0], [numbers])}
    (said,) = attack_table(entries, 0.0).notes
    assert "first 1,000" in said and "other attacks: the first 50" in said
    assert "torchattacks was not installed" in attack_table(entries, 0.1).notes[1]
    numbers["autoattack"] = [[0.1, 0.8]]
    assert attack_table(entries, 0.1).notes == (said,)


def test_the_command_line(tiny_data, tmp_path, tiny_recipe, finished, capsys):
    base = ["paper", "--data", str(tiny_data), "--preset", "quick", "--no-verify"]
    shown = [*base, "--out", str(finished[0]), "--report-only", "--no-progress"]
    assert main(shown) == 0
    assert re.search(r"(\d+) of \1 jobs are finished", capsys.readouterr().out)
    assert main([*base, "--out", str(tmp_path), "--only", "nobody"]) == 2
    assert "names no row or group" in capsys.readouterr().err
    assert main(["paper", "--data", str(tiny_data), "--out", str(tmp_path)]) == 1
    assert "are not those of MNIST" in capsys.readouterr().err


@pytest.mark.parametrize("preset", sorted(RECIPES))
def test_every_preset_makes_rows_with_a_weight_for_each_penalty(preset):
    keys = [row.key for row in rows(RECIPES[preset])]
    assert len(set(keys)) == len(keys) and keys[:8] == list(TABLES["mnist"])
    assert all(row.lam > 0 for row in rows(RECIPES[preset]) if row.penalty)

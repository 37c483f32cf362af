"""The two training phases: what they do, and that nothing is ever lost."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastjac
from fastjac import checkpoint as files
from fastjac.harden import (
    NonFiniteLossError,
    Objective,
    TrainingInterrupted,
    harden,
    train,
)

ROOT = Path(fastjac.__file__).resolve().parents[1]

# One job, run whole, or in pieces by processes that get killed. Its randomness comes
# from every source that a resume must restore: shuffling by the global generator,
# dropout, FGSM's choice of inputs, augmentation by NumPy and Python in the dataset.
JOB = """
import os, random, signal, sys, time
import numpy as np, torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from fastjac.harden import TrainingInterrupted, harden

folder, how, at, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

class Noisy(Dataset):
    given = 0
    x = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    def __len__(self):
        return len(self.x)
    def __getitem__(self, i):
        Noisy.given += 1
        if how == "kill" and Noisy.given == 8 * at:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "slow":
            time.sleep(0.01)
            if Noisy.given == 8 * at:
                print("ready", flush=True)
        noise = random.random() + np.random.rand()
        return self.x[i] + 0.1 * noise * torch.rand(()), i % 3

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(),
    nn.Linear(16, 3),
)
loader = DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=workers)
try:
    result = harden(
        model, loader, lam=0.1, epochs=3, lr=1e-2, adversarial=0.5, seed=5,
        checkpoint=folder + "/job.ckpt", checkpoint_every=2,
        resume="auto", progress=False,
    )
except TrainingInterrupted as error:
    print(error)
    sys.exit(130)
history = [(r.epoch, r.steps, r.loss, r.cross_entropy, r.penalty, r.accuracy)
           for r in result.history]
torch.save([model.state_dict(), history], folder + "/done.pt")
"""


def job(folder, how="whole", at=0, workers=0):
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", JOB, str(folder), how, str(at), str(workers)]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out + err


def outcome(folder):
    return torch.load(folder / "done.pt", weights_only=True)


def assert_same_outcome(first, second):
    assert first[1] == second[1]  # the history, to the last digit
    assert first[0].keys() == second[0].keys()
    for name in first[0]:
        assert torch.equal(first[0][name], second[0][name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    code, output = finish(job(folder))
    assert code == 0, output
    return outcome(folder)


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def small_batches(count=6, size=8):
    generator = torch.Generator().manual_seed(3)
    batches = []
    for _ in range(count):
        x = torch.randn(size, 5, generator=generator)
        batches.append((x, x[:, :3].argmax(1)))
    return batches


def weights_of(model):
    return [p.detach().clone() for p in model.parameters()]


class TestResume:
    # 15 steps of 8 inputs, 5 an epoch, saved after every 2nd: killed in the second
    # epoch between two saves, and before anything was saved.
    @pytest.mark.parametrize("killed_at", [8, 1])
    def test_killed_run_resumes_to_the_same_weights_bit_for_bit(
        self, tmp_path, whole, killed_at
    ):
        code, _ = finish(job(tmp_path, "kill", killed_at))
        assert code == -signal.SIGKILL
        assert (tmp_path / "job.ckpt").exists() == (killed_at > 2)
        code, output = finish(job(tmp_path))
        assert code == 0, output
        assert_same_outcome(outcome(tmp_path), whole)

    def test_run_killed_twice_resumes_to_the_same_weights(self, tmp_path, whole):
        for _ in range(2):
            code, _ = finish(job(tmp_path, "kill", 4))
            assert code == -signal.SIGKILL
        code, output = finish(job(tmp_path))
        assert code == 0, output
        assert_same_outcome(outcome(tmp_path), whole)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_ctrl_c_saves_says_how_to_go_on_and_resumes_exactly(
        self, tmp_path, whole, workers
    ):
        if workers:
            code, output = finish(job(tmp_path / "w", workers=workers))
            assert code == 0, output
            whole = outcome(tmp_path / "w")
        process = job(tmp_path, "slow" if not workers else "whole", 7, workers)
        if workers:  # a worker's prints say nothing of the steps: wait for a save
            while not (tmp_path / "job.ckpt").exists() and process.poll() is None:
                pass
        else:
            assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        code, output = finish(process)
        if workers and code == 0:
            pytest.skip("the run with workers was done before Ctrl-C reached it")
        assert code == 130, output
        assert f"saved to {tmp_path / 'job.ckpt'}" in output
        assert "resume=True" in output
        code, output = finish(job(tmp_path, workers=workers))
        assert code == 0, output
        assert_same_outcome(outcome(tmp_path), whole)

    def test_loader_with_its_own_generator_resumes_exactly(self, tmp_path):
        x, y = small_batches(1, 40)[0]

        def run(epochs, resume=False, **more):
            loader = DataLoader(
                TensorDataset(x, y),
                batch_size=8,
                shuffle=True,
                generator=torch.Generator().manual_seed(7),
            )
            model = small_model()
            harden(
                model,
                loader,
                epochs=epochs,
                seed=1,
                progress=False,
                resume=resume,
                **more,
            )
            return weights_of(model)

        expected = run(4)
        run(2, checkpoint=tmp_path / "c")
        resumed = run(4, resume=True, checkpoint=tmp_path / "c")
        assert all(map(torch.equal, expected, resumed))

    def test_random_projections_with_their_own_generator_resume_exactly(self, tmp_path):
        def run(epochs, resume=False, **more):
            generator = torch.Generator().manual_seed(7)
            model = small_model()
            options = {"projections": 1, "generator": generator}
            harden(
                model,
                small_batches(),
                epochs=epochs,
                penalty_options=options,
                seed=1,
                progress=False,
                resume=resume,
                **more,
            )
            return weights_of(model)

        expected = run(3)
        run(1, checkpoint=tmp_path / "c")
        resumed = run(3, resume=True, checkpoint=tmp_path / "c")
        assert all(map(torch.equal, expected, resumed))

    def test_finished_run_resumes_to_its_result_without_a_step(self, tmp_path):
        path = tmp_path / "c"
        first, second = small_model(), small_model(1)
        a = harden(first, small_batches(), checkpoint=path, progress=False)
        b = harden(
            second, small_batches(), checkpoint=path, resume=True, progress=False
        )
        assert a == b
        assert all(map(torch.equal, weights_of(first), weights_of(second)))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"lam": 0.2}, "lam was 0.1, is 0.2"),
            (
                {"penalty": "cross-lipschitz"},
                "penalty was jacobian, is cross-lipschitz",
            ),
            ({"lr": 1.0}, "optimizer was Adam"),
            ({"seed": 4}, "seed was None, is 4"),
        ],
    )
    def test_checkpoint_of_another_run_is_refused(self, tmp_path, change, message):
        path = tmp_path / "c"
        harden(small_model(), small_batches(), checkpoint=path, progress=False)
        model = small_model(1)
        before = weights_of(model)
        with pytest.raises(files.CheckpointError, match=message):
            harden(
                model,
                small_batches(),
                checkpoint=path,
                resume=True,
                progress=False,
                **change,
            )
        assert all(map(torch.equal, before, weights_of(model)))

    def test_checkpoint_of_another_model_is_refused(self, tmp_path):
        harden(
            small_model(), small_batches(), checkpoint=tmp_path / "c", progress=False
        )
        with pytest.raises(files.CheckpointError, match="does not fit this model"):
            harden(
                nn.Linear(5, 3),
                small_batches(),
                checkpoint=tmp_path / "c",
                resume=True,
                progress=False,
            )

    def test_shorter_data_is_refused(self, tmp_path):
        path = tmp_path / "c"

        def gives(count):
            yield from small_batches(count)

        class Stream:
            def __init__(self, count, fail_at=None):
                self.count, self.fail_at = count, fail_at

            def __iter__(self):
                for i, batch in enumerate(gives(self.count)):
                    if i == self.fail_at:
                        raise OSError("the disk went away")
                    yield batch

        options = {"checkpoint": path, "checkpoint_every": 1, "progress": False}
        with pytest.raises(OSError, match="disk went away"):
            harden(small_model(), Stream(9, fail_at=6), **options)
        with pytest.raises(files.CheckpointError, match=r"only 3 batches.*after 6"):
            harden(small_model(), Stream(3), resume=True, **options)

    def test_unfinished_run_is_not_overwritten(self, tmp_path):
        path = tmp_path / "c"
        broken = [*small_batches(3), "not a batch"]
        options = {"checkpoint": path, "checkpoint_every": 1, "progress": False}
        with pytest.raises(TypeError):
            harden(small_model(), broken, **options)
        kept = path.read_bytes()
        with pytest.raises(files.CheckpointError, match="resume=True goes on"):
            harden(small_model(), small_batches(), **options)
        assert path.read_bytes() == kept

    def test_resume_without_a_file_says_so(self, tmp_path):
        with pytest.raises(files.CheckpointError, match="no checkpoint file at"):
            harden(
                small_model(), small_batches(), checkpoint=tmp_path / "c", resume=True
            )
        with pytest.raises(ValueError, match="resume=True needs checkpoint="):
            harden(small_model(), small_batches(), resume=True)


class TestFiles:
    def test_crash_while_writing_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "c"
        files.save(path, "checkpoint", {"value": 1})
        crash = (
            "import os, sys\n"
            "from fastjac import checkpoint\n"
            "def half(file):\n"
            "    file.write(b'x' * 5000); file.flush()\n"
            "    os.kill(os.getpid(), 9)\n"
            "checkpoint.write_atomic(sys.argv[1], half)\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        code = subprocess.run([sys.executable, "-c", crash, path], env=environment)
        assert code.returncode == -signal.SIGKILL
        assert (tmp_path / "c.tmp").stat().st_size == 5000  # it did crash half-way
        assert files.load(path, "checkpoint")["value"] == 1
        files.save(path, "checkpoint", {"value": 2})
        assert files.load(path, "checkpoint")["value"] == 2
        assert os.listdir(tmp_path) == ["c"]

    def test_full_disk_leaves_the_old_file_and_says_why(self, tmp_path):
        path = tmp_path / "c"
        files.save(path, "checkpoint", {"value": 1})
        fill = (
            "import resource, sys, torch\n"
            "from fastjac import checkpoint\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
            "try:\n"
            "    big = {'value': torch.zeros(1_000_000)}\n"
            "    checkpoint.save(sys.argv[1], 'checkpoint', big)\n"
            "except checkpoint.CheckpointError as error:\n"
            "    print(error)\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            [sys.executable, "-c", fill, path],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "cannot write" in run.stdout and "File too large" in run.stdout
        assert files.load(path, "checkpoint")["value"] == 1
        assert os.listdir(tmp_path) == ["c"]

    def test_damaged_or_foreign_files_are_named(self, tmp_path):
        path = tmp_path / "c"
        files.save(path, "checkpoint", {"value": torch.zeros(1000)})
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(files.CheckpointError, match="it is damaged, cut short"):
            files.load(path, "checkpoint")
        path.write_bytes(b"hello, this is no checkpoint")
        with pytest.raises(files.CheckpointError, match="not written by fastjac"):
            files.load(path, "checkpoint")
        files.save(path, "model", {})
        with pytest.raises(files.CheckpointError, match="but a model file"):
            files.load(path, "checkpoint")
        torch.save({"fastjac": "checkpoint", "version": 99}, path)
        with pytest.raises(files.CheckpointError, match="upgrade fastjac"):
            files.load(path, "checkpoint")

    def test_loading_never_runs_code(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        torch.save({"fastjac": "checkpoint", "version": 1, "x": Evil()}, tmp_path / "c")
        with pytest.raises(files.CheckpointError):
            files.load(tmp_path / "c", "checkpoint")
        assert not (tmp_path / "ran").exists()

    def test_all_generators_are_put_back(self):
        state = files.rng_state()
        first = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
        np.random.randn()
        files.set_rng_state(state)
        again = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
        assert first == again


class TestNonFinite:
    def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(self, tmp_path):
        path = tmp_path / "c"
        batches = small_batches(5)
        batches[3][0][0, 0] = float("nan")
        model = small_model()
        with pytest.raises(NonFiniteLossError, match="loss became nan") as caught:
            harden(
                model,
                batches,
                penalty=None,
                checkpoint=path,
                checkpoint_every=2,
                progress=False,
            )
        assert caught.value.checkpoint == path
        assert f"the last good checkpoint is {path} (step 2)" in str(caught.value)
        assert "epoch 1, step 3" in str(caught.value)
        kept = files.load(path, "checkpoint")
        assert kept["position"]["steps"] == 2
        assert all(w.isfinite().all() for w in kept["model"].values())
        assert all(w.isfinite().all() for w in weights_of(model))

    def test_infinite_weights_are_never_saved(self, tmp_path):
        path = tmp_path / "c"

        class Explodes(torch.optim.SGD):
            steps = 0

            def step(self, closure=None):
                super().step(closure)
                Explodes.steps += 1
                if Explodes.steps == 4:
                    self.param_groups[0]["params"][0].data[0, 0] = float("inf")

        with pytest.raises(NonFiniteLossError, match=r"weight '0\.weight'.*step 2\)"):
            harden(
                small_model(),
                small_batches(),
                optimizer=lambda p: Explodes(p, lr=0.1),
                checkpoint=path,
                checkpoint_every=2,
                progress=False,
            )
        assert files.load(path, "checkpoint")["position"]["steps"] == 2

    @pytest.mark.parametrize("penalty", ["jacobian", "cross-lipschitz", None])
    def test_divergence_stops_with_finite_weights_in_the_checkpoint(
        self, tmp_path, penalty
    ):
        path = tmp_path / "c"
        with pytest.raises(NonFiniteLossError, match="lower the learning rate or lam"):
            harden(
                small_model(),
                small_batches(50),
                penalty=penalty,
                optimizer=lambda p: torch.optim.SGD(p, lr=1e8),
                checkpoint=path,
                checkpoint_every=1,
                progress=False,
            )
        kept = files.load(path, "checkpoint")["model"]
        assert all(w.isfinite().all() for w in kept.values())

    def test_without_checkpoint_the_message_says_so(self):
        x, y = small_batches(1)[0]
        with pytest.raises(
            NonFiniteLossError, match="no checkpoint to go back"
        ) as error:
            train(small_model(), [(x / 0, y)], progress=False)
        assert error.value.checkpoint is None


class TestWhatItDoes:
    @pytest.mark.parametrize("name", ["jacobian", "cross-lipschitz", "input-gradient"])
    def test_a_step_is_the_gradient_of_cross_entropy_plus_penalty(self, name):
        x, y = small_batches(1)[0]
        x, lam = x.double(), 0.3
        model = small_model().double()
        model[2].p = 0.0
        reference = small_model().double()
        reference[2].p = 0.0
        harden(
            model,
            [(x, y)],
            penalty=name,
            lam=lam,
            epochs=1,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
            progress=False,
        )
        inputs = x.clone().requires_grad_()
        z = reference(inputs)

        def gradient(scalar):
            return torch.autograd.grad(scalar, inputs, create_graph=True)[0]

        rows = [gradient(z[:, k].sum()) for k in range(3)]
        if name == "jacobian":
            penalty = sum(row.square().sum() for row in rows).sqrt()
        elif name == "cross-lipschitz":
            penalty = sum((a - b).square().sum() for a in rows for b in rows)
        else:
            penalty = gradient(F.cross_entropy(z, y, reduction="sum")).square().sum()
        (F.cross_entropy(z, y) + lam * penalty).backward()
        for got, parameter in zip(
            model.parameters(), reference.parameters(), strict=True
        ):
            expected = parameter.detach() - 0.5 * parameter.grad
            torch.testing.assert_close(got.detach(), expected, rtol=1e-9, atol=1e-12)

    def test_penalty_and_cross_entropy_share_one_forward_and_dropout_mask(self):
        calls = []
        model = small_model()
        model.register_forward_hook(lambda *_: calls.append(1))
        harden(model, small_batches(4), epochs=1, progress=False)
        assert len(calls) == 4

    def test_penalty_falls_while_hardening(self):
        result = harden(
            small_model(), small_batches(20), lam=0.5, epochs=5, lr=1e-2, progress=False
        )
        penalties = [record.penalty for record in result.history]
        assert penalties[-1] < 0.8 * penalties[0]
        assert result.steps == 100
        assert len(str(result).splitlines()) == 6

    def test_own_penalty_function(self):
        def weight_decay(model, x, y):
            return sum(p.square().sum() for p in model.parameters()), model(x)

        model = small_model()
        before = sum(w.square().sum() for w in weights_of(model))
        harden(
            model,
            small_batches(),
            penalty=weight_decay,
            lam=1.0,
            lr=1e-2,
            progress=False,
        )
        assert sum(w.square().sum() for w in weights_of(model)) < before

    def test_history_holds_the_means_over_the_epoch(self):
        model = small_model()
        model[2].p = 0.0
        batches = small_batches(3)
        with torch.no_grad():
            losses = [F.cross_entropy(model(x), y).item() for x, y in batches]
            hits = sum((model(x).argmax(1) == y).sum().item() for x, y in batches)
        still = torch.optim.SGD(model.parameters(), lr=0.0)
        (record,) = train(
            model, batches, epochs=1, optimizer=still, progress=False
        ).history
        assert record.loss == pytest.approx(np.mean(losses), rel=1e-6)
        assert record.cross_entropy == pytest.approx(np.mean(losses), rel=1e-6)
        assert record.penalty == 0 and record.accuracy == hits / 24

    def test_modes_are_put_back_and_batchnorm_stays_frozen(self):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
        )
        model.train()
        model[3].eval()
        statistics = model[1].running_mean.clone()
        harden(model, small_batches(), progress=False)
        assert torch.equal(model[1].running_mean, statistics)
        assert [m.training for m in model] == [True, True, True, False]
        train(model, small_batches(), epochs=1, progress=False)
        assert not torch.equal(model[1].running_mean, statistics)

    def test_frozen_parameters_stay(self):
        model = small_model()
        model[0].weight.requires_grad_(False)
        before = weights_of(model)
        harden(model, small_batches(), lr=1e-2, progress=False)
        after = weights_of(model)
        assert torch.equal(before[0], after[0]) and not torch.equal(before[2], after[2])
        assert all(p.grad is None for p in model.parameters())

    def test_seed_decides_the_run_and_leaves_the_generators_alone(self):
        def run(seed):
            model = small_model()
            torch.manual_seed(99)
            harden(model, small_batches(), seed=seed, progress=False)
            return weights_of(model), torch.rand(1)

        first, after_first = run(1)
        again, after_again = run(1)
        other, after_other = run(2)
        assert all(map(torch.equal, first, again))
        assert not all(map(torch.equal, first, other))
        torch.manual_seed(99)
        assert after_first == after_again == after_other == torch.rand(1)

    def test_progress_bar_shows_loss_penalty_and_accuracy(self, capsys):
        harden(small_model(), small_batches(), epochs=1, progress=True)
        shown = capsys.readouterr().err
        for word in ("harden 1", "6/6", "loss=", "penalty=", "accuracy="):
            assert word in shown


class TestAdversarial:
    @pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
    def test_share_of_inputs_moves_by_eps(self, share):
        model = small_model()
        x, y = small_batches(1)[0]
        objective = Objective(adversarial=share, eps=0.05)
        moved = objective.perturbed(model.train(), x, y) - x
        touched = moved.abs().amax(1) > 0
        assert touched.sum() == share * len(x)
        torch.testing.assert_close(
            moved[touched].abs(), torch.full_like(moved[touched], 0.05)
        )
        assert model.training and all(p.grad is None for p in model.parameters())

    def test_perturbed_inputs_raise_the_loss_and_keep_the_bounds(self):
        model = small_model().eval()
        x, y = small_batches(1)[0]
        objective = Objective(adversarial=1.0, eps=0.1, bounds=(-1.0, 1.0))
        inside = x.clamp(-1, 1)
        attacked = objective.perturbed(model, inside, y)
        assert attacked.abs().max() <= 1
        assert F.cross_entropy(model(attacked), y) > F.cross_entropy(model(inside), y)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"penalty": "jacobi"}, r"penalty \(='jacobi'\) must be one of 'jacobian'"),
            ({"lam": -1.0}, r"lam \(=-1\.0\) must be at least 0"),
            ({"lam": float("nan")}, r"lam \(=nan\)"),
            ({"epochs": 0}, r"epochs \(=0\) must be a whole number"),
            ({"checkpoint_every": 0}, r"checkpoint_every \(=0\)"),
            ({"adversarial": 1.5}, r"adversarial \(=1\.5\) is the share"),
            ({"adversarial": 0.5, "eps": 0.0}, r"eps \(=0\.0\) must be positive"),
            ({"lr": 0.0}, r"lr \(=0\.0\) must be positive"),
            ({"seed": -1}, r"seed \(=-1\)"),
            ({"resume": "yes"}, r"resume \(='yes'\)"),
            ({"penalty": None, "penalty_options": {"chunk": 1}}, "penalty_options"),
        ],
    )
    def test_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            harden(small_model(), small_batches(), **{"progress": False, **options})

    @pytest.mark.parametrize(
        ("loader", "error", "message"),
        [
            ([], ValueError, "gave no batch in epoch 1"),
            (iter(small_batches(2)), ValueError, "gave no batch in epoch 2"),
            ([torch.zeros(4, 5)], TypeError, "got a Tensor"),
            ([(torch.zeros(4, 5),)], TypeError, r"got a tuple of 1"),
            ([(torch.zeros(4, 5), torch.zeros(4))], ValueError, "torch.float32"),
            (
                [(torch.zeros(4, 5), torch.zeros(4, 3, dtype=torch.long))],
                ValueError,
                r"y \(4, 3\)",
            ),
            (7, TypeError, r"loader \(a int\)"),
        ],
    )
    def test_loaders(self, loader, error, message):
        with pytest.raises(error, match=message):
            harden(small_model(), loader, progress=False)

    def test_model_without_trainable_parameters(self):
        with pytest.raises(ValueError, match="nothing to train"):
            harden(nn.Sequential(nn.Flatten()), small_batches())


def test_interrupt_without_checkpoint_says_that_nothing_was_saved():
    class Interrupting:
        def __iter__(self):
            for i, batch in enumerate(small_batches()):
                if i == 2:
                    signal.raise_signal(signal.SIGINT)
                yield batch

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match="step 3: nothing was saved") as error:
        train(small_model(), Interrupting(), progress=False)
    assert error.value.checkpoint is None
    assert signal.getsignal(signal.SIGINT) is handler

import copy
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from blda_cli.core.losses import cross_entropy
from blda_cli.errors import BldaError
from blda_cli.finetuning.trainer import Trainer
from blda_cli.segmenters.instance_norms import InstanceNorms
from blda_cli.segmenters.norms import hold_norms

PARTS = (slice(2), slice(2, 4))
EVERYTHING = {"host.feature_distance": 0.005, "host.masked_consistency": 1.0, "blda.debias_pseudo_labels": True}


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.student.state_dict().items()}


@pytest.mark.parametrize("method", ["source", "dacs", "blda"])
def test_every_method_learns(project: Any, batches: Callable[..., Any], method: str) -> None:
    values = {"training__method": method, "training__iterations": 60, "training__learning_rate": 5e-3, "blda__tau": 0.1}
    trainer = project.trainer(**values)
    reports = [
        trainer.train_step([batch]) for batch in batches(project, [[2 * n, 2 * n + 1] for n in range(60)], **values)
    ]
    losses = [float(sum(report.losses.values())) for report in reports]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert ("mixed" in reports[0].losses) == (method != "source")
    assert ("source_density" in reports[0].losses) == (method == "blda")
    pixels = 0 if method == "source" else 2 * 32 * 40
    assert float(reports[0].labelled.sum()) == pixels
    assert bool((reports[0].kept <= reports[0].labelled).all())


def test_all_parts_together(project: Any, batches: Callable[..., Any]) -> None:
    values = {key.replace(".", "__"): value for key, value in EVERYTHING.items()}
    trainer = project.trainer(**values, training__iterations=40)
    before = weights(trainer)
    for batch in batches(project, [[0, 1], [2, 3]], **values):
        report = trainer.train_step([batch])
    assert set(report.losses) == {
        *("source", "source_density", "mixed", "mixed_density"),
        *("feature_distance", "masked"),
    }
    assert all(bool(torch.isfinite(one)) for one in report.losses.values())
    assert all(not torch.equal(value, before[name]) for name, value in weights(trainer).items())


def test_the_student_trains_with_its_norms_mixed(normed_project: Any, batches: Callable[..., Any]) -> None:
    """At a learning rate of 0 its losses are those of the network that InstanceNorms runs."""
    values = {"training__method": "dacs", "training__learning_rate": 0.0}
    segmenter = normed_project.segmenter()
    segmenter.mix_norms(0.5)
    trainer = Trainer(segmenter, normed_project.settings(**values), holds_norms=True)
    running = trainer.student.network.get_buffer("encoder.1.running_mean").clone()
    network = normed_project.segmenter().module.train()
    hold_norms(network)
    (batch,) = batches(normed_project, [[0, 1]], **values)
    torch.manual_seed(trainer._seed())
    with InstanceNorms(network, 0.5), torch.no_grad():
        logits = segmenter.forward_logits(batch.source_images, (32, 40), network)
    loss = cross_entropy(logits, batch.source_labels).mean()
    report = trainer.train_step([batch])
    assert float(report.losses["source"]) == pytest.approx(float(loss), rel=1e-6)
    assert torch.equal(trainer.student.network.get_buffer("encoder.1.running_mean"), running)
    assert trainer.exported().norm_weight == 0.5


@pytest.mark.parametrize("held", [False, True])
def test_batch_norms_keep_their_averages_where_told_to(
    normed_project: Any, batches: Callable[..., Any], held: bool
) -> None:
    settings = normed_project.settings(training__method="dacs")
    trainer = Trainer(normed_project.segmenter(), settings, holds_norms=held)
    networks: list[Any] = [trainer.student.network, trainer.teacher.network]
    before = [network.encoder[1].running_mean.clone() for network in networks]
    affine = networks[0].encoder[1].weight.detach().clone()
    for batch in batches(normed_project, [[0, 1], [2, 3]]):
        trainer.train_step([batch])
    assert [network.encoder[1].training for network in networks] == [not held] * 2
    kept = [torch.equal(network.encoder[1].running_mean, one) for network, one in zip(networks, before, strict=True)]
    assert kept == [held] * 2
    assert not torch.equal(networks[0].encoder[1].weight, affine)
    assert networks[0].encoder[0].training


def test_the_learning_rate_warms_up_and_decays(project: Any) -> None:
    trainer = project.trainer(training__iterations=100, training__warmup=10, training__learning_rate=1.0)
    rates = []
    for trainer.step in range(100):
        rates.append(trainer.learning_rate)
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(0.91)
    assert rates[50] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.01)


def test_a_trainer_goes_on_bit_for_bit(project: Any, batches: Callable[..., Any]) -> None:
    values = {key.replace(".", "__"): value for key, value in EVERYTHING.items()}
    drawn = batches(project, [[2 * n, 2 * n + 1] for n in range(6)], **values)
    through, first, second = (project.trainer(**values) for _ in range(3))
    for batch in drawn:
        through.train_step([batch])
    for batch in drawn[:4]:
        first.train_step([batch])
    torch.randn(100)  # whatever else happens to the generators in between
    second.load_state_dict(first.state_dict())
    for batch in drawn[4:]:
        second.train_step([batch])
    assert all(torch.equal(value, weights(through)[name]) for name, value in weights(second).items())
    teachers = (through.teacher.network.state_dict(), second.teacher.network.state_dict())
    assert all(torch.equal(value, teachers[1][name]) for name, value in teachers[0].items())
    banks = (through.objective.state_dict(), second.objective.state_dict())
    assert all(
        torch.equal(value, banks[1]["target"][name]) for name, value in banks[0]["target"].items() if name != "step"
    )


def test_a_damaged_optimizer_cannot_mix_up_parameters(project: Any, batches: Callable[..., Any]) -> None:
    first, second, third = batches(project, [[0, 1], [2, 3], [4, 5]], training__method="dacs")
    trained, resumed = (project.trainer(training__method="dacs") for _ in range(2))
    trained.train_step([first])
    state = copy.deepcopy(trained.state_dict())
    for group in state["optimizer"]["param_groups"]:
        group["params"] = group["params"][::-1]
        group["lr"], group["betas"] = 1e6, (0.0, 0.0)
    resumed.load_state_dict(state)
    for batch in (second, third):
        trained.train_step([batch])
        resumed.train_step([batch])
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(trained).items())


@pytest.mark.parametrize("name", ["step", "exp_avg_sq"])
def test_an_optimizer_below_zero_is_refused(project: Any, batches: Callable[..., Any], name: str) -> None:
    (batch,) = batches(project, [[0, 1]], training__method="dacs")
    trainer = project.trainer(training__method="dacs")
    trainer.train_step([batch])
    state = copy.deepcopy(trainer.state_dict())
    state["optimizer"]["state"][0][name] -= 2
    with pytest.raises(ValueError, match=r"state\.0"):
        trainer.load_state_dict(state)


def test_accumulated_batches_are_one_large_batch(still_project: Any, batches: Callable[..., Any]) -> None:
    project = still_project
    together, apart = (project.trainer(training__method="dacs") for _ in range(2))
    for numbers in ([0, 1, 2, 3], [4, 5, 6, 7]):
        (batch,) = batches(project, [numbers])
        together.train_step([batch])
        # Parts of that batch: a batch drawn by itself pastes the classes that it holds.
        halves = [{one.name: getattr(batch, one.name)[part] for one in fields(batch)} for part in PARTS]
        apart.train_step([replace(batch, **half) for half in halves])
    for name, value in weights(together).items():
        torch.testing.assert_close(value, weights(apart)[name], atol=1e-5, rtol=1e-4)


def test_mixed_precision_is_close(still_project: Any, batches: Callable[..., Any]) -> None:
    batch = batches(still_project, [[0, 1]])
    full, half = (still_project.trainer(training__amp=amp).train_step(batch) for amp in (False, True))
    for name, value in full.losses.items():
        assert float(half.losses[name]) == pytest.approx(float(value), rel=0.05, abs=0.01)
        assert half.losses[name].dtype is torch.float32


def test_the_exported_network_is_a_copy_in_evaluation_mode(project: Any, batches: Callable[..., Any]) -> None:
    trainers = {export: project.trainer(run__export=export) for export in ("teacher", "student")}
    for export, trainer in trainers.items():
        trainer.train_step(batches(project, [[0, 1]]))
        segmenter = trainer.exported()
        network = trainer.teacher.network if export == "teacher" else trainer.student.network
        assert not segmenter.module.training
        assert segmenter.module is not network
        assert trainer.student.training
        state = segmenter.module.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_a_network_that_offers_no_checkpointing_says_so(project: Any) -> None:
    with pytest.raises(BldaError, match="offers neither"):
        project.trainer(training__activation_checkpointing=True)


def test_blda_is_dacs_with_its_correction(project: Any, batches: Callable[..., Any]) -> None:
    chosen = [{"training__method": "blda"}, {"training__method": "dacs", "training__correction": "blda"}]
    one, other = (project.trainer(**values) for values in chosen)
    for trainer, values in zip((one, other), chosen, strict=True):
        trainer.train_step(batches(project, [[0, 1]], **values))
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def test_the_source_alone_can_be_corrected(project: Any, batches: Callable[..., Any]) -> None:
    values = {"training__method": "source", "training__correction": "blda"}
    report = project.trainer(**values).train_step(batches(project, [[0, 1]], **values))
    assert set(report.losses) == {"source", "source_density"}


def test_feature_losses_leave_out_what_has_no_weight(
    project: Any, batches: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"training__method": "dacs", "host__ignore_rows": (10, 10), "host__classmix": False}
    trainer, seen = project.trainer(**values), {}

    def feature_losses(domain: str, outputs: Any, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        seen[domain] = labels
        return {}

    monkeypatch.setattr(trainer.method, "feature_losses", feature_losses)
    (batch,) = batches(project, [[0, 1]], **values)
    trainer.train_step([batch])
    assert torch.equal(seen["source"], batch.source_labels)
    assert bool((seen["target"] == -1)[batch.target_weighed == 0].all())

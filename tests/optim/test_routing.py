"""Every trainable parameter is in exactly one optimizer group and moves; frozen parameters are listed."""

from __future__ import annotations

import pytest
import torch

from jepa_lm.model.roles import matches, parameter_roles
from jepa_lm.optim.routing import freeze, route
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve
from jepa_lm.utils.errors import UserError

VARIANTS = [
    [],
    ["model/bigram=cantor", "model/head=untied"],
    ["model/value_embedding=shared", "model.logit_bias=true"],
    ["model.embedding.factor_dim=16", "model/head=tied_corrected"],
    ["model.embedding.factor_dim=16", "model/head=tied_gelu", "model/softcap=polynomial"],
    ["model.embedding.factor_dim=16"],
    ["model=mamba2"],
    ["model=mamba2", "model/head=untied", "model/bigram=xor", "model.smear_gate=true"],
]


def make_task(small, *overrides) -> LanguageModelTask:
    torch.manual_seed(0)
    clock = ProgressClock(max_steps=10, max_time=None)
    return LanguageModelTask(resolve(small(*overrides)), clock)


def two_steps(task: LanguageModelTask) -> list[str]:
    """Take two steps; return the names of trainable parameters that did not move."""
    optimizer, _ = task.recipe.configure(task, task.clock)
    before = {n: p.detach().clone() for n, p in task.named_parameters()}
    vocab = task.config["model"]["vocab_size"]
    for _ in range(2):
        ids = torch.randint(0, vocab, (8, 33))
        task._losses({"inputs": ids[:, :-1], "targets": ids[:, 1:]}, None)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    return [n for n, p in task.named_parameters() if p.requires_grad and torch.equal(p, before[n])]


@pytest.mark.parametrize("overrides", VARIANTS)
def test_every_parameter_is_in_exactly_one_group(small, overrides):
    task = make_task(small, *overrides)
    optimizer, _ = task.recipe.configure(task, task.clock)
    seen = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(seen) == sorted(id(p) for p in task.parameters())


@pytest.mark.parametrize("overrides", VARIANTS)
def test_every_parameter_moves_within_two_steps(small, overrides):
    assert two_steps(make_task(small, *overrides)) == []


def test_the_published_bigram_start_never_moves(small):
    """#832 starts table and linear at zero. The test above must detect such a saddle."""
    stuck = two_steps(make_task(small, "model.bigram.zero_projection=true"))
    assert set(stuck) == {
        "model.bigram.table.weight",
        "model.bigram.expand.weight",
        "model.bigram.scale",
    }


def test_training_refuses_a_parameter_without_group(small):
    task = make_task(small, "optimizer.groups.vectors.match=[conv]")
    with pytest.raises(UserError, match=r"no group matches model\..*role vector"):
        task.recipe.configure(task, task.clock)


def test_frozen_parameters_are_named_and_stay(small):
    task = make_task(small, "optimizer.freeze=[model.bigram.*]")
    assert task.frozen == [
        "model.bigram.expand.weight",
        "model.bigram.scale",
        "model.bigram.table.weight",
    ]
    before = task.model.bigram.table.weight.clone()
    assert two_steps(task) == []
    assert torch.equal(task.model.bigram.table.weight, before)


def test_freezing_by_role(small):
    task = make_task(small, "optimizer.freeze=[embedding]")
    assert "model.embedding.table.weight" in task.frozen


def test_every_entry_freezes_and_what_is_frozen_needs_no_group():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    assert freeze(model, ["a.weight", "vector"]) == ["a.bias", "a.weight", "b.bias"]
    (group,) = route(model, {"matrices": {"match": ["matrix"], "algorithm": "muon", "lr": 1.0}})
    assert [id(p) for p in group["params"]] == [id(model["b"].weight)]


def test_phases_are_those_of_every_schedule_of_the_optimizer(small):
    both, alone = make_task(small), make_task(small, "optimizer.schedule.muon_momentum=null")
    assert both.recipe.phases().keys() == {"lr", "muon_momentum"}
    assert alone.recipe.phases().keys() == {"lr"}


def test_without_a_schedule_each_group_keeps_its_learning_rate(small):
    task = make_task(small, "optimizer.schedule.lr=null", "trainer.max_steps=4")
    optimizer, scheduler = task.recipe.configure(task, task.clock)
    before = [group["lr"] for group in optimizer.param_groups]
    for _ in range(4):
        task.clock.advance()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == before
    assert before == [group["lr"] for group in route(task, task.recipe.groups)]


def test_a_freeze_that_fits_nothing_is_an_error(small):
    with pytest.raises(UserError, match=r"optimizer\.freeze=bigramm\.\*"):
        make_task(small, "optimizer.freeze=[bigramm.*]")


def test_roles_follow_module_types():
    model = torch.nn.Module()
    model.linear = torch.nn.Linear(3, 4)
    model.table = torch.nn.Embedding(5, 3)
    model.conv = torch.nn.Conv1d(4, 4, 3, groups=4)
    model.gain = torch.nn.Parameter(torch.ones(2, 3))
    model.tied = model.linear
    assert parameter_roles(model) == {
        "gain": "vector",
        "linear.weight": "matrix",
        "linear.bias": "vector",
        "table.weight": "embedding",
        "conv.weight": "conv",
        "conv.bias": "vector",
    }


@pytest.mark.parametrize("entry", ["matrix", "blocks.*.weight", "*mlp*", "blocks.?.mlp.up.weight"])
def test_an_entry_is_a_role_or_a_pattern_of_whole_names(entry):
    assert matches(entry, "blocks.0.mlp.up.weight", "matrix")


@pytest.mark.parametrize("entry", ["mlp", "up.weight", "blocks.0", "mlp.*", "*.mlp", "matri", "B*"])
def test_a_part_of_a_name_or_role_fits_nothing(entry):
    """The rules of the optimizer choose by the same entries as those of quantization."""
    assert not matches(entry, "blocks.0.mlp.up.weight", "matrix")


def test_a_role_is_no_name():
    assert not matches("vector", "vector", "matrix")


def test_first_rule_that_fits_takes_the_parameter():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    rules = {
        "special": {"match": ["b.*"], "algorithm": "adamw", "lr": 1.0},
        "matrices": {"match": ["matrix"], "algorithm": "muon", "lr": 1.0},
        "rest": {"match": ["vector"], "algorithm": "adamw", "lr": 1.0},
    }
    groups = {g["name"]: g["params"] for g in route(model, rules)}
    assert [id(p) for p in groups["special"]] == [id(model["b"].weight), id(model["b"].bias)]
    assert [id(p) for p in groups["matrices"]] == [id(model["a"].weight)]
    assert [id(p) for p in groups["rest"]] == [id(model["a"].bias)]


MUON, BIGRAM = "matrices", ("model.bigram.expand.weight", "model.value_embedding.expand.weight")
ROUTES = {
    "pr1581_span_vicreg": {"objective.predictor.up.weight": MUON, "objective.context.view.vector": "vectors"},
    "pr1243_jepardy": {**dict.fromkeys(BIGRAM, "vectors"), "objective.predictor.down.weight": MUON},
    "pr832_byte_chunk": {BIGRAM[0]: MUON, "model.injector.inject.weight": "auxiliary"},
    "pr903_lewm_bpe": {"objective.predictor.parts.out.linear.weight": MUON, "model.head.reduce.weight": MUON,
                       "model.embedding.expand.weight": MUON, "model.logit_bias": "vectors",
                       "model.backbone.blocks.0.mixer.conv1d.weight": "vectors"},
    "pr1196_llm_jepa": {"objective.predictor.up.weight": "auxiliary"},
}  # fmt: skip
"""Parameters that each published system routes differently. In all of them matrices of the blocks go to Muon,
tables to the embeddings' AdamW, and gains, mixes, biases and skip weights to the vectors' AdamW."""


@pytest.mark.parametrize("preset", ROUTES)
def test_parameters_of_a_published_system_go_where_they_went(compose, preset):
    words = (f"experiment={preset}", "debug=tiny")
    task = LanguageModelTask(
        resolve(compose("train", *words)), ProgressClock(max_steps=1, max_time=None)
    )
    optimizer, _ = task.recipe.configure(task, task.clock)
    names = {id(p): name for name, p in task.named_parameters()}
    found = {names[id(p)]: g["name"] for g in optimizer.param_groups for p in g["params"]}
    assert ROUTES[preset].items() <= found.items()
    for name, group in found.items():
        if name.endswith("table.weight"):
            assert group == "embeddings", name
        elif name.startswith("model.backbone"):
            is_matrix = name.endswith("weight") and "norm" not in name and "conv1d" not in name
            assert group == (MUON if is_matrix else "vectors"), name


def test_a_pattern_wins_over_a_role_and_the_first_group_among_equals():
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    )
    rules = {
        "a": {"match": ["matrix"]},
        "b": {"match": ["1.*"]},
        "c": {"match": ["1.weight", "matrix"]},
    }
    found = {g["name"]: [id(p) for p in g["params"]] for g in route(model, rules)}
    assert found == {"a": [id(model[0].weight)], "b": [id(model[1].weight)]}

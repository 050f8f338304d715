"""Checks that the parts of an objective fit each other, the model and the data.

All checks run before data is read; each raises UserError with the setting to change.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from jepa_lm.model import LanguageModel
from jepa_lm.objective.alignment import SamePosition
from jepa_lm.objective.batch_target import BatchTarget
from jepa_lm.objective.distances import SoftCrossEntropy, Sum
from jepa_lm.objective.head_kl import HeadKL
from jepa_lm.objective.latent_prediction import LatentPrediction
from jepa_lm.objective.regularizers import Regularizer
from jepa_lm.objective.step_context import StepContext
from jepa_lm.objective.taps import INJECTOR
from jepa_lm.objective.targets import EmbeddingTable, SamePass
from jepa_lm.objective.token_distances import TokenCrossEntropy
from jepa_lm.utils.errors import UserError

REMEDIES = {
    "jepa.context.tap": "set jepa.context.tap=final, or add a predictor",
    "jepa.target.tap": "set jepa.target.tap=final",
    "jepa.target.project": "set jepa.target.project=false",
}
"""What to do about latents that a head cannot read; elsewhere, to leave the part out."""
ROWS = 2
"""Rows of the batch used to check shapes."""
_fitting: dict[str, dict[str, int]] = {}
"""What `check_shapes` found for the configs of this process: jobs of a sweep repeat them, at half a second
each."""


def check_composition(
    objective: LatentPrediction, model: LanguageModel, seq_len: int, *, made_from: Any
) -> None:
    """Check that the parts fit each other, the model and the data.

    Args:
        objective: after `prepare`. made_from: the configs that objective and model were built from.

    Raises:
        UserError: naming the setting that does not fit.
    """
    check_distance(objective)
    check_laws(objective)
    check_itself(objective)
    check_length(objective, model, seq_len)
    check_hinges(objective, model)
    check_draws(objective)
    key = json.dumps([made_from, seq_len], sort_keys=True)
    if key not in _fitting:
        _fitting[key] = check_shapes(objective, model, seq_len)
    objective.latents = dict(_fitting[key])


def check_distance(objective: LatentPrediction) -> None:
    """Check that the distance takes what it is given, and compares something."""
    try:
        inspect.signature(objective.distance.forward).bind(None, None, None)
    except TypeError as error:
        raise UserError(
            f"jepa.distance: {type(objective.distance).__name__}.forward takes prediction, target and "
            "comparison"
        ) from error
    own = getattr(objective.target, "temperature", 1.0)
    if own != 1 and any(isinstance(part, HeadKL) for part in objective.distance.modules()):
        raise UserError(
            f"jepa.target.path: this teacher was exported with a temperature of {own:g}, which its law would "
            "be without; name its checkpoint, or an export with temperature=1"
        )
    if not isinstance(objective.distance, Sum):
        return
    levels, known = objective.distance.levels, getattr(objective.alignment, "alignments", {})
    if unknown := sorted(set(levels.values()) - set(known)):
        raise UserError(
            f"jepa.distance.levels={levels}: jepa.alignment has no level {', '.join(unknown)}; it has "
            f"{', '.join(known) or 'none'}"
        )
    if not any(objective.distance.weights.values()):
        raise UserError(
            "jepa.distance.weights: all are 0; for the control set jepa.weight=0, for regularizers alone "
            "jepa.prediction_weight=0"
        )


def check_itself(objective: LatentPrediction) -> None:
    """Check that no latent is its own target, at a distance of 0 for ever."""
    context, target = objective.context, objective.target
    one_pass = type(target) is SamePass and context.view is None and context.tap == target.tap
    as_it_is = target.normalisation is target.pooling is context.pooling is None
    projected_alike = objective.projector is None or target.project
    alone = objective.predictor is None and type(objective.alignment) is SamePosition
    if one_pass and as_it_is and projected_alike and alone:
        raise UserError(
            "jepa: each latent would be its own target (jepa.target and jepa.context read one tap of one "
            "pass at the same position); add a predictor, an offset, a view or another tap"
        )


def check_laws(objective: LatentPrediction) -> None:
    """Check that what a distance takes for a law, or has the head make one of, can be one."""
    target, kinds = objective.target, _kinds(objective.distance)
    changed = objective.normalisation is not None or target.normalisation is not None
    if _first(kinds, SoftCrossEntropy) and (changed or not target.gives_laws):
        what = "normalised targets are none" if changed else f"{type(target).__name__} gives none"
        raise UserError(
            f"jepa.distance: SoftCrossEntropy takes laws, and {what}; BatchTarget gives those of data=hmm as "
            "they are"
        )
    reader = _first(kinds, HeadKL) or _first(kinds, TokenCrossEntropy)
    if reader is None:
        return
    context, projector = objective.context, objective.projector
    changes: dict[str, Any] = {"jepa.normalisation": objective.normalisation}
    if objective.predictor is None:
        changes["jepa.context.tap"] = _unless_final(context.tap)
        changes |= {"jepa.projector": projector, "jepa.context.pooling": context.pooling}
    if issubclass(reader, HeadKL):  # which reads targets, too
        changes["jepa.target.tap"] = _unless_final(target.tap)
        changes["jepa.target.normalisation"] = target.normalisation
        changes["jepa.target.pooling"] = target.pooling
        changes["jepa.target.project"] = (
            "true" if target.project and projector is not None else None
        )
    for key, value in changes.items():
        if value is not None:
            told = value if isinstance(value, str | int) else type(value).__name__
            raise UserError(
                f"{key}={told}: {reader.__name__} reads latents by the head, which takes final hidden states "
                f"as they are; {REMEDIES.get(key, f'set {key}=null')}"
            )


def _unless_final(tap: Any) -> Any:
    return None if tap == "final" else tap


def _first(kinds: Iterable[type], wanted: type) -> type | None:
    return next((kind for kind in kinds if issubclass(kind, wanted)), None)


def _kinds(distance: nn.Module) -> list[type[nn.Module]]:
    """Return the kinds of distances that have a weight."""
    if not isinstance(distance, Sum):
        return [type(distance)]
    return [
        kind
        for name, part in distance.distances.items()
        if distance.weights[name]
        for kind in _kinds(part)
    ]


def check_length(objective: LatentPrediction, model: LanguageModel, seq_len: int) -> None:
    """Check that views, taps, pooling and alignment fit the model and sequences of this length."""
    objective.context.check(model, seq_len)
    objective.target.check(model, seq_len)
    reach, tapped = objective.reach, objective.context.main_taps(model)
    if reach is not None and tapped and max(tapped) < model.layers - reach:
        raise UserError(
            f"jepa.reach={reach}: stops gradients above jepa.context.tap={objective.context.tap}, so "
            "no part of the trunk would be trained; raise jepa.reach or tap a later block"
        )
    positions = seq_len
    for side, tap in (("context", objective.context.tap), ("target", objective.target.tap)):
        if model.injector is not None and str(tap).startswith(INJECTOR):
            chunk = model.injector.chunk
            positions = seq_len // chunk
            if not positions:
                raise UserError(
                    f"jepa.{side}.tap={tap}: data.seq_len={seq_len} holds no whole chunk of "
                    f"model.injector.chunk={chunk} positions; set data.seq_len to {chunk} or more"
                )
    pooling = objective.context.pooling
    objective.alignment.check(positions if pooling is None else pooling.latents(positions))


def check_hinges(objective: LatentPrediction, model: LanguageModel) -> None:
    """Check that no hinge asks for a standard deviation that a normalised tensor cannot reach."""
    for name, part in objective.regularizers.items():
        assert isinstance(part, Regularizer)
        limit = _reachable_std(objective, model, part.tensor)
        if part.weight and part.gamma is not None and limit is not None and part.gamma > limit:
            raise UserError(
                f"jepa.regularizers.{name}.gamma={part.gamma:g}: can never be reached; {part.tensor} is "
                f"normalised, so its dims together have a std of at most {limit:.4g}"
            )


def _reachable_std(objective: LatentPrediction, model: LanguageModel, tensor: str) -> float | None:
    """Return the largest std that all dims of a normalised tensor can have; None if it is unbounded."""
    projector, predictor = objective.projector, objective.predictor
    projected = None if projector is None else projector.out_dim
    if tensor == "normed_prediction" and objective.normalisation is not None:
        width = (predictor and predictor.out_dim) or projected or model.dim
        return objective.normalisation.reachable_std(width)
    if tensor == "target":
        target = objective.target
        if target.normalisation is not None:
            own = projected if target.project else None
            return target.normalisation.reachable_std(own or target.width(model))
        is_normed = target.tap == "final" and not isinstance(target, EmbeddingTable | BatchTarget)
        return 1.0 if is_normed and not (projector and target.project) else None
    if tensor == "both" or (predictor is not None and tensor != "context"):
        return None
    return 1.0 if objective.context.tap == "final" and projector is None else None


def check_draws(objective: LatentPrediction) -> None:
    """Check that no joint sample mixes latents of different positions from different ranks."""
    if not objective.global_statistics or objective.draws == "shared":
        return
    compares = any(getattr(part, "compares_rows", False) for part in objective.distance.modules())
    if compares and objective.alignment.needs_mask:
        raise UserError(
            f"jepa.draws={objective.draws}: ranks mask different positions, so their numbers of candidates "
            "for jepa.distance would differ with jepa.global_statistics=true; set jepa.draws=shared"
        )
    for name, part in objective.regularizers.items():
        assert isinstance(part, Regularizer)
        if part.per_step and part.tensor != "context" and objective.alignment.needs_mask:
            raise UserError(
                f"jepa.draws={objective.draws}: ranks mask different positions, so jepa.regularizers.{name} "
                f"has no time steps in common for jepa.global_statistics=true; "
                f"set jepa.draws=shared or jepa.regularizers.{name}.per_step=false"
            )


def check_start(objective: LatentPrediction) -> None:
    """Check that no trained predictor starts at zero where the gradient at zero explodes (#1243)."""
    predictor = objective.predictor
    if predictor is None or not predictor.starts_at_zero:
        return
    parts = (objective.normalisation, objective.distance)
    fragile = any(getattr(part, "fragile_at_zero", False) for part in parts)
    if fragile and any(p.requires_grad for p in predictor.parameters()):
        raise UserError(
            "jepa.predictor.output_start=zero: a zero vector has no direction, so this normalisation "
            "multiplies its gradient by 3e3 (RMS) to 1e9 (L2); set output_start=orthogonal, or freeze the "
            "predictor with optimizer.freeze=[objective.predictor.*]"
        )


def check_shapes(objective: LatentPrediction, model: LanguageModel, seq_len: int) -> dict[str, int]:
    """Check that the widths of all parts fit, by running the loss on PyTorch's meta device.

    Returns:
        Latents in a row of each tensor that a regularizer reads, except where draws decide.
    """
    known, asked = (
        getattr(part, "offsets", None) for part in (objective.predictor, objective.alignment)
    )
    if known is not None and known != len(asked or []):
        raise UserError(
            f"jepa.predictor.offsets={known}: jepa.alignment.offsets={asked}, make their number equal"
        )
    objective, model = copy.deepcopy(objective).to("meta"), copy.deepcopy(model).to("meta")
    inputs = torch.zeros(ROWS, seq_len, dtype=torch.long, device="meta")
    step_context = StepContext.at_start()
    try:
        with torch.no_grad():
            encoded = model.encode(model.embed(inputs), *objective.main_needs(model))
            latents = objective.compare(model, objective.stand_in(inputs), encoded, step_context)
            own_widths = not getattr(objective.distance, "needs_equal_widths", True)
            for pair in latents.pairs:
                compared = 2 if own_widths else 3  # dimensions of [B, N, D]
                if pair.prediction.shape[:compared] != pair.target.shape[:compared]:
                    raise UserError(
                        f"jepa: predictions are {_shape(pair.prediction)}, their targets "
                        f"{_shape(pair.target)}; make pooling and widths of both sides equal"
                    )
            objective.losses_of(latents, step_context, all_of_them=True)
        read = {part.tensor for part in objective.regularizers.values()}
        fixed = {"context", *(() if objective.alignment.needs_mask else read)}
        return {place: latents.at(place).shape[1] for place in fixed}
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"jepa: the widths of its parts do not fit each other ({reason})"
        ) from error


def _shape(x: torch.Tensor) -> str:
    return f"{x.shape[1]} latents of width {x.shape[2]}"

"""What a step of the item tower learns: which part of a history predicts which, among which items, by which loss.

Random draws take torch's global generator, which the trainer sets for each step.

Shape suffixes: B users, L entries of a history (item -1 is padding, anywhere), I items, C items of a step.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Drawn:
    """A history cut into what is known and what must be predicted. Each user has some of both.

    Attributes:
        items: (B, L) places in the catalogue, -1 for padding.
        inputs: (B, L) share of each entry in the vector of its user; rows sum to 1.
        targets: (B, L) share of each entry in the loss of its user; rows sum to 1.
    """

    items: torch.Tensor
    inputs: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True, slots=True)
class StepItems:
    """The items that a step encodes.

    Attributes:
        places: (C,) places in the catalogue.
        column: (I,) the place of each item among them, -1 for the others.
        correction: (C,) subtracted from the logits of negatives: log of the chance that a step samples the item;
            ``inf`` for items that are here for the sake of a history alone.
    """

    places: torch.Tensor
    column: torch.Tensor
    correction: torch.Tensor

    def spread(self, drawn: Drawn, values_BL: torch.Tensor) -> torch.Tensor:
        """Return the values of the entries at the items of the step, (B, C), those of one item summed."""
        columns_BL = self.column.to(drawn.items.device)[drawn.items.clamp(min=0)].clamp(min=0)
        spread_BC = values_BL.new_zeros(len(values_BL), len(self.places))
        return spread_BC.scatter_add_(1, columns_BL, values_BL.where(drawn.items >= 0, 0))


def draw_evenly(trained_items: torch.Tensor, num_items: int, count: int | None) -> StepItems:
    """Draw some of the items that occur in training, or take all; what never had a chance is no negative.

    A softmax over an even sample, for the targets within it, learns what one over all items does (McFadden 1978).
    """
    places = trained_items
    if count is not None and count < len(trained_items):
        places = trained_items[torch.randperm(len(trained_items))[:count]].sort().values
    return StepItems(places, _columns(places, num_items), torch.zeros(len(places)))


def trained_evenly(shares_I: torch.Tensor) -> torch.Tensor:
    """Return the same chance for each item that has a share of the training interactions, (I,)."""
    trained_I = (shares_I > 0).to(shares_I.dtype)
    return trained_I / trained_I.sum()


def sample_negatives(history_BL: torch.Tensor, chances_I: torch.Tensor, count: int) -> StepItems:
    """Draw negatives by their chances, and add all items of the histories."""
    negatives = torch.unique(torch.multinomial(chances_I, count, replacement=True))
    places = torch.unique(torch.cat([history_BL[history_BL >= 0].cpu(), negatives]))
    listed = -torch.expm1(count * torch.log1p(-chances_I[places].clamp(max=1 - 1e-9)))  # chance to be drawn at all
    correction = torch.where(torch.isin(places, negatives), listed.log(), torch.inf).float()
    return StepItems(places, _columns(places, len(chances_I)), correction)


def within(history_BL: torch.Tensor, weights_BL: torch.Tensor, items: StepItems) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the histories without what is not among the items, and only those that keep two entries, (b, L)."""
    kept_BL = (history_BL >= 0) & (items.column.to(history_BL.device)[history_BL.clamp(min=0)] >= 0)
    users = kept_BL.sum(dim=1) >= 2
    return history_BL.where(kept_BL, -1)[users], (weights_BL * kept_BL)[users]


def draw_targets(history_BL: torch.Tensor, weights_BL: torch.Tensor, objective: str, recency: float | None) -> Drawn:
    """Cut each history, of two entries or more, at random.

    Args:
        history_BL: items, oldest first, -1 for padding.
        weights_BL: how much each entry counts; 0 for padding.
        objective: ``rest-of-history``: a part of random size and any entries is known, and the rest are targets;
            ``next-item``: what is before a random place is known, and the entry there is the target.
        recency: entries of a known part after which one counts 1/e as much.
    """
    real_BL = history_BL >= 0
    count_B1 = real_BL.sum(dim=1, keepdim=True)
    size_B1 = (torch.rand(len(history_BL), 1) * (count_B1.cpu() - 1)).long().to(history_BL.device) + 1  # 1 to n - 1
    place_BL = torch.cumsum(real_BL, dim=1) - 1  # 0 for the oldest, -1 for padding
    if objective == "rest-of-history":
        keys_BL = torch.rand(history_BL.shape).to(history_BL.device).masked_fill(~real_BL, 2.0)
        rank_BL = keys_BL.argsort(dim=1).argsort(dim=1)
        known_BL = real_BL & (rank_BL < size_B1)
        target_BL = real_BL & ~known_BL
    else:
        known_BL = real_BL & (place_BL < size_B1)
        target_BL = real_BL & (place_BL == size_B1)
    inputs_BL = weights_BL * known_BL
    if recency is not None:
        later_BL = known_BL.sum(dim=1, keepdim=True) - torch.cumsum(known_BL, dim=1)  # known entries after each
        inputs_BL = inputs_BL * torch.exp(-later_BL / recency)
    return Drawn(
        history_BL, functional.normalize(inputs_BL, p=1.0), functional.normalize(weights_BL * target_BL, p=1.0)
    )


def softmax_loss(logits_BC: torch.Tensor, drawn: Drawn, items: StepItems) -> torch.Tensor:
    """Return the cross-entropy of the targets, summed over users: one softmax a user, without its other items.

    Sampled negatives are corrected by the chance that they are drawn, targets are not, since they are always there
    (arXiv 2507.09331).
    """
    targets_BC = items.spread(drawn, drawn.targets)
    negative_BC = logits_BC - items.correction.to(logits_BC.device)
    logits_BC = torch.where(targets_BC > 0, logits_BC, negative_BC)
    chosen_BC = items.spread(drawn, (drawn.items >= 0).float()) > 0
    logits_BC = logits_BC.masked_fill(chosen_BC & (targets_BC == 0), -torch.inf)
    log_shares_BC = functional.log_softmax(logits_BC, dim=1)
    return -(targets_BC * log_shares_BC.where(targets_BC > 0, 0)).sum()


def pair_loss(logits_BC: torch.Tensor, drawn: Drawn, items: StepItems) -> torch.Tensor:
    """Return how little each target is above one random negative that its user did not choose, summed over users."""
    chosen_BC = items.spread(drawn, (drawn.items >= 0).float()) > 0
    allowed_BC = torch.isfinite(items.correction).to(logits_BC.device) & ~chosen_BC
    targets_BC = items.spread(drawn, drawn.targets)
    keys_BC = torch.rand(logits_BC.shape).to(logits_BC.device).masked_fill(~allowed_BC, -1.0)
    order_BC = keys_BC.argsort(dim=1, descending=True)
    available_B1 = allowed_BC.sum(dim=1, keepdim=True)
    # The n-th target of a user meets its n-th negative, from the first again where these are fewer.
    number_BC = (torch.cumsum(targets_BC > 0, dim=1) - 1).clamp(min=0) % available_B1.clamp(min=1)
    against_BC = logits_BC.gather(1, order_BC.gather(1, number_BC))
    losses_BC = -functional.logsigmoid(logits_BC - against_BC) * (available_B1 > 0)
    return (targets_BC * losses_BC).sum()


def _columns(places: torch.Tensor, num_items: int) -> torch.Tensor:
    column = torch.full((num_items,), -1)
    column[places] = torch.arange(len(places))
    return column

"""The Hub, as far as it gets something from us: the model card, and the push of a finished run."""

from hftoolkit.hub.card import hub_id, write_card, write_policy_card, write_recommender_card
from hftoolkit.hub.push import publish, push
from hftoolkit.hub.repository import announce

__all__ = ["announce", "hub_id", "publish", "push", "write_card", "write_policy_card", "write_recommender_card"]

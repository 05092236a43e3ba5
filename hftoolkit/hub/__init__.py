"""The Hub, as far as it gets something from us: the model card, and the push of a finished run."""

from hftoolkit.hub.card import hub_id, hub_id_of, write_card, write_policy_card, write_recommender_card
from hftoolkit.hub.push import push
from hftoolkit.hub.repository import announce

__all__ = ["announce", "hub_id", "hub_id_of", "push", "write_card", "write_policy_card", "write_recommender_card"]

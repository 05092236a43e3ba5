"""The Hub, as far as it gets something from us: the model card, and the push of a finished run."""

from hftoolkit.hub.card import hub_id, write_card, write_policy_card
from hftoolkit.hub.push import push
from hftoolkit.hub.repository import announce

__all__ = ["announce", "hub_id", "push", "write_card", "write_policy_card"]

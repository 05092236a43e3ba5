"""The Hub, as far as it gets something from us: the model card, and the push of a run, finished or on its way."""

from hftoolkit.hub.background import BackgroundPushes
from hftoolkit.hub.card import (
    hub_id,
    write_card,
    write_policy_card,
    write_recommender_card,
    write_unfinished_card,
)
from hftoolkit.hub.push import publish, push, push_unfinished
from hftoolkit.hub.repository import announce

__all__ = [
    "BackgroundPushes",
    "announce",
    "hub_id",
    "publish",
    "push",
    "push_unfinished",
    "write_card",
    "write_policy_card",
    "write_recommender_card",
    "write_unfinished_card",
]

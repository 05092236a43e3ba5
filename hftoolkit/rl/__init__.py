"""Reinforcement learning: DQN and its tabular ancestors. dqn.py is the algorithm; the rest is what it stands on."""

from importlib.util import find_spec

from hftoolkit.errors import EnvironmentFault

INSTALL = "type: pip install 'hftoolkit[rl]' (in a clone: bash scripts/install.sh rl)"

if find_spec("gymnasium") is None:
    raise EnvironmentFault(f"rl needs gymnasium; {INSTALL}")

"""What changes in the course of a run, as functions of the environment steps done over all environments."""

from hftoolkit.recipe import Algorithm, Dqn


def epsilon_at(section: Algorithm, step: int, total_steps: int) -> float:
    """Return the probability of a random action after this many environment steps."""
    progress = min(1.0, step / (section.epsilon_fraction * total_steps))
    return (1 - progress) * section.epsilon_start + progress * section.epsilon_end


def learning_rate_at(section: Algorithm, step: int, total_steps: int) -> float:
    """Return the learning rate after this many environment steps."""
    if section.schedule == "constant":
        return section.learning_rate
    return section.learning_rate * max(0.0, 1 - step / total_steps)


def importance_exponent_at(section: Dqn, step: int, total_steps: int) -> float:
    """Return beta of prioritized replay, which rises to 1 at the end of the run."""
    return 1 - (1 - section.importance_exponent) * max(0.0, 1 - step / total_steps)

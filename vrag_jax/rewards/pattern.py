"""Pattern reward: did the trajectory keep to the form it was asked for?"""

from vrag_jax.rewards.registry import ScoredEpisode, reward


@reward('pattern')
def pattern(trajectory: ScoredEpisode) -> float:
    """Checks the actions of a trajectory, never text with observations in it.

    Args:
      trajectory: with an action a turn, as the environment carried it out ('invalid' where it
        could not).

    Returns:
      1.0 if every turn has a thought and a valid action, the last turn and no
      other answers, something was searched for, and no region was selected
      before the first search; else 0.0.
    """
    actions = [turn.action for turn in trajectory.turns]
    kinds = [action.kind for action in actions]
    if 'invalid' in kinds or not all(action.thought for action in actions):
        return 0.0
    if 'search' not in kinds or 'bbox' in kinds[:kinds.index('search')]:
        return 0.0
    answers_once_at_end = kinds[-1] == 'answer' and kinds.count('answer') == 1
    return float(answers_once_at_end)

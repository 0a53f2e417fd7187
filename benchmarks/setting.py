"""What the measurements share: the tiny config's world, and a trained policy of it."""

import dataclasses
from importlib import import_module
from pathlib import Path

import jax
import numpy as np

from vrag_jax.config import parse
from vrag_jax.data.records import Question
from vrag_jax.models import hf_checkpoint
from vrag_jax.models.parameters import Params, flat_params
from vrag_jax.parallel.sharding import tree_shardings
from vrag_jax.rollout.driver import episode_seed
from vrag_jax.tasks.settings import RunConfig
from vrag_jax.tasks.workspace import Workspace


@dataclasses.dataclass(frozen=True)
class Setting:
    """A run of `configs/tiny.py`.

    Attributes:
      space: its workspace.
      questions: grouped: each question `group_size` times.
      seeds: of the episodes.
    """

    space: Workspace
    questions: list[Question]
    seeds: list[int]


def open_setting(workdir: str, prompts: int = 32, group_size: int = 5, **sections) -> Setting:
    """Opens a finished run of the tiny config.

    Args:
      workdir: of `make run`.
      prompts: validation questions.
      group_size: episodes of each.
      **sections: changes of sections of the config, by name.
    """
    config = import_module('configs.tiny').get_config()
    for section, changes in sections.items():
        config[section].update(changes)
    if not (Path(workdir) / 'policy').is_dir():
        raise SystemExit(f'{workdir}: no finished run here; `make run` makes one')
    space = Workspace(parse(RunConfig, config), Path(workdir))
    questions = space.corpus.questions['validation'][:prompts]
    grouped = [question for question in questions for _ in range(group_size)]
    return Setting(space, grouped, [episode_seed('benchmark', i) for i in range(len(grouped))])


def load_policy(setting: Setting) -> Params:
    """Returns the exported weights, on the mesh."""
    space = setting.space
    model = hf_checkpoint.load(space.workdir / 'policy', space.model_config)
    params = dict(flat_params(model)[1])
    return jax.device_put(params, tree_shardings(params, space.mesh))


def sampled_runs(trajectory) -> list[list[int]]:
    """Token ids of each sampled turn."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], trajectory.loss_mask, [0]]).astype(int)))
    return [trajectory.tokens[a:b].tolist() for a, b in edges.reshape(-1, 2)]

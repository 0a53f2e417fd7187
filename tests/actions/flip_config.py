"""The small loop with two more actions: one of the package, one from outside."""

from ml_collections import ConfigDict

from tests.actions import flip_action  # noqa: F401 (adds <flip>)
from tests.tasks import small_loop


def get_config() -> ConfigDict:
    config = small_loop.get_config()
    config.actions = ('search', 'bbox', 'rotate', 'flip', 'answer')
    config.prompt.fallback = 'Do one of these:\n{actions}\n{question}'
    config.messages.invalid = '{reason}! {actions}.'
    return config

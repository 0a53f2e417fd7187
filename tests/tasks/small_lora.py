"""The small loop after pretraining, of which adapters alone are trained, on an 8-bit base."""

from ml_collections import ConfigDict

from tests.tasks import small_loop


def get_config() -> ConfigDict:
    config = small_loop.get_config()
    config.policy.update({
        'param_dtype': 'float32', 'export_dtype': 'float32', 'quantization': 'int8',
        'lora': {'rank': 4, 'alpha': 8.0, 'dropout': 0.1,
                 'targets': ('q_proj', 'v_proj', 'up_proj')}})
    config.pretrain.stages = ()
    config.grpo.learner.lr = 1e-3
    return config

"""Makes the parity goldens with transformers in torch.

Needs torch, transformers and PEFT, neither jax nor this package; from the repository:

    python -m tests.models.make_goldens [case ...]
"""

import json
import sys

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

from tests.models.golden_cases import (
    ADAPTED,
    ADAPTER,
    CASES,
    GOLDENS,
    PUBLISHED_YARN,
    Case,
    gradient_sample,
    weight,
)

CLASSES = {'qwen2_5_vl': (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
           'qwen2_vl': (Qwen2VLConfig, Qwen2VLForConditionalGeneration)}


def published(name: str) -> str:
    """The name of a tensor in the published checkpoints."""
    return name.replace('model.language_model.', 'model.').replace('model.visual.', 'visual.')


def build(case: Case) -> PreTrainedModel:
    """The case's model in float32 with its seeded weights."""
    config_class, model_class = CLASSES[case.family]
    config = config_class(**case.hf_config())
    config._attn_implementation = 'eager'
    model = model_class(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(
                weight(case, published(name), tuple(parameter.shape))))
    return model


def run(case: Case) -> dict[str, np.ndarray]:
    """Logits, positions, features and gradient samples of a case."""
    model = build(case)
    tokens, real = (torch.from_numpy(x) for x in case.batch())
    inputs = dict(
        input_ids=tokens.long(), attention_mask=real.long(),
        mm_token_type_ids=(tokens == model.config.image_token_id).int(),
        image_grid_thw=torch.tensor(case.grids))
    pixels = torch.from_numpy(np.concatenate(case.pixels()))
    logits = model(**inputs, pixel_values=pixels).logits
    positions, _ = model.model.get_rope_index(**inputs)
    features = model.model.get_image_features(pixels, inputs['image_grid_thw']).pooler_output

    mask = torch.from_numpy(case.loss_mask())
    logprobs = torch.log_softmax(logits[:, :-1], dim=-1)
    chosen = logprobs.gather(-1, inputs['input_ids'][:, 1:, None])[..., 0]
    loss = -(chosen * mask[:, :-1]).sum() / mask.sum()
    loss.backward()
    gradients = {published(name): parameter.grad.numpy()
                 for name, parameter in model.named_parameters()}
    return {
        'logits': logits.detach().numpy()[real.numpy()],
        'features': torch.cat(features).detach().numpy(),
        'position_ids': positions.numpy().astype(np.int32),
        'loss': loss.detach().numpy(),
        'shapes': np.array(json.dumps({k: v.shape for k, v in gradients.items()})),
        **{f'gradient:{name}': gradient_sample(g) for name, g in gradients.items()},
    }


def adapted(case: Case, folder: str) -> np.ndarray:
    """Saves random adapters of a case with PEFT; returns the logits that they give."""
    targets = '|'.join(ADAPTER['targets'])
    model = get_peft_model(build(case), LoraConfig(
        r=ADAPTER['rank'], lora_alpha=ADAPTER['alpha'], lora_dropout=0.1,
        target_modules=rf'.*language_model.*\.({targets})')).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'lora_' in name:
                parameter.copy_(torch.from_numpy(weight(case, name, tuple(parameter.shape))))
    tokens, real = (torch.from_numpy(x) for x in case.batch())
    logits = model(
        input_ids=tokens.long(), attention_mask=real.long(),
        mm_token_type_ids=(tokens == model.config.image_token_id).int(),
        image_grid_thw=torch.tensor(case.grids),
        pixel_values=torch.from_numpy(np.concatenate(case.pixels()))).logits
    model.save_pretrained(GOLDENS / folder)
    (GOLDENS / folder / 'README.md').unlink(missing_ok=True)
    return logits.detach().numpy()[real.numpy()]


def published_yarn() -> dict[str, np.ndarray]:
    """Frequencies, and the factor of cosines and sines, of the 7B in long contexts."""
    rotary = Qwen2_5_VLRotaryEmbedding(Qwen2_5_VLConfig(
        hidden_size=3584, num_attention_heads=28, rope_theta=1e6,
        max_position_embeddings=128000, rope_scaling=dict(PUBLISHED_YARN)).text_config)
    return {'published_frequencies': rotary.inv_freq.numpy(),
            'published_scale': np.float32(rotary.attention_scaling)}


def main():
    GOLDENS.mkdir(exist_ok=True)
    names = sys.argv[1:]
    for case in CASES:
        if names and case.name not in names:
            continue
        golden = run(case)
        if case.yarn:
            golden |= published_yarn()
        np.savez_compressed(GOLDENS / f'{case.name}.npz', **golden)
        print(case.name, 'logits', golden['logits'].shape, 'std', golden['logits'].std(),
              'loss', golden['loss'])
    for folder, case in ADAPTED.items():
        if names and case.name not in names:
            continue
        logits = adapted(case, folder)
        np.savez_compressed(GOLDENS / folder / 'logits.npz', logits=logits)
        print(folder, 'logits', logits.shape, 'std', logits.std())


if __name__ == '__main__':
    main()

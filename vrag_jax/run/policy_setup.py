"""The policy of a config: sizes, structure, first weights, and where they lie."""

import dataclasses
import functools
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from vrag_jax.config import ConfigError
from vrag_jax.models.common import hf_checkpoint
from vrag_jax.models.common.attention import choose_backend
from vrag_jax.models.common.axes import PARAMETER_AXES, parameter_shardings
from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.lora import add_adapters, is_adapter, load_adapters
from vrag_jax.models.common.parameters import Params, flat_params
from vrag_jax.models.common.quantization import quantiser
from vrag_jax.models.families import family_of, image_spec, needs_tokenizer, preset, read_config
from vrag_jax.models.policy import PolicyModel
from vrag_jax.parallel.mesh import mesh_platform
from vrag_jax.parallel.processes import to_local
from vrag_jax.parallel.sharding import ArrayAxes, Rules, with_rules
from vrag_jax.run.run_config import RunConfig
from vrag_jax.sampling.programs import PRODUCTS

Shapes = dict[str, jax.ShapeDtypeStruct]


def policy_config(config: RunConfig, tokenizer=None) -> ModelConfig:
    """Returns the policy's sizes: of its checkpoint, or of its preset.

    Args:
      config: the run's config.
      tokenizer: of a policy that trains its own, whose vocabulary size and special ids it
        takes; None where only sizes matter.

    Raises:
      ConfigError: if the sides of its images are multiples of something else than those that
        the episodes show.
    """
    sizes = _sizes(config, tokenizer)
    factor = image_spec(sizes).factor
    if config.environment.factor != factor:
        raise ConfigError(f'config.environment.factor: {config.environment.factor}, but sides of '
                          f'images of this policy are multiples of {factor} pixels; pass '
                          f'--config.environment.factor={factor}')
    return sizes


def _sizes(config: RunConfig, tokenizer: Any) -> ModelConfig:
    policy = config.policy
    if policy.checkpoint:
        return read_config(policy.checkpoint)
    if not needs_tokenizer(policy.preset):
        return preset(policy.preset)
    if tokenizer is None:
        return preset(policy.preset, vocab_size=-(-policy.tokenizer_vocab // 64) * 64)
    # A multiple of 64 splits evenly over a mesh axis and fills vector registers.
    sizes = preset(policy.preset, vocab_size=-(-len(tokenizer) // 64) * 64)
    return dataclasses.replace(sizes, **{
        field: tokenizer.convert_tokens_to_ids(token)
        for field, token in family_of(sizes).special_tokens.items()})


def abstract_policy(
    config: RunConfig, model_config: ModelConfig, platform: str
) -> tuple[nnx.GraphDef[PolicyModel], Shapes]:
    """Returns the policy's graph definition and its parameters' shapes, allocating nothing.

    Args:
      config: the run's config.
      model_config: sizes of the policy.
      platform: on which it will run, see `mesh.device_platform`.
    """
    graphdef, shapes = flat_params(nnx.eval_shape(lambda: _build(config, model_config, platform)))
    quantise = _quantiser(config)
    return graphdef, {path: cast(jax.ShapeDtypeStruct, jax.eval_shape(
        functools.partial(quantise, path), leaf)) for path, leaf in shapes.items()}


def base_policy(
    config: RunConfig, model_config: ModelConfig, platform: str
) -> tuple[nnx.GraphDef[PolicyModel], Shapes]:
    """Returns what `abstract_policy` does, of the policy without adapters or quantisation."""
    model = nnx.eval_shape(lambda: _build(config, model_config, platform, adapters=False))
    graphdef, shapes = flat_params(model)
    return graphdef, cast(Shapes, shapes)


def initial_params(
    config: RunConfig, model_config: ModelConfig, mesh: Mesh, rules: Rules
) -> Params:
    """Returns the policy's first weights, placed on the mesh.

    Those of its checkpoint, or random ones from the seed; adapters are new, or those of
    `policy.adapter`.
    """
    policy = config.policy
    platform = mesh_platform(mesh)
    shapes = abstract_policy(config, model_config, platform)[1]
    axes = family_of(model_config).axes
    shardings = parameter_shardings(shapes, mesh, rules, axes)
    whole = parameter_shardings(
        base_policy(config, model_config, platform)[1], mesh, rules, axes)
    if policy.checkpoint:
        base = flat_params(hf_checkpoint.load(
            Path(policy.checkpoint), model_config, dtype=jnp.dtype(policy.dtype),
            param_dtype=jnp.dtype(policy.param_dtype),
            shardings=whole, convert=_placed_quantiser(config, shardings)))[1]
        drawn = _draw(config, model_config, platform, shardings, is_adapter)
        params = {**base, **drawn}
    else:
        # Drawn whole and quantised then: a random model is as large as its test.
        drawn = _draw(config, model_config, platform, {**shardings, **whole}, lambda _: True)
        quantise = _placed_quantiser(config, shardings)
        params = {path: quantise(path, value) for path, value in drawn.items()}
    if policy.adapter:
        read = load_adapters(Path(policy.adapter), shapes, policy.lora)
        params |= {path: jax.device_put(value, shardings[path]) for path, value in read.items()}
    return params


def sampling_shapes(
    shapes: Mapping[str, Any], config: RunConfig, mesh: Mesh, rules: Rules,
    axes: Sequence[ArrayAxes] = PARAMETER_AXES,
) -> Shapes:
    """Returns the policy as it lies for sampling: shapes, dtypes and shardings.

    Args:
      shapes: of the parameters, by path.
      config: the run's config; products are done in `policy.dtype`.
      mesh: the devices.
      rules: mesh axes of each logical axis, for sampling.
      axes: of the parameters, see `models.policy.PolicyFamily`.
    """
    cast_shapes = {path: jax.eval_shape(_cast_to(path, config), leaf)
                   for path, leaf in shapes.items()}
    return cast(Shapes, jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        cast_shapes, parameter_shardings(cast_shapes, mesh, rules, axes)))


def sampler_copy(
    params: Mapping[str, Any], changing: Container[str], config: RunConfig, mesh: Mesh,
    axes: Sequence[ArrayAxes] = PARAMETER_AXES,
) -> Shapes:
    """Returns what the sampler holds of the policy besides the learner's own arrays.

    Parameters that lie for sampling as they lie for learning are shared.

    Args:
      params: shapes of all parameters, as they lie for learning.
      changing: paths of those that are not shared anyhow, because the learner changes them
        while the sampler goes on with the weights before.
      config: the run's config.
      mesh: the devices.
      axes: see `sampling_shapes`.
    """
    placed = sampling_shapes(params, config, mesh, with_rules(config.mesh.sampler_rules), axes)

    def shared(path: str) -> bool:
        own = zip(jax.tree.leaves(placed[path]), jax.tree.leaves(params[path]), strict=True)
        return all(x.dtype == y.dtype and x.sharding.is_equivalent_to(y.sharding, len(x.shape))
                   for x, y in own) and path not in changing

    return {path: value for path, value in placed.items() if not shared(path)}


def sampling_placement(
    shapes: Mapping[str, Any], config: RunConfig, mesh: Mesh, sampling_mesh: Mesh, rules: Rules,
    axes: Sequence[ArrayAxes] = PARAMETER_AXES,
) -> Callable[[Params], Params]:
    """Returns a function that lays a policy out for sampling, from however it lies.

    Products are cast to the dtype in which they are done, once a policy and not once a
    call, and spread by the sampler's rules. Parameters go one after the other, from
    device to device: none is ever whole on a device that shall not have it whole.
    What lies so already is not copied.

    Args:
      shapes, config, rules, axes: see `sampling_shapes`.
      mesh: the devices of all processes, on which the policy lies.
      sampling_mesh: the same, or those of this process: all processes then call the
        function at the same time.
    """
    targets = sampling_shapes(shapes, config, sampling_mesh, rules, axes)
    alone = sampling_mesh is mesh

    @functools.cache
    def mover(path: str) -> Callable[[Any], Any]:
        shardings = jax.tree.map(lambda x: x.sharding, targets[path])
        return jax.jit(_cast_to(path, config), out_shardings=shardings if alone else None)

    def is_there(value: Any, target: Any) -> bool:
        return alone and all(
            x.dtype == y.dtype and x.sharding.is_equivalent_to(y.sharding, x.ndim)
            for x, y in zip(jax.tree.leaves(value), jax.tree.leaves(target), strict=True))

    def place(params: Params) -> Params:
        out = {}
        for path, value in params.items():
            if not is_there(value, targets[path]):
                value = mover(path)(value)
                if not alone:
                    value = jax.tree.map(
                        lambda x, target: to_local(x, mesh, target.sharding), value, targets[path])
            out[path] = value
        return out

    return place


def _cast_to(path: str, config: RunConfig) -> Callable[[Any], Any]:
    dtype = jnp.dtype(config.policy.dtype)
    product = path.rpartition('/')[2] in PRODUCTS
    return lambda value: value.astype(dtype) if product else value


def _build(config: RunConfig, model_config: ModelConfig, platform: str,
           adapters: bool = True) -> PolicyModel:
    policy = config.policy
    dtype = jnp.dtype(policy.dtype)
    model = family_of(model_config).model(
        model_config, rngs=nnx.Rngs(config.seed), dtype=dtype,
        param_dtype=jnp.dtype(policy.param_dtype), remat=policy.remat,
        attention=choose_backend(policy.attention, platform, dtype))
    if adapters:
        add_adapters(model, policy.lora, nnx.Rngs(config.seed + 1))
    return model


def _draw(config: RunConfig, model_config: ModelConfig, platform: str,
          shardings: Mapping[str, Any], chosen: Callable[[str], bool]) -> dict[str, jax.Array]:
    """Random weights of those parameters that are chosen; no others are made."""
    def create() -> dict[str, jax.Array]:
        params = flat_params(_build(config, model_config, platform))[1]
        return {path: value for path, value in params.items() if chosen(path)}

    wanted = {path: shardings[path] for path in jax.eval_shape(create)}
    return jax.jit(create, out_shardings=wanted)() if wanted else {}


def _quantiser(config: RunConfig) -> Callable[[str, Any], Any]:
    return quantiser(config.policy.quantization, jnp.dtype(config.policy.param_dtype))


def _placed_quantiser(
    config: RunConfig, shardings: Mapping[str, Any]
) -> Callable[[str, jax.Array], Any]:
    """Quantises an array on the devices, which forget it."""
    quantise = _quantiser(config)

    def convert(path: str, value: jax.Array) -> Any:
        if not config.policy.quantization:
            return value
        run = jax.jit(functools.partial(quantise, path), out_shardings=shardings[path],
                      donate_argnums=0)
        return run(value)

    return convert


"""What travels between devices in a step: the collectives of the compiled program, counted.

Predicted, for a tower of stacked layers of which the last runs at the read-out alone, so that its
code is there three times (student and its gradient; a scan, the last layer) and twice (teacher):

- `data`: gradients and metrics are summed, nothing else.
- `fsdp`: each parameter it cuts is gathered where it is used: a layer's matrices in the scan of
  student, gradient and teacher and in the last layer of both, its biases in all but the gradient;
  projection, positions (and, for images, patches and class token) once a tower. Tokens are gathered
  for the look-up and what was looked up is exchanged, once a tower and once for the gradient. A
  layer's gradient is asked for in parts where it is summed: a reduce-scatter on a TPU. The compiler
  for CPUs has none, and sums the whole of which each device then keeps its part.
- `tensor`: attention and MLP are summed over heads and hidden units, forward and for the gradient
  of what came in; so is the look-up over the vocabulary.
"""

import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_image_step
import test_step
from flax import nnx

from jaxdefense.clip.layers import linear
from jaxdefense.defense.step import init_state, make_train_step
from jaxdefense.sharding import (
    AXES,
    ShardingRules,
    batch_sharding,
    gathered,
    make_mesh,
    on_mesh,
)

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
# What a step would move to the host and back with.
_HOST = r"\b(infeed|outfeed|send|recv|send-done|recv-done)\(|callback|SendToHost|RecvFromHost"

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")


def compiled(which, tmp_path, shape, accumulate=1):
    """The program of a step on a mesh of this shape, and the shape of its token table."""
    if which == "text":
        case = test_step.make_case(tmp_path)
        case.batches.num_rows = 8
        cfg, teacher = test_step.step_config(case.tower, accumulate=accumulate)
    else:
        case = test_image_step.make_case(tmp_path)
        cfg, teacher = test_image_step.step_config(
            case.tower, shape[0] * shape[1], accumulate=accumulate
        )
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    mesh = jax.sharding.Mesh(devices, AXES)
    step, _, _ = make_train_step(cfg, mesh, ShardingRules(), teacher)
    state = jax.eval_shape(partial(init_state, cfg=cfg), teacher)
    hlo = step.lower(state, teacher, case.batches[0], jax.random.key(0)).compile().as_text()
    assert hlo and not re.search(_HOST, hlo)
    table = getattr(case.tower, "token_embedding", np.zeros((0, 0))).shape
    return hlo, table


def collectives(hlo):
    return Counter(re.findall(rf" ({_KINDS})(?:-start)?\(", hlo))


@pytest.mark.parametrize("which", ["text", "image"])
def test_data_axis_sums_gradients_and_metrics_alone(which, tmp_path):
    found = collectives(compiled(which, tmp_path, (8, 1, 1))[0])
    assert set(found) == {"all-reduce"} and found["all-reduce"] <= 4, found


@pytest.mark.parametrize("which", ["text", "image"])
def test_fsdp_axis_gathers_parameters_and_no_activations(which, tmp_path):
    hlo, table = compiled(which, tmp_path, (1, 4, 1))
    found = collectives(hlo)
    layers = 4 * 5 + 2 * 4
    # Projection and positions of both towers; tokens, or patches and the class token.
    assert found["all-gather"] == layers + 2 * 2 + (2 if which == "text" else 2 * 2), found
    assert found["all-to-all"] == (3 if which == "text" else 0), found
    assert found["collective-permute"] == 0, found
    assert found["all-reduce"] + found["reduce-scatter"] <= 8, found
    if which == "text":
        gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", hlo)
        assert ",".join(map(str, table)) not in gathered and gathered


def test_gradient_of_a_layer_is_cut_where_it_is_summed():
    mesh, dims = make_mesh(data=2, fsdp=4), ("layers", "embed", "mlp")
    kernel = nnx.Param(jnp.ones((12, 20)), dims=dims)

    def slope(value, x):
        def loss(value):
            with on_mesh(mesh, ShardingRules()):
                whole = gathered({"kernel": kernel.replace(value)}, jnp.bfloat16)["kernel"]
                return linear("bd,df->bf", x.astype(jnp.bfloat16), whole[...]).sum()

        return jax.grad(loss)(value)

    x = jax.ShapeDtypeStruct((16, 12), jnp.float32, sharding=batch_sharding(mesh, ShardingRules()))
    found = jax.jit(slope).lower(kernel[...], x).compile().output_shardings
    assert found.shard_shape((12, 20)) == (3, 20)


@pytest.mark.parametrize("which", ["text", "image"])
def test_tensor_axis_sums_attention_and_mlp_alone(which, tmp_path):
    found = collectives(compiled(which, tmp_path, (1, 1, 2))[0])
    # Two sums a layer: scan and last layer, of student, its gradient and teacher. The look-ups of
    # both towers, and scalars.
    assert set(found) == {"all-reduce"}, found
    assert 12 <= found["all-reduce"] <= 12 + 4, found


@pytest.mark.parametrize("which", ["text", "image"])
def test_all_axes_together_exchange_what_each_does_alone(which, tmp_path):
    hlo, table = compiled(which, tmp_path, (2, 2, 2))
    found = collectives(hlo)
    assert found["all-gather"] == 4 * 5 + 2 * 4 + 2 * 2 + (2 if which == "text" else 2 * 2), found
    assert found["all-to-all"] == (3 if which == "text" else 0), found
    assert found["collective-permute"] == 0, found
    if which == "text":
        cut = f"{table[0] // 2},{table[1]}"  # by `tensor`; gathered over `fsdp`
        assert cut not in re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", hlo)

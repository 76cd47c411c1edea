"""Parameters in parts: a device stores its part of each, and of what the optimizer keeps, and gathers what it uses.

The axis `fsdp` of a mesh divides parameters, and sequences as `data` does. The parameters of a layer are whole while
the layer uses them. Their gradient is added up over the devices and divided again (Rajbhandari et al., arXiv
1910.02054, stage 3).

The axis `tensor` divides parameters of heads and of hidden units, which stay divided while a layer uses them: what
reads tokens by its columns, what writes tokens by its rows (Shoeybi et al., arXiv 1909.08053). The name of a parameter
says what its axes are (`dims.py`): `TENSOR_LETTERS` is the table.
"""

from functools import partial

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cram_jax.kernels.meshes import BATCH_AXES, TENSOR

_, AXIS = BATCH_AXES
# All else is whole on all devices of the axis `tensor`.
TENSOR_LETTERS = {"H": "heads", "F": "hidden units"}
TENSOR_FIRST = "out_XxD", "out_norm_X"  # of Mamba-2: X counts heads and the values of each


def spec(shape: tuple[int, ...], parts: int, name: str = "", tensor: int = 1) -> P:
    """Returns how a parameter is divided, or a mean of it that the optimizer keeps.

    `tensor` divides the axis of heads or hidden units, if there is one and it divides. `fsdp` divides the longest of
    the others that divides; vectors and single numbers are on all of its devices.

    Args:
      parts, tensor: lengths of the axes `fsdp` and `tensor`.
      name: of the parameter, such as "o_HxVxD".
    """
    found = [axis for axis, letter in enumerate(_letters(name, len(shape))) if letter in TENSOR_LETTERS]
    found = [0] if name in TENSOR_FIRST else found
    over = {axis: TENSOR for axis in found[:1] if tensor > 1 and shape[axis] % tensor == 0}
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0 and axis not in over]
    if parts > 1 and len(shape) > 1 and axes:
        over[max(axes, key=lambda axis: shape[axis])] = AXIS
    return P(*[over.get(axis) for axis in range(max(over, default=-1) + 1)])


def _letters(name: str, axes: int) -> list[str]:
    """What the axes of a parameter are; nothing if its name does not say so."""
    letters = name.rsplit("_", 1)[-1].split("x")
    return letters if len(letters) == axes else []


def name_of(path: tuple) -> str:
    """The name of an array in a tree."""
    return next((key.name for key in reversed(path) if isinstance(key, jax.tree_util.GetAttrKey)), "")


def gathered(params):
    """Returns parameters, whole over the axis `fsdp`. Without a mesh that divides them they stay as they are."""
    mesh = jax.sharding.get_abstract_mesh()
    if dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get(AXIS) is not AxisType.Auto:
        return params
    tensor = mesh.shape.get(TENSOR, 1)

    def whole(path, leaf):
        of = lambda parts: spec(leaf.shape, parts, name_of(path), tensor)
        return _whole(leaf, of(1), of(mesh.shape[AXIS]))

    return jax.tree.map_with_path(whole, params)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _whole(leaf, used: P, divided: P):
    return jax.lax.with_sharding_constraint(leaf, used)


def _divided(used: P, divided: P, _, gradient):
    # Added up first. Otherwise the compiler divides the gradient's computation, and sends tokens for it.
    summed = jax.lax.with_sharding_constraint(gradient, used)
    return (jax.lax.with_sharding_constraint(summed, divided),)


_whole.defvjp(lambda leaf, used, divided: (_whole(leaf, used, divided), None), _divided)

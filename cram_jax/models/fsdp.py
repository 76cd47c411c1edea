"""Parameters in parts: a device stores its part of each, and of what the optimizer keeps, and gathers what it uses.

The axis `fsdp` of a mesh divides parameters, and sequences as `data` does. The parameters of a layer are whole while
the layer uses them. Their gradient is added up over the devices and divided again (Rajbhandari et al., arXiv
1910.02054, stage 3).
"""

from functools import partial

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cram_jax.kernels.meshes import BATCH_AXES

_, AXIS = BATCH_AXES


def spec(shape: tuple[int, ...], parts: int) -> P:
    """Returns how a parameter is divided, or a mean of it that the optimizer keeps: in its longest axis that divides.

    Vectors and single numbers are on every device.

    Args:
      parts: length of the axis `fsdp`.
    """
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or len(shape) < 2 or not axes:
        return P()
    return P(*[None] * max(axes, key=lambda axis: shape[axis]), AXIS)


def gathered(params):
    """Returns parameters, whole on each device. Without a mesh that divides them they stay as they are."""
    mesh = jax.sharding.get_abstract_mesh()
    if dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get(AXIS) is not AxisType.Auto:
        return params
    return jax.tree.map(lambda leaf: _whole(leaf, spec(leaf.shape, mesh.shape[AXIS])), params)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _whole(leaf, divided: P):
    return jax.lax.with_sharding_constraint(leaf, P())


def _divided(divided: P, _, gradient):
    # Added up first. Otherwise the compiler divides the gradient's computation, and sends tokens for it.
    summed = jax.lax.with_sharding_constraint(gradient, P())
    return (jax.lax.with_sharding_constraint(summed, divided),)


_whole.defvjp(lambda leaf, divided: (_whole(leaf, divided), None), _divided)
